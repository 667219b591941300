"""Durations, schedules and the optimizer, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.errors import InputError
from sdd_jax.training import durations
from sdd_jax.training.optimizer import sgd
from sdd_jax.training.schedules import schedules


def build(total_steps=40, **options):
    return schedules.build(
        options,
        learning_rate=0.1,
        total_steps=total_steps,
        to_steps=lambda option, d: durations.steps(f"config.schedule.{option}", d, 10, at_least=0),
    )


def test_durations_are_steps_or_epochs():
    assert durations.steps("f", "7 steps", 10) == 7
    assert durations.steps("f", "1 step", 10) == 1
    assert durations.steps("f", "2 epochs", 10) == 20
    assert durations.steps("f", "0.5 epochs", 10) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "7",
        "7 days",
        "-1 steps",
        "1.5 steps",
        "0 steps",
        "0.01 epochs",
        "2147483648 steps",
        "9" * 400 + " epochs",
    ],
)
def test_other_durations_are_refused_with_field_and_value(wrong):
    with pytest.raises(InputError, match=f"config.duration: must be .*got {wrong!r}"):
        durations.steps("config.duration", wrong, 10)


def test_step_schedule_multiplies_at_each_milestone():
    schedule = build(name="step", milestones=("1 epochs", "25 steps"), factor=0.1)
    values = [float(schedule(i)) for i in range(40)]
    np.testing.assert_allclose(values, [0.1] * 10 + [0.01] * 15 + [0.001] * 15, rtol=1e-6)


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


def test_milestones_out_of_order_are_refused():
    with pytest.raises(InputError, match="config.schedule.milestones: must increase"):
        build(name="step", milestones=("2 epochs", "1 epochs"))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_momentum_with_coupled_weight_decay(nesterov):
    def rate(count):
        return jnp.where(count < 2, 0.1, 0.01)

    optimizer = sgd({"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01}, rate)
    params = jnp.array([1.0, -2.0])
    opt_state = optimizer.init(params)
    expected, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for i in range(4):
        gradient = np.array([0.3, -0.1]) * (i + 1)
        updates, opt_state = optimizer.update(jnp.asarray(gradient, jnp.float32), opt_state, params)
        params = params + updates
        decayed = gradient + 0.01 * expected
        velocity = 0.9 * velocity + decayed
        direction = decayed + 0.9 * velocity if nesterov else velocity
        expected = expected - (0.1 if i < 2 else 0.01) * direction
        np.testing.assert_allclose(params, expected, rtol=1e-5)
