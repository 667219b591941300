"""Learning-rate schedules. A schedule is a file here that registers a function.

The function takes ``learning_rate``, ``total_steps`` and ``to_steps(option, duration)``, and returns an
optax schedule.
"""

from sdd_jax.registry import Registry

schedules = Registry("sdd_jax.training.schedules", "config.schedule")
