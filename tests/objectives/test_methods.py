"""Every method: its weights and constants, and that it trains from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdd_jax.objectives.sd_dropout as sd_dropout_module
from sdd_jax import config as base
from sdd_jax.errors import InputError
from sdd_jax.models import models
from sdd_jax.objectives import Batch, Clock, View, objectives, with_sd_dropout
from sdd_jax.train import train_and_evaluate

PROBLEMS = json.loads((Path(__file__).parents[1] / "author_losses.json").read_text())
DROPOUT = {"model": models.options("mlp", width=32, depth=2, dropout_rate=0.2)}
METHODS = {  # name: what its config needs beside the name
    "cross_entropy": {},
    "label_smoothing": {},
    "dropout_cross_entropy": {},
    "clean_dropout_cross_entropy": {},
    "clean_student": {},
    "cs_kd": {},
    "ddgsd": {},
    "byot": {},
    "dml": {},
    "r_drop": DROPOUT,
    "ps_kd": {},
    "dlb": {},
    "tf_kd": {},
}


def test_every_objective_is_tested_here():
    assert set(objectives.names()) == set(METHODS) | {"distill"}


class Golden:
    """The golden features and logits, in place of a network."""

    def __init__(self, inputs, passes):
        self.kernel, self.bias = (np.array(inputs[k]) for k in ("kernel", "bias"))
        self.inputs, self.features = inputs, list(passes)

    def head(self, features):
        return features @ self.kernel + self.bias

    def __call__(self, images, *, batch_stats=None, dropout="dropout"):
        features = self.features.pop(0)
        return View(features, self.head(features), self.head, {}, stages=("s1", "s2"))

    def auxiliary(self, *arguments):
        if arguments == ("s1", "s2"):  # BYOT's branches
            mid = (np.array(self.inputs[k]) for k in ("mid_logits", "mid_features"))
            return list(zip(*mid, strict=True)), {}
        other = {k: np.array(self.inputs[f"{k}_b"]) for k in ("features", "kernel", "bias")}
        return other["features"] @ other["kernel"] + other["bias"], {}


@pytest.mark.parametrize("problem", PROBLEMS, ids=["problem0", "problem1"])
@pytest.mark.parametrize("with_term", [False, True], ids=["alone", "sd_dropout"])
@pytest.mark.parametrize(
    "name", ["cross_entropy", "label_smoothing", "cs_kd", "ddgsd", "byot", "dml"]
)
def test_the_loss_is_the_authors_total(name, with_term, problem, monkeypatch):
    case = {
        ("cross_entropy", True): "sd_dropout",
        ("label_smoothing", True): "sd_dropout_label_smoothing",
        ("dml", True): "dml_sd_dropout_a",
    }.get((name, with_term), f"{name}_sd_dropout" if with_term else name)
    golden, inputs = problem["cases"][case], problem["inputs"]
    features = np.array(inputs["features"])
    halves = np.split(features, 2) if name in ("cs_kd", "ddgsd") else [features]
    labels = np.array(golden["labels"])[: len(halves[0])]
    scale = 1 / (1 - inputs["rate"])
    masks = [scale * np.array(inputs[m]) for m in ("mask_u", "mask_v")]
    if name == "ddgsd":  # one mask for each image of each view
        masks = np.split(masks[0], 2)

    def golden_samples(key, x, *, rate, num_samples, exclusive):
        return [x * mask[: len(x)] for mask in masks]

    monkeypatch.setattr(sd_dropout_module, "dropout_samples", golden_samples)
    options = {"name": name}
    if name in ("cs_kd", "ddgsd", "byot", "dml"):
        options["weight"] = inputs["kd_weight"]
    with jax.enable_x64(True):
        model = models.build({"name": "mlp", "width": 8}, num_classes=4)
        objective = objectives.build(options, model=model, image_shape=(4, 4, 1), axis_name=None)
        if with_term:
            objective = with_sd_dropout(
                objective,
                inputs["sdd_weight"],
                rate=inputs["rate"],
                temperature=inputs["temperature"],
            )
        batch = Batch((None, None), jnp.asarray(labels), None, None, Clock(jnp.int32(0), 1, 1))
        output = objective.loss(Golden(inputs, halves), batch, lambda stream: None)
        loss = sum(term.weight * jnp.mean(term.values) for term in output.terms.values())
    np.testing.assert_allclose(loss, golden["losses"]["loss_total"], rtol=1e-9)


def config_of(name, **changes):
    config = base.default()
    config.model = models.options("mlp", width=32, depth=2)
    config.objective = objectives.options(name)
    config.sd_dropout.weight = 0.0
    config.batch_size = 128
    config.duration = "3 epochs"
    config.eval_every = config.checkpoint_every = "3 epochs"
    config.update(METHODS[name])
    config.update(changes)
    return config


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_alone_and_learns(name, tmp_path):
    result = train_and_evaluate(config_of(name), str(tmp_path))
    assert result["eval/accuracy"] > 0.6
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not any("sd_dropout" in key for key in lines[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_it_trains_with_sd_dropout_from_the_command_line(name, root, tmp_path):
    options = METHODS[name].get("model", models.options("mlp", width=32, depth=2))
    done = subprocess.run(
        [
            sys.executable, str(root / "train.py"), f"--workdir={tmp_path / 'run'}",
            f"--config.objective={{'name': '{name}'}}", f"--config.model={options}",
            "--config.sd_dropout.weight=0.1", "--config.duration=5 epochs",
        ],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["eval/accuracy"] > 0.4
    assert last["train/sd_dropout"] > 0


@pytest.mark.parametrize("shape", [(12, 12), (12, 4), (8, 16)])
def test_the_branches_of_byot_see_maps_of_any_proportions_whole(shape):
    model = models.build({"name": "resnet18", "width": 2}, num_classes=3, axis_name=None)
    objective = objectives.build(
        {"name": "byot"}, model=model, image_shape=(*shape, 3), axis_name=None
    )
    module, stages = objective.auxiliary.module, objective.auxiliary.arguments
    random, moved = np.random.default_rng(0), []
    for stage in stages:  # 16 images that differ in the last pixel that whole windows cover
        window = [n // m for n, m in zip(stage.shape[1:3], stages[-1].shape[1:3], strict=True)]
        row, column = (n // w * w - 1 for n, w in zip(stage.shape[1:3], window, strict=True))
        moved.append(np.zeros((16, *stage.shape[1:]), np.float32))
        moved[-1][:, row, column] = random.normal(0, 9, (16, stage.shape[-1]))

    @jax.jit
    def branches(key):
        return module.apply(module.init(key, *stages), *moved)

    for logits, _ in branches(jax.random.key(0)):
        assert np.all(np.isfinite(logits))
        assert np.ptp(logits) > 0


@pytest.mark.parametrize("name", ["ps_kd", "dlb", "dml", "byot"])
def test_what_an_objective_carries_survives_a_stop(name, tmp_path):
    from sdd_jax.runs.checkpoints import Checkpoints

    def state_of(folder):
        import orbax.checkpoint as ocp

        manager = Checkpoints(folder, read_only=True)
        step = max(manager._manager.all_steps())
        record = manager._restore_items(step, record=ocp.args.JsonRestore())["record"]
        return step, record["checksums"]

    train_and_evaluate(config_of(name), str(tmp_path / "whole"))
    # Stopped between two epochs' ends, in the middle of what the memory goes through.
    config = config_of(name, checkpoint_every="7 steps")

    class Stop(Exception):
        pass

    from sdd_jax.training import loop

    save = loop.Checkpoints.save

    def save_and_stop(self, step, *arguments, **options):
        save(self, step, *arguments, **options)
        if step == 14:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            train_and_evaluate(config, str(tmp_path / "stopped"))
    train_and_evaluate(config, str(tmp_path / "stopped"))
    assert state_of(tmp_path / "stopped") == state_of(tmp_path / "whole")
    names = state_of(tmp_path / "whole")[1]
    part = ".memory" if name in ("ps_kd", "dlb") else ".auxiliary"
    assert any(key.startswith(part) for key in names)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cs_kd", {"weight": -1.0}, "config.objective.weight: must be 0 or more, got -1.0"),
        ("ddgsd", {"temperature": 0.0}, "config.objective.temperature: must be greater than 0"),
        ("ddgsd", {"feature_weight": -1.0}, "config.objective.feature_weight: must be 0 or more"),
        ("byot", {"label_weight": 1.5}, "config.objective.label_weight: must be in"),
        ("ps_kd", {"alpha": 2.0}, "config.objective.alpha: must be in"),
        ("tf_kd", {"alpha": -0.5}, "config.objective.alpha: must be in"),
        ("tf_kd", {"correct": 1.0}, "config.objective.correct: must be in"),
        ("dropout_cross_entropy", {"dropout_rate": 1.0}, "config.objective.dropout_rate: must be"),
    ],
)
def test_unusable_options_are_refused(name, changes, message, tmp_path):
    config = config_of(name)
    config.objective.update(changes)
    with pytest.raises(InputError, match=message):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("r_drop", {"model": models.options("mlp")}, "'r_drop' needs a network with dropout"),
        ("byot", {"model": models.options("mlp", depth=1)}, "'byot' needs a network of two stages"),
        ("dlb", {"batch_size": 129}, "config.batch_size: must be"),
    ],
)
def test_a_network_or_batch_that_does_not_fit_is_refused(name, changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train_and_evaluate(config_of(name, **changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
