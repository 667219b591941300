"""Durations and schedules, by hand."""

import numpy as np
import pytest

from sdd_jax.errors import InputError
from sdd_jax.training import durations
from sdd_jax.training.schedules import schedules


def build(total_steps=40, **options):
    return schedules.build(
        options,
        learning_rate=0.1,
        total_steps=total_steps,
        to_steps=lambda option, duration: durations.steps(option, duration, 10, at_least=0),
    )


@pytest.mark.parametrize(
    ("duration", "steps"),
    [("7 steps", 7), ("1 step", 1), ("2 epochs", 20), ("0.5 epochs", 5), (" 1 epoch ", 10)],
)
def test_durations_are_steps_or_epochs(duration, steps):
    assert durations.steps("duration", duration, 10) == steps


@pytest.mark.parametrize(
    "duration",
    [
        *("", "7", "7 days", "-1 steps", "1.5 steps", "0 steps", "0.01 epochs"),
        "2147483648 steps",
        "9" * 400 + " epochs",
    ],
)
def test_other_durations_are_refused_with_field_and_value(duration):
    with pytest.raises(InputError, match=f"^log_every: must be .*, got {duration!r}$"):
        durations.steps("log_every", duration, 10)


def test_step_schedule_multiplies_at_each_milestone():
    schedule = build(name="step", milestones=("1 epochs", "25 steps"), factor=0.1)
    rates = [float(schedule(i)) for i in range(40)]
    np.testing.assert_allclose(rates, [0.1] * 10 + [0.01] * 15 + [0.001] * 15, rtol=1e-6)


def test_cosine_schedule_goes_from_the_peak_to_zero():
    schedule = build(name="cosine")
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(41) / 40))
    np.testing.assert_allclose([schedule(i) for i in range(41)], expected, atol=1e-7)


@pytest.mark.parametrize("name", ["cosine", "step"])
def test_warmup_climbs_to_the_schedule_and_leaves_the_rest_alone(name):
    plain, warm = build(name=name), build(name=name, warmup="4 steps")
    np.testing.assert_allclose([warm(i) for i in range(4)], [0, 0.025, 0.05, 0.075], atol=1e-7)
    np.testing.assert_allclose(
        [warm(i) for i in range(4, 40)], [plain(i) for i in range(4, 40)], atol=1e-7
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"milestones": ("2 epochs", "1 epochs")},
            "config.schedule.milestones: must increase, got",
        ),
        (
            {"milestones": ("1 epochs", "10 steps")},
            "config.schedule.milestones: must increase, got",
        ),
        ({"milestones": ("late",)}, "config.schedule.milestones: must be 'N steps' or 'N epochs'"),
        ({"warmup": "1.5 steps"}, "config.schedule.warmup: must be 'N steps' or 'N epochs'"),
        ({"factor": 0.0}, "config.schedule.factor: must be greater than 0, got 0.0"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build(name="step", **options)
