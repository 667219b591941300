"""Durations in a config: ``"100 steps"`` or ``"1.5 epochs"``."""

import re

from sdd_jax.errors import InputError, check

LARGEST = 2**31 - 1  # the counter of steps has 32 bits
_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(steps?|epochs?)\s*")


def steps(field: str, duration: str, steps_per_epoch: int, *, at_least: int = 1) -> int:
    """The number of steps that ``duration`` says.

    Raises:
      InputError: not of the form ``N steps`` or ``N epochs``, fewer than ``at_least`` steps, or more
        than can be counted.
    """
    match = _DURATION.fullmatch(duration)
    if not match or ("step" in match[2] and "." in match[1]):
        raise InputError(f"{field}: must be 'N steps' or 'N epochs', got {duration!r}")
    number = float(match[1]) * (1 if "step" in match[2] else steps_per_epoch)
    check(number <= LARGEST, field, duration, f"at most {LARGEST} steps")
    if round(number) < at_least:
        raise InputError(f"{field}: must be at least {at_least} steps, got {duration!r}")
    return round(number)
