"""Durations as strings: ``"100 steps"`` or ``"1.5 epochs"``."""

import re

from sdd_jax.errors import InputError, require

LARGEST = 2**31 - 1  # the counter of steps has 32 bits
_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(steps?|epochs?)\s*")


def steps(field: str, duration: str, steps_per_epoch: int, *, at_least: int = 1) -> int:
    """Converts a duration to a number of steps.

    Args:
      field: name of the input, for messages.
      duration: ``"N steps"`` with a whole N, or ``"X epochs"``, rounded to steps.
      steps_per_epoch: number of steps per epoch.
      at_least: the smallest number of steps allowed.

    Raises:
      InputError: another form, fewer than ``at_least`` steps, or more than 32 bits can count.
    """
    match = _DURATION.fullmatch(duration)
    if not match or ("step" in match[2] and "." in match[1]):
        raise InputError(f"must be 'N steps' or 'N epochs', got {duration!r}", field=field)
    number = float(match[1]) * (1 if "step" in match[2] else steps_per_epoch)
    require(number <= LARGEST, field, duration, f"at most {LARGEST} steps")
    require(round(number) >= at_least, field, duration, f"at least {at_least} steps")
    return round(number)
