"""The schedules of the papers, and cosine decay; each with an optional linear warm-up."""

from collections.abc import Callable, Sequence

import optax

from sdd_jax.errors import InputError, check
from sdd_jax.training.schedules import schedules


@schedules.register("step")
def step(
    *,
    learning_rate: float,
    to_steps: Callable[[str, str], int],
    milestones: Sequence[str] = (),
    factor: float = 0.1,
    warmup: str = "0 steps",
) -> optax.Schedule:
    """Multiplies the learning rate by ``factor`` at each of the ``milestones`` (durations)."""
    check(factor > 0, "config.schedule.factor", factor, "greater than 0")
    boundaries = [to_steps("milestones", m) for m in milestones]
    if boundaries != sorted(set(boundaries)):
        raise InputError(f"config.schedule.milestones: must increase, got {tuple(milestones)}")
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
    """Half a cosine from the learning rate to zero over the whole run."""
    decay = optax.cosine_decay_schedule(learning_rate, total_steps)
    return _after_warmup(decay, learning_rate, to_steps("warmup", warmup))


def _after_warmup(schedule: optax.Schedule, peak: float, warmup: int) -> optax.Schedule:
    """Climbs linearly to the peak first; the schedule's own clock still starts at step 0."""
    if not warmup:
        return schedule
    climb = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([climb, lambda count: schedule(count + warmup)], [warmup])
