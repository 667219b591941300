"""Every method trains, alone and with SD-Dropout, and resumes; its options are checked."""

import jax
import numpy as np
import pytest

from sdd_jax import config as configs
from sdd_jax.errors import InputError
from sdd_jax.experiment import load_experiment
from sdd_jax.models import models
from sdd_jax.objectives import Batch, View, objectives
from sdd_jax.runs import Checkpoints, read_metrics
from sdd_jax.train import train_and_evaluate

MODEL = models.options("mlp", width=32, depth=2)
DROPOUT = models.options("mlp", width=32, depth=2, dropout_rate=0.2)
METHODS = [
    *("cross_entropy", "label_smoothing", "dropout_cross_entropy", "clean_dropout_cross_entropy"),
    "generalised_cross_entropy",
    *("clean_student", "cs_kd", "ddgsd", "byot", "dml", "r_drop", "ps_kd", "dlb", "tf_kd"),
]


def test_every_objective_is_tested_here():
    # Other tests register objectives of their own.
    ours = {n for n in objectives.names() if objectives.get(n).__module__.startswith("sdd_jax.")}
    students = {"distill", "distill_dirichlet", "distill_gaussian", "distill_two_heads"}
    assert ours == {*METHODS, *students}


def config_of(name, **changes):
    config = configs.default()
    config.model = DROPOUT if name == "r_drop" else MODEL
    config.objective = objectives.options(name)
    config.sd_dropout.weight = 0.0
    config.batch_size = 128
    config.duration = "3 epochs"
    config.eval_every = config.checkpoint_every = "3 epochs"
    config.update(changes)
    return config


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_alone_and_learns(name, tmp_path):
    result = train_and_evaluate(config_of(name), str(tmp_path))
    assert result["eval/accuracy"] > 0.6
    assert not any("sd_dropout" in key for key in read_metrics(tmp_path)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_it_trains_with_sd_dropout_and_learns(name, tmp_path):
    config = config_of(name, duration="5 epochs", eval_every="5 epochs")
    config.sd_dropout.weight = 0.1
    assert train_and_evaluate(config, str(tmp_path))["eval/accuracy"] > 0.6  # chance: 0.1
    assert read_metrics(tmp_path)[-1]["train/sd_dropout"] > 0


@pytest.mark.parametrize("shape", [(12, 12), (12, 4), (8, 16)])
def test_the_branches_of_byot_see_maps_of_any_proportions_whole(shape):
    model = models.build({"name": "resnet18", "width": 2}, num_classes=3, axis_name=None)
    objective = objectives.build(
        {"name": "byot"}, model=model, image_shape=(*shape, 3), axis_name=None
    )
    module, stages = objective.auxiliary.module, objective.auxiliary.arguments
    random, maps = np.random.default_rng(0), []
    for stage in stages:  # 16 images that differ in the last pixel that whole windows cover
        window = [n // m for n, m in zip(stage.shape[1:3], stages[-1].shape[1:3], strict=True)]
        row, column = (n // w * w - 1 for n, w in zip(stage.shape[1:3], window, strict=True))
        maps.append(np.zeros((16, *stage.shape[1:]), np.float32))
        maps[-1][:, row, column] = random.normal(0, 9, (16, stage.shape[-1]))

    @jax.jit
    def branches(key):
        return module.apply(module.init(key, *stages), *maps)

    for logits, _ in branches(jax.random.key(0)):
        assert np.all(np.isfinite(logits))
        assert np.ptp(logits) > 0


@pytest.mark.parametrize("name", ["ps_kd", "dlb", "dml", "byot"])
def test_arrays_that_an_objective_carries_survive_a_stop(name, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_and_evaluate(config_of(name), str(whole))
    config = config_of(name, checkpoint_every="7 steps")  # not at the end of an epoch
    save = Checkpoints.save

    def save_and_stop(self, step, *args, **options):
        save(self, step, *args, **options)
        if step == 14:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(InterruptedError):
            train_and_evaluate(config, str(stopped))
    train_and_evaluate(config, str(stopped))
    like = load_experiment(config).abstract_state
    assert jax.tree.leaves((like.memory, like.auxiliary))
    states = [Checkpoints(folder, read_only=True).restore(like) for folder in (whole, stopped)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def build(name, model=MODEL, **options):
    context = {"model": models.build(model, num_classes=4), "image_shape": (4, 4, 1)}
    return objectives.build({"name": name, **options}, axis_name=None, **context)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cs_kd", {"weight": -1.0}, "weight: must be 0 or more, got -1.0"),
        ("ddgsd", {"temperature": 0.0}, "temperature: must be greater than 0, got 0.0"),
        ("ddgsd", {"feature_weight": -1.0}, "feature_weight: must be 0 or more, got -1.0"),
        ("ddgsd", {"joint_batch": 1}, "joint_batch: must be True or False, got 1"),
        ("byot", {"label_weight": 1.5}, r"label_weight: must be in \[0, 1\], got 1.5"),
        ("clean_student", {"gradient": "x"}, "gradient: must be one of both, forward, reverse,"),
        ("ps_kd", {"alpha": 2.0}, r"alpha: must be in \[0, 1\], got 2.0"),
        ("tf_kd", {"correct": 1.0}, r"correct: must be in \[0, 1\), got 1.0"),
        ("tf_kd", {"correct": 0.2}, r"correct: must be in \[1/4, 1\), got 0.2"),
        ("dropout_cross_entropy", {"dropout_rate": 1.0}, r"dropout_rate: must be in \[0, 1\), got"),
        ("generalised_cross_entropy", {"q": 0.0}, r"q: must be in \(0, 1\], got 0.0"),
    ],
)
def test_unusable_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=f"^config.objective.{message}"):
        build(name, **options)


def test_generalised_cross_entropy_has_the_q_of_the_config():
    labels = np.array([0, 1], np.int32)
    view = View(None, np.log([[0.36, 0.64], [0.75, 0.25]]).astype(np.float32), None, {})
    batch = Batch((None,), labels, None, None, None)
    output = build("generalised_cross_entropy", q=0.5).loss(lambda images: view, batch, None)
    (term,) = output.terms.values()
    np.testing.assert_allclose(term.values, [0.8, 1.0], rtol=1e-5)  # (1 - sqrt p) / 0.5
    assert term.weight == 1.0


def test_a_network_that_does_not_fit_is_refused():
    with pytest.raises(
        InputError, match="^config.objective: 'r_drop' needs a network with dropout"
    ):
        build("r_drop")
    with pytest.raises(InputError, match="^config.objective: 'byot' needs a network of two stages"):
        build("byot", models.options("mlp", depth=1))


def test_dlb_alone_needs_an_even_batch():
    multiples = {name: build(name, DROPOUT).batch_multiple for name in METHODS}
    assert multiples == dict.fromkeys(METHODS, 1) | {"dlb": 2}
