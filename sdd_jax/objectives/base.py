"""What an objective is to the training step.

An objective turns a batch into weighted terms, each a vector with one value per example. It does so
through ``forward``, which runs the network, and returns what it saw, so that another objective can be
laid on top of it (``with_sd_dropout``): methods compose, no class per combination. What it needs beside
the network (pairs of images, a second network, memory of earlier predictions) it declares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.registry import Registry

objectives = Registry("sdd_jax.objectives", "config.objective")


class Clock(NamedTuple):
    """Where in the run a step is.

    Attributes:
      step: int32 scalar, the number of completed steps.
      steps_per_epoch: of the data engine.
      total_steps: of the run.
    """

    step: jax.Array
    steps_per_epoch: int
    total_steps: int

    @property
    def progress(self) -> jax.Array:
        """Share of the run that is completed, in [0, 1)."""
        return self.step.astype(jnp.float32) / self.total_steps

    @property
    def epochs_begun(self) -> jax.Array:
        """Share of the run's epochs that have begun, in (0, 1]: t / epochs for t = 1, 2, ..."""
        epoch = self.step // self.steps_per_epoch + 1
        share = epoch.astype(jnp.float32) * self.steps_per_epoch / self.total_steps
        return jnp.minimum(share, 1.0)


class Batch(NamedTuple):
    """A batch on one device, augmented and normalised.

    Attributes:
      views: one array of images ``[B, H, W, C]`` for each view that the objective's sampler draws.
      labels: ``[B]`` int32, of the first view.
      index: ``[B]`` int32, each example's place in the training set.
      position: ``[B]`` int32, each example's place in the global batch.
      clock: where in the run this step is.
      constants: the objective's own ``constants``, on the device.
      memory: the objective's memory, all of it.
      axis_name: the mapped axis over which the batch is divided; None if it is not.
    """

    views: tuple[jax.Array, ...]
    labels: jax.Array
    index: jax.Array
    position: jax.Array
    clock: Clock
    constants: Any = None
    memory: Any = None
    axis_name: str | None = None


class View(NamedTuple):
    """What the network made of some images.

    Attributes:
      features: ``[B, D]``, penultimate, before any dropout of the network's own on them.
      logits: ``[B, K]``, of the head on these features, after that dropout.
      head: the last layer with its parameters, applicable again.
      batch_stats: the batch statistics after this forward pass.
      stages: what the network's stages gave, in order; empty for a network without stages.
      resume: ``(x, stage) -> logits``: the rest of the network on ``x``, in place of what stage number
        ``stage`` (from 1) gave; it leaves no batch statistics behind.
    """

    features: jax.Array
    logits: jax.Array
    head: Callable[[jax.Array], jax.Array]
    batch_stats: Any
    stages: Sequence[jax.Array] = ()
    resume: Callable[[jax.Array, int], jax.Array] | None = None


class Forward(Protocol):
    """Runs the network in training mode."""

    def __call__(
        self, images: jax.Array, *, batch_stats: Any = None, dropout: str | None = "dropout"
    ) -> View:
        """The view of ``images``; a second pass hands on the ``batch_stats`` of the first.

        ``dropout`` names the stream of random numbers for the network's own dropout; None for none.
        """
        ...

    def auxiliary(self, *arguments: jax.Array) -> tuple[Any, Any]:
        """What the objective's auxiliary network makes of its arguments, and its batch statistics."""
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
      other_view: another pass over the same images, if there was one: masks drawn in pairs then fall
        on the two in turn.
      auxiliary_stats: batch statistics of the auxiliary network after all its passes.
      remember: per-example arrays ``[B, ...]`` for the memory.
    """

    view: View
    terms: dict[str, Term]
    batch_stats: Any
    metrics: dict[str, jax.Array] = field(default_factory=dict)
    other_view: View | None = None
    auxiliary_stats: Any = None
    remember: Any = None


@dataclass(frozen=True)
class Auxiliary:
    """A second network that is trained along, and forgotten at test time.

    Attributes:
      module: linen; called with the arguments, ``train`` and ``dropout_keys``.
      arguments: arrays of a batch of one, to initialise it with.
    """

    module: nn.Module
    arguments: tuple[jax.Array, ...]


@dataclass(frozen=True)
class Memory:
    """What an objective carries from step to step; a part of the checkpoint, the same on all devices.

    Attributes:
      create: ``(labels [N], num_classes, batch_size) -> memory``, a tree of arrays.
      update: ``(memory, index [B], position [B], remembered) -> memory``; it sees the global batch, on
        every device.
    """

    create: Callable[[Any, int, int], Any]
    update: Callable[[Any, jax.Array, jax.Array, Any], Any]


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
      auxiliary: a second network.
      memory: of earlier steps.
    """

    loss: Callable[[Forward, Batch, Callable[[str], jax.Array]], Output]
    sampler: str = "uniform"
    uses_labels: bool = True
    constants: Any = None
    initialise: Callable[[jax.Array, Any], Any] | None = None
    references: Callable[[jax.Array, jax.Array], dict[str, float]] | None = None
    auxiliary: Auxiliary | None = None
    memory: Memory | None = None
