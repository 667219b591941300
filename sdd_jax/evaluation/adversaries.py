"""Attacks by name, for the worst case over several of them.

An attack is a function here, or in a file of ``config.imports``, that returns an :class:`Adversary`. Its
arguments are any of ``apgd_steps`` and ``square_queries``.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdd_jax.evaluation.apgd import apgd, apgd_start, dlr_loss, margin_loss
from sdd_jax.evaluation.square import square
from sdd_jax.losses import cross_entropy
from sdd_jax.registry import Registry

Array = jax.Array
LogitsFn = Callable[[Array], Array]
Bounds = tuple[float, float]

adversaries = Registry("sdd_jax.evaluation.adversaries", "eval.attacks")


@dataclasses.dataclass(frozen=True)
class Adversary:
    """An attack.

    Attributes:
      title: its name in tables.
      attack: ``(logits_fn, images, labels, keys, epsilon, bounds) -> attacked images``, compiled as a
        whole; the result for an image depends on it, its label and its key alone.
      min_classes: smallest number of classes.
    """

    title: str
    attack: Callable[[LogitsFn, Array, Array, Array, Array, Bounds], Array]
    min_classes: int = 2


@adversaries.register("apgd_ce")
def apgd_ce(apgd_steps: int) -> Adversary:
    """Auto-PGD on the cross-entropy."""
    return Adversary("APGD-CE", functools.partial(_apgd, cross_entropy, apgd_steps))


@adversaries.register("apgd_dlr")
def apgd_dlr(apgd_steps: int) -> Adversary:
    """Auto-PGD on the difference-of-logits ratio."""
    return Adversary("APGD-DLR", functools.partial(_apgd, dlr_loss, apgd_steps), min_classes=3)


@adversaries.register("square")
def square_search(square_queries: int) -> Adversary:
    """Square on the margin between the label's logit and the largest other one."""

    def attack(logits_fn, images, labels, keys, epsilon, bounds):
        def loss_fn(x):
            return margin_loss(logits_fn(x), labels)

        return square(loss_fn, images, keys, epsilon, queries=square_queries, bounds=bounds)

    return Adversary("Square", attack)


def _apgd(loss, steps, logits_fn, images, labels, keys, epsilon, bounds):
    def objective(x):
        logits = logits_fn(x)
        return loss(logits, labels), jnp.argmax(logits, axis=-1) != labels

    start = apgd_start(images, keys, epsilon, bounds=bounds)
    return apgd(objective, images, start, epsilon, steps=steps, bounds=bounds)
