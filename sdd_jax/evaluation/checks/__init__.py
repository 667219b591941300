"""Checks by name. A check is a file here that registers a function.

The function takes an :class:`sdd_jax.evaluation.Evaluation` and returns ``{metric: float}``.
"""

from sdd_jax.registry import Registry

checks = Registry("sdd_jax.evaluation.checks", "--checks")
