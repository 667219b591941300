"""What an objective is to the training step.

An objective turns a batch into weighted terms, each a vector with one value per example. It does so
through ``forward``, which runs the network, and returns what it saw, so that another objective can be
laid on top of it (``with_sd_dropout``): methods compose, no class per combination.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax

from sdd_jax.registry import Registry

objectives = Registry("sdd_jax.objectives", "config.objective")


class Batch(NamedTuple):
    """A batch on one device, augmented and normalised.

    Attributes:
      views: one array of images ``[B, H, W, C]`` for each view that the objective's sampler draws.
      labels: ``[B]`` int32.
      index: ``[B]`` int32, each example's place in the training set.
      constants: the objective's own ``constants``, on the device.
    """

    views: tuple[jax.Array, ...]
    labels: jax.Array
    index: jax.Array
    constants: Any = None


class View(NamedTuple):
    """What the network made of some images.

    Attributes:
      features: ``[B, D]``, penultimate, before any dropout of the network's own on them.
      logits: ``[B, K]``, of the head on these features, after that dropout.
      head: the last layer with its parameters, applicable again.
      batch_stats: the batch statistics after this forward pass.
    """

    features: jax.Array
    logits: jax.Array
    head: Callable[[jax.Array], jax.Array]
    batch_stats: Any


class Forward(Protocol):
    """Runs the network in training mode."""

    def __call__(self, images: jax.Array, *, batch_stats: Any = None, dropout: bool = True) -> View:
        """The view of ``images``; a second pass hands on the ``batch_stats`` of the first.

        ``dropout`` is the network's own.
        """
        ...


class Term(NamedTuple):
    """One summand of the loss: per-example values ``[B]``, logged unweighted, and their weight."""

    values: jax.Array
    weight: float | jax.Array = 1.0


@dataclass(frozen=True)
class Output:
    """What an objective hands back to the training step.

    Attributes:
      view: the pass whose logits are this step's predictions.
      terms: name to term; the loss is the sum of their weighted means.
      batch_stats: the batch statistics after all passes.
      metrics: name to per-example values ``[B]`` that are logged and not minimised.
    """

    view: View
    terms: dict[str, Term]
    batch_stats: Any
    metrics: dict[str, jax.Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """A pure function for the training step, and what it needs from the rest of the program.

    Attributes:
      loss: ``(forward, batch, keys) -> Output``; ``keys(stream)`` gives one PRNG key per example
        ``[B]``, the same on any number of devices.
      sampler: the name in ``sdd_jax.data.samplers`` that draws its batches.
      uses_labels: whether it looks at labels; only then may the inputs be unlabelled.
      constants: host arrays that it needs on the device at every step, e.g. a frozen teacher.
      initialise: ``(key, variables) -> variables``, changes the network's initial values.
      references: ``(images, key) -> figures`` that hold for the whole run, from some training inputs
        ``[B, H, W, C]``; logged beside the terms.
    """

    loss: Callable[[Forward, Batch, Callable[[str], jax.Array]], Output]
    sampler: str = "uniform"
    uses_labels: bool = True
    constants: Any = None
    initialise: Callable[[jax.Array, Any], Any] | None = None
    references: Callable[[jax.Array, jax.Array], dict[str, float]] | None = None
