"""Runs on images of any size, and on either engine."""

import importlib.util
import signal
from functools import partial

import jax
import numpy as np
import pytest

from sdd_jax.data.engines import engines
from sdd_jax.data.sources.tfds import TfdsImageFiles
from sdd_jax.errors import InputError
from sdd_jax.evaluate import evaluate_workdir
from sdd_jax.experiment import load_experiment
from sdd_jax.models import models
from sdd_jax.runs import Checkpoints, read_metrics
from sdd_jax.train import Interrupted, train_and_evaluate


@pytest.fixture
def card(root, photographs, tmp_path):
    """CUB's card on small photographs, with a small network."""
    spec = importlib.util.spec_from_file_location("card", root / "configs/cub200_resnet18.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("sd_dropout,runlocal")
    config.dataset.update(
        name="tiny_birds", data_dir=photographs, cache_dir=str(tmp_path / "cache"), image_size=32
    )
    config.model.width = 4
    config.batch_size = 8
    return config


@pytest.fixture
def mlp_card(card):
    card.model = models.options("mlp", width=8, depth=1)
    card.optimizer.learning_rate = 0.01
    card.duration = card.checkpoint_every = card.eval_every = "7 steps"
    return card


def assert_equal_final_states(config, *workdirs, rtol=0):
    abstract_state = load_experiment(config).abstract_state
    first, *others = (Checkpoints(w, read_only=True).restore(abstract_state) for w in workdirs)
    for state in others:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), state, first)


def test_a_run_ends_with_the_same_parameters_on_either_engine(
    tiny_config, tmp_path, assert_nothing_runs
):
    config = tiny_config
    config.duration = config.eval_every = "9 steps"  # one step of the next epoch
    for name, steps_per_call in (("resident", 0), ("streamed", 3)):
        config.engine, config.steps_per_call = engines.options(name), steps_per_call
        train_and_evaluate(config, str(tmp_path / name))
    assert_nothing_runs()
    # Two programs, whose sums XLA may round differently.
    assert_equal_final_states(config, tmp_path / "resident", tmp_path / "streamed", rtol=1e-6)
    # The engine may change within a run: it is not part of what is trained.
    config.engine = engines.options("resident")
    train_and_evaluate(config, str(tmp_path / "streamed"))


@pytest.mark.slow
def test_a_program_ends_with_the_same_parameters_bit_for_bit_on_either_engine(
    run, tiny_config, tmp_path
):
    """With all of XLA's optimisations, which the tests in this process are without."""
    options = ["--config.model={'name': 'mlp', 'width': 16, 'depth': 1}", "--config.augment.pad=1"]
    options += [
        "--config.batch_size=176",
        "--config.duration=9 steps",
        "--config.eval_every=9 steps",
    ]
    for engine, calls in (("resident", 0), ("streamed", 3)):
        options += [f"--config.engine={{'name': '{engine}'}}", f"--config.steps_per_call={calls}"]
        done = run("train.py", f"--workdir={tmp_path / engine}", *options, devices=4)
        assert done.returncode == 0, done.stderr
    assert_equal_final_states(tiny_config, tmp_path / "resident", tmp_path / "streamed")


def test_a_card_trains_and_evaluates_on_photographs(card, tmp_path, assert_nothing_runs):
    card.dataset.validation = 0.2
    card.duration = "1 epochs"
    result = train_and_evaluate(card, str(tmp_path))
    assert_nothing_runs()
    (line,) = [line for line in read_metrics(tmp_path) if "eval/accuracy" in line]
    assert line["step"] == 4  # of 39 images in batches of 8
    assert {"train/sd_dropout", "validation/accuracy"} <= line.keys()
    repeated = evaluate_workdir(str(tmp_path), ["accuracy"])
    assert repeated["eval/accuracy"] == result["eval/accuracy"]


def test_a_run_resumes_in_the_middle_of_an_epoch_to_the_same_parameters(
    mlp_card, tmp_path, monkeypatch, assert_nothing_runs
):
    result = train_and_evaluate(mlp_card, str(tmp_path / "whole"))
    starts = []
    inputs = engines.get("streamed").inputs

    def interrupted(self, start, stop):
        starts.append(start)
        if starts == [0, 1, 2]:
            signal.raise_signal(signal.SIGTERM)
        return inputs(self, start, stop)

    monkeypatch.setattr(engines.get("streamed"), "inputs", interrupted)
    with pytest.raises(Interrupted, match="step 3"):
        train_and_evaluate(mlp_card, str(tmp_path / "parts"))
    assert_nothing_runs()
    assert train_and_evaluate(mlp_card, str(tmp_path / "parts")) == result
    assert starts == [0, 1, 2, 3, 4, 5, 6]
    assert_equal_final_states(mlp_card, tmp_path / "whole", tmp_path / "parts")


def test_checks_read_photographs_and_another_set_in_their_size(mlp_card, tmp_path):
    mlp_card.duration = "2 steps"
    train_and_evaluate(mlp_card, str(tmp_path))
    few = {"eval.max_images": 5, "eval.pgd_steps": 1, "eval.attacks": ("apgd_ce",)}
    few |= {"eval.apgd_steps": 1}
    results = evaluate_workdir(str(tmp_path), ["ood", "adversarial"], overrides=few)
    assert 0 <= results["eval/ood/photos/msp/auroc"] <= 1
    assert results["eval/adversarial/images"] == 5


def test_a_damaged_photograph_ends_the_run_with_one_line_and_no_threads(
    mlp_card, tmp_path, monkeypatch, assert_nothing_runs
):
    read = TfdsImageFiles.__getitem__
    monkeypatch.setattr(
        TfdsImageFiles, "__getitem__", lambda self, i: read(self, i)[: 99 if i == 11 else None]
    )
    with pytest.raises(
        InputError, match="^dataset tiny_birds, train: image 11 cannot be decoded"
    ) as error:
        train_and_evaluate(mlp_card, str(tmp_path))
    assert "\n" not in str(error.value)
    assert_nothing_runs()
