"""Runs that are extended: a longer duration in the workdir of a shorter one."""

import json
import logging
import os
import signal

import jax
import numpy as np
import pytest

from sdd_jax import config as configs
from sdd_jax import experiment as experiments
from sdd_jax import train
from sdd_jax.errors import InputError
from sdd_jax.objectives import Objective, Output, Term, objectives
from sdd_jax.runs import Checkpoints, read_metrics
from sdd_jax.training.schedules import schedules


@schedules.register("trapezoid_in_test")
def trapezoid(*, learning_rate, total_steps):
    """Constant for three quarters of the run, then half."""
    return lambda step: jax.numpy.where(
        4 * step < 3 * total_steps, learning_rate, learning_rate / 2
    )


@objectives.register("shrinking_in_test")
def shrinking(*, factor: float = 1.0):
    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        _, _, total_steps = batch.clock
        values = factor / total_steps * (view.logits**2).sum(-1)
        return Output(view, {"squares": Term(values)}, view.batch_stats)

    return Objective(loss)


@pytest.fixture
def config(tiny_config):
    """A run of two epochs whose learning rate does not depend on its length."""
    tiny_config.schedule = {"name": "step", "milestones": ("12 steps",), "warmup": "2 steps"}
    tiny_config.optimizer = {"name": "sgd", "learning_rate": 0.05, "ema": 0.9}
    tiny_config.duration = "2 epochs"
    tiny_config.dataset.validation = 0.015
    tiny_config.log_to = ()
    return tiny_config


def but(config, **changes):
    config = config.copy_and_resolve_references()
    for field, value in changes.items():
        config.update_from_flattened_dict({field.replace("__", "."): value})
    return config


def final_state(config, workdir):
    like = jax.eval_shape(experiments.load_experiment(config).create_state)
    return Checkpoints(workdir, read_only=True).restore(like)


def assert_same_run(config, ours, theirs):
    a, b = (final_state(config, workdir) for workdir in (ours, theirs))
    assert int(a.step) == int(b.step)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    records = [json.loads((x / "config.json").read_text()) for x in (ours, theirs)]
    assert records[0] == records[1]


def evaluations(workdir):
    return [
        {k: v for k, v in line.items() if k.startswith(("step", "eval/", "validation/"))}
        for line in read_metrics(workdir)
        if "eval/accuracy" in line
    ]


@pytest.mark.slow
def test_a_finished_run_goes_on_to_what_a_longer_one_is_bit_for_bit(config, tmp_path, capsys):
    longer = but(config, duration="24 steps")
    expected = train.train_and_evaluate(longer, str(tmp_path / "longer"))
    train.train_and_evaluate(config, str(tmp_path / "run"))
    assert train.train_and_evaluate(longer, str(tmp_path / "run")) == expected
    assert "resuming after step 16" in capsys.readouterr().out
    assert_same_run(longer, tmp_path / "run", tmp_path / "longer")
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "longer")
    with pytest.raises(InputError) as refused:
        train.train_and_evaluate(config, str(tmp_path / "run"))
    assert str(refused.value) == (
        f"config.duration: must be at least 24 steps, the duration of the run in {tmp_path / 'run'}, "
        "got '2 epochs'"
    )


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_what_a_longer_one_is(config, tmp_path, monkeypatch):
    longer = but(config, duration="3 epochs")
    train.train_and_evaluate(longer, str(tmp_path / "longer"))
    compiled = train.compile_train_call

    def compile_and_stop(*arguments):
        call = compiled(*arguments)

        def stopping(state, *rest):
            if int(state.step) == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            return call(state, *rest)

        return stopping

    with monkeypatch.context() as patch:
        patch.setattr(train, "compile_train_call", compile_and_stop)
        with pytest.raises(train.Interrupted):
            train.train_and_evaluate(config, str(tmp_path / "run"))
    train.train_and_evaluate(longer, str(tmp_path / "run"))
    assert_same_run(longer, tmp_path / "run", tmp_path / "longer")
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "longer")


def trained(config, folder, step):
    """Writes the record of a run and a checkpoint at a step."""
    experiment = experiments.load_experiment(config)
    folder.mkdir()
    configs.record(folder, experiment.config, experiment.facts())
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, experiment.create_state())
    checkpoints.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"schedule": {"name": "cosine"}},
            "the learning rate of steps already trained (schedule 'cosine')",
        ),
        (
            {"sd_dropout__weight": 0.1, "sd_dropout__ramp": 0.5},
            "the loss of steps already trained (objective 'cross_entropy', sd_dropout.ramp 0.5)",
        ),
        (
            {"objective": {"name": "ps_kd"}, "sd_dropout__weight": 0.0},
            "the loss of steps already trained (objective 'ps_kd')",
        ),
        (
            {"objective": {"name": "shrinking_in_test"}, "sd_dropout__weight": 0.0},
            "the loss of steps already trained (objective 'shrinking_in_test')",
        ),
    ],
    ids=["cosine", "ramp", "ps_kd", "own objective"],
)
def test_a_run_whose_trained_steps_depend_on_its_length_is_refused(
    config, tmp_path, changes, reason
):
    config = but(config, **{k: v for k, v in changes.items() if not isinstance(v, dict)})
    for section, value in changes.items():
        if isinstance(value, dict):
            config[section] = value
    folder = tmp_path / "run"
    trained(config, folder, 4)
    before = (folder / "config.json").read_bytes()
    with pytest.raises(InputError) as refused:
        train.train_and_evaluate(but(config, duration="4 epochs"), str(folder))
    assert str(refused.value) == (
        f"config.duration: 4 epochs instead of 2 epochs would change {reason}; start a new run in "
        "another workdir"
    )
    assert (folder / "config.json").read_bytes() == before
    with pytest.raises(InputError, match="another config .config.sd_dropout.rate: 0.1 now"):
        train.train_and_evaluate(
            but(config, duration="4 epochs", sd_dropout__rate=0.1), str(folder)
        )


def test_a_schedule_that_differs_in_steps_to_come_only_is_allowed(config, tmp_path):
    config.schedule = {"name": "trapezoid_in_test"}
    longer = experiments.load_experiment(but(config, duration="3 epochs"))
    trained(config, tmp_path / "run", 12)
    train.check_longer(longer, tmp_path / "run", "2 epochs")
    trained(config, tmp_path / "finished", 16)
    with pytest.raises(InputError, match="learning rate of .*'trapezoid_in_test'"):
        train.check_longer(longer, tmp_path / "finished", "2 epochs")


def test_a_former_end_within_a_dispatch_is_said(config, tmp_path, caplog):
    config = but(config, duration="3 steps", steps_per_call=2)
    trained(config, tmp_path / "run", 3)
    caplog.set_level(logging.WARNING, "sdd_jax.train")
    for duration, lines in (("5 steps", 1), ("3 steps", 1)):
        longer = experiments.load_experiment(but(config, duration=duration))
        train.check_longer(longer, tmp_path / "run", "3 steps")
        assert len(caplog.records) == lines
    assert "no end of a dispatch at step 3" in caplog.text


def test_a_run_without_a_checkpoint_may_have_any_longer_duration(config, tmp_path):
    config.schedule = {"name": "cosine"}
    longer = experiments.load_experiment(but(config, duration="3 epochs"))
    train.check_longer(longer, tmp_path, "2 epochs")
    with pytest.raises(
        InputError, match="config.duration: must be at least 4 epochs, the duration"
    ):
        train.check_longer(longer, tmp_path, "4 epochs")
