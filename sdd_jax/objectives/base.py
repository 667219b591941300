"""Objectives: the interface between a method and the training step.

An objective turns a batch into weighted terms, each with one value per example. It runs the network
through ``forward`` and returns the passes with the terms, so that another objective can build on them
(``with_sd_dropout``): methods compose, without a class per combination. It declares whatever else it
needs: pairs of images, a second network, a memory of earlier predictions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.registry import Registry
from sdd_jax.tasks import Classification, Task

objectives = Registry("sdd_jax.objectives", "objective")


class Clock(NamedTuple):
    """The position of a step in its run.

    Attributes:
      step: int32 scalar, the number of completed steps.
      steps_per_epoch: number of steps per epoch.
      total_steps: number of steps of the run.
    """

    step: jax.Array
    steps_per_epoch: int
    total_steps: int

    @property
    def progress(self) -> jax.Array:
        """Fraction of the run's steps that are completed, in [0, 1)."""
        return self.step.astype(jnp.float32) / self.total_steps

    @property
    def epochs_begun(self) -> jax.Array:
        """Fraction of the run's epochs that have begun, in (0, 1]: t / epochs for t = 1, 2, ..."""
        epoch = self.step // self.steps_per_epoch + 1
        fraction = epoch.astype(jnp.float32) * self.steps_per_epoch / self.total_steps
        return jnp.minimum(fraction, 1.0)


@dataclass(frozen=True)
class Batch:
    """A batch on one device, augmented and normalised.

    Attributes:
      views: one array of images ``[B, H, W, C]``, or of other inputs, for each view that the
        objective's sampler draws.
      labels: ``[B]`` int32, of the first view; or as the task has them.
      index: ``[B]`` int32, the examples' indices in the training set.
      position: ``[B]`` int32, the examples' indices in the global batch.
      clock: the position of this step in the run.
      constants: the objective's ``constants``, on the device.
      memory: the objective's memory before this step.
      axis_name: the mapped axis over which the batch is sharded, or None.
      task: what the labels are; it has the loss of the logits.
    """

    views: tuple[jax.Array, ...]
    labels: jax.Array
    index: jax.Array
    position: jax.Array
    clock: Clock
    constants: Any = None
    memory: Any = None
    axis_name: str | None = None
    task: Task = field(default_factory=Classification)


def _no_second_head(features: jax.Array) -> jax.Array:
    raise ValueError("the network has no second head")


def _no_stages(x: jax.Array, stage: int) -> jax.Array:
    raise ValueError(f"cannot resume after stage {stage}: the network has no stages")


class View(NamedTuple):
    """One forward pass over a batch of images.

    Attributes:
      features: ``[B, ..., D]``, penultimate, before the network's own dropout on them.
      logits: ``[B, ..., K]``, of the head on these features, after that dropout.
      head: ``[N, D] -> [N, K]``, the last layer with its parameters.
      batch_stats: the batch statistics after this pass.
      stages: outputs of the network's stages, in order; empty for a network without stages.
      resume: ``(x, stage) -> logits [B, K]``: runs the rest of the network on ``x``, in place of the
        output of stage number ``stage`` (from 1). Its batch statistics are discarded.
      second_head: ``[N, D] -> [N, ...]``, of a network that predicts a spread.
    """

    features: jax.Array
    logits: jax.Array
    head: Callable[[jax.Array], jax.Array]
    batch_stats: Any
    stages: Sequence[jax.Array] = ()
    resume: Callable[[jax.Array, int], jax.Array] = _no_stages
    second_head: Callable[[jax.Array], jax.Array] = _no_second_head


class Forward(Protocol):
    """Runs the network in training mode."""

    def __call__(
        self, images: jax.Array, *, batch_stats: Any = None, dropout: str | None = "dropout"
    ) -> View:
        """Runs one pass over ``images`` ``[B, H, W, C]``.

        Args:
          images: the images.
          batch_stats: the batch statistics to update: those of an earlier pass, or of the state if None.
          dropout: the PRNG stream of the network's own dropout; None for no dropout.
        """
        ...

    def joint(self, batches: Sequence[jax.Array], *, dropout: Sequence[str]) -> list[View]:
        """Runs one pass over the concatenation of several batches and returns a view of each.

        Batch norm normalises by the statistics of all batches together, and updates the running
        statistics once.

        Args:
          batches: arrays of images ``[B, H, W, C]``.
          dropout: for each batch, the PRNG stream of the network's own dropout.
        """
        ...

    def auxiliary(self, *arguments: jax.Array) -> tuple[Any, Any]:
        """Runs the objective's auxiliary network; returns its output and its batch statistics."""
        ...


class Term(NamedTuple):
    """One summand of the loss: values ``[B]``, which are logged unweighted, and their weight."""

    values: jax.Array
    weight: float | jax.Array = 1.0


@dataclass(frozen=True)
class Output:
    """The result of an objective on one batch.

    Attributes:
      view: the pass whose logits are this step's predictions.
      terms: name to term; the loss is the sum of their weighted means.
      batch_stats: the batch statistics after all passes.
      metrics: name to values ``[B]`` that are logged but not minimised.
      other_view: a second pass over the same images, if there is one; SD-Dropout then masks the two
        alternately.
      auxiliary_stats: batch statistics of the auxiliary network after all its passes.
      remember: arrays ``[B, ...]`` for the memory.
    """

    view: View
    terms: dict[str, Term]
    batch_stats: Any
    metrics: dict[str, jax.Array] = field(default_factory=dict)
    other_view: View | None = None
    auxiliary_stats: Any = field(default_factory=dict)
    remember: Any = None


@dataclass(frozen=True)
class Auxiliary:
    """A second network, trained with the first and not used after training.

    Attributes:
      module: linen module; called with the arguments, ``train`` and ``dropout_keys``.
      arguments: arrays for a batch of one, for initialisation.
    """

    module: nn.Module
    arguments: tuple[jax.Array, ...]


@dataclass(frozen=True)
class Memory:
    """Arrays that an objective carries from step to step; saved in checkpoints, equal on all devices.

    Attributes:
      create: ``(labels [N], num_classes, batch_size) -> memory``, a tree of arrays.
      update: ``(memory, index [B], position [B], remembered) -> memory``; every device calls it with the
        global batch.
    """

    create: Callable[[Any, int, int], Any]
    update: Callable[[Any, jax.Array, jax.Array, Any], Any]


@dataclass(frozen=True)
class Objective:
    """A pure loss function, and its requirements on the rest of the program.

    Attributes:
      loss: ``(forward, batch, keys) -> Output``; ``keys(stream)`` returns one PRNG key per example
        ``[B]``, the same on any number of devices.
      sampler: name of the batch sampler, see ``sdd_jax.data.samplers``.
      batch_multiple: the global batch size must be a multiple of this.
      uses_labels: False if the loss ignores labels; the inputs may then be unlabelled.
      one_label: whether the loss needs a task with one label for each example; otherwise it is that of
        the batch's task.
      constants: ``(images [N, H, W, C], key) -> arrays``: host arrays needed on the device at every
        step, e.g. a frozen teacher, from some prepared training inputs and a PRNG key.
      spread: the option ``spread`` of the network that it trains.
      initialise: ``(key, variables) -> variables``, changes the network's initial values.
      auxiliary: a second network.
      memory: arrays carried from step to step.
    """

    loss: Callable[[Forward, Batch, Callable[[str], jax.Array]], Output]
    sampler: str = "uniform"
    batch_multiple: int = 1
    uses_labels: bool = True
    one_label: bool = True
    spread: str = "none"
    constants: Callable[[jax.Array, jax.Array], Any] | None = None
    initialise: Callable[[jax.Array, Any], Any] | None = None
    auxiliary: Auxiliary | None = None
    memory: Memory | None = None
