"""Learning-rate schedules, each with an optional linear warm-up."""

from collections.abc import Callable

import jax
import optax

from sdd_jax.errors import InputError
from sdd_jax.options import Positive
from sdd_jax.registry import Registry

schedules = Registry("sdd_jax.training.schedules", "schedule")


@schedules.register("step")
def step(
    *,
    learning_rate: float,
    to_steps: Callable[[str, str], int],
    milestones: tuple[str, ...] = (),
    factor: Positive = 0.1,
    warmup: str = "0 steps",
) -> optax.Schedule:
    """Multiplies the learning rate by ``factor`` at each milestone.

    Args:
      learning_rate: learning rate before the first milestone.
      to_steps: ``(option, duration) -> steps``.
      milestones: increasing durations.
      factor: multiplier at each milestone.
      warmup: duration of the linear warm-up, see :func:`cosine`.

    Raises:
      InputError: milestones that do not increase.
    """
    boundaries = [to_steps("milestones", m) for m in milestones]
    if boundaries != sorted(set(boundaries)):
        raise InputError(f"must increase, got {milestones}", field="milestones")
    decay = optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(boundaries, factor))
    return _after_warmup(decay, learning_rate, to_steps("warmup", warmup))


@schedules.register("cosine")
def cosine(
    *,
    learning_rate: float,
    total_steps: int,
    to_steps: Callable[[str, str], int],
    warmup: str = "0 steps",
) -> optax.Schedule:
    """Decays the learning rate along half a cosine to zero at the end of the run.

    Args:
      learning_rate: peak learning rate.
      total_steps: number of steps of the run.
      to_steps: ``(option, duration) -> steps``.
      warmup: duration of a linear increase from 0 to the peak. The first step has a learning rate of 0
        and changes nothing but the batch statistics. The decay is not shifted: after the warm-up the
        schedule is the same as without it.
    """
    decay = optax.cosine_decay_schedule(learning_rate, total_steps)
    return _after_warmup(decay, learning_rate, to_steps("warmup", warmup))


def _after_warmup(decay: optax.Schedule, peak: float, warmup: int) -> optax.Schedule:
    schedule = decay
    if warmup:
        climb = optax.linear_schedule(0.0, peak, warmup)
        # join_schedules restarts the count of its second schedule.
        schedule = optax.join_schedules([climb, lambda count: decay(count + warmup)], [warmup])

    def promoting(count):
        with jax.numpy_dtype_promotion("standard"):  # optax combines the count with floats
            return schedule(count)

    return promoting
