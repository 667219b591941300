"""Warnings about settings that are allowed but have no effect."""

import logging

import pytest

from sdd_jax.experiment import load_experiment
from sdd_jax.training.schedules import schedules


@pytest.fixture
def warnings_of(tiny_config, caplog):
    """``warnings_of(**sections)``: the messages that the tiny config with other values logs."""

    def warnings_of(*, duration="4 epochs", **sections):
        tiny_config.duration = duration
        for name, values in sections.items():
            tiny_config[name].update(values)
        with caplog.at_level(logging.WARNING, "sdd_jax"):
            load_experiment(tiny_config)
        return [record.getMessage() for record in caplog.records]

    return warnings_of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.999999}, "config.sd_dropout.rate: keeps 1.6e-05 of 16 features on average;"),
        ({"rate": 0.95}, "config.sd_dropout.rate: keeps 0.8 of 16 features on average;"),
        (
            {"random_rate": (0.9, 0.999)},
            "config.sd_dropout.random_rate: keeps 0.808 of 16 features",
        ),
    ],
)
def test_a_rate_that_keeps_less_than_one_feature_is_a_warning(warnings_of, options, message):
    (warning,) = warnings_of(sd_dropout=options)
    assert warning.startswith(message)
    assert "\n" not in warning


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0.9375},  # one of 16
        {"random_rate": (0.0, 0.999)},
        {"rate": 0.999999, "weight": 0.0},
    ],
)
def test_a_rate_that_keeps_a_feature_or_has_no_weight_is_none(warnings_of, options):
    assert warnings_of(sd_dropout=options) == []


def test_the_width_of_features_says_nothing_about_masks_inside_the_network(
    tiny_config, warnings_of
):
    tiny_config.model = {"name": "resnet18", "width": 1}
    assert warnings_of(sd_dropout={"rate": 0.999, "position": 1}) == []


@pytest.mark.parametrize(
    ("duration", "warmup"), [("4 steps", "100 epochs"), ("4 steps", "4 steps")]
)
def test_a_warmup_as_long_as_the_run_is_a_warning(warnings_of, duration, warmup):
    assert warnings_of(duration=duration, schedule={"warmup": warmup}) == [
        f"config.schedule.warmup: {warmup} is not shorter than the run of 4 steps; "
        "the learning rate never reaches its peak"
    ]


def test_a_shorter_warmup_is_none(warnings_of):
    assert warnings_of(duration="4 steps", schedule={"warmup": "3 steps"}) == []


def test_the_warmup_of_another_schedule_may_be_anything(tiny_config, warnings_of):
    @schedules.register("test_with_a_warmup_of_its_own")
    def build(*, learning_rate, warmup: int = 100_000):
        return lambda count: learning_rate

    tiny_config.schedule = schedules.options("test_with_a_warmup_of_its_own")
    assert warnings_of() == []


@pytest.mark.parametrize("milestones", [(), ("1 epochs",)])
def test_a_step_schedule_without_milestones_is_a_warning(tiny_config, warnings_of, milestones):
    tiny_config.schedule = schedules.options("step", milestones=milestones)
    expected = "config.schedule.milestones: empty; the learning rate never decays"
    assert warnings_of() == ([] if milestones else [expected])
