"""The interface between a task and the program.

A task reads labels as *decisions*, each a choice between classes: one for each example, for each label
it may have, for each pixel, or for each box. Loss, accuracy, calibration and selective classification
are those of the decisions, so a task has all of them once it says what its decisions are. It adds the
metrics of its field.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import losses
from sdd_jax.errors import InputError
from sdd_jax.registry import Registry


class TaskRegistry(Registry):
    """The registry of the tasks, which gives each class its name."""

    def register(self, name: str) -> Callable[[Callable], Callable]:
        """Decorator: registers a subclass of :class:`Task` as ``name``."""
        add = super().register(name)

        def add_with_name(task: Any) -> Any:
            task.name = name
            return add(task)

        return add_with_name


tasks = TaskRegistry("sdd_jax.tasks", "dataset.task")


class Decisions(NamedTuple):
    """The decisions on N examples.

    Attributes:
      logits: ``[M, C]``.
      labels: int ``[M]`` in [0, C).
      example: int ``[M]`` in [0, N), the example that each belongs to.
      num_examples: N.
    """

    logits: np.ndarray
    labels: np.ndarray
    example: np.ndarray
    num_examples: int

    def by_example(self, values: np.ndarray) -> np.ndarray:
        r"""Sums up what each decision contributes to a mean, by example, for intervals over examples.

        .. math:: \bar v + \frac{N}{M} \sum_{m \in n} (v_m - \bar v)

        The mean over the N examples is that over the M decisions, and its variance is, to first order,
        that of the ratio of two sums over examples, which may have different numbers of decisions.

        Args:
          values: ``[M]``.

        Returns:
          ``[N]``; the mean for an example without a decision.
        """
        if np.array_equal(self.example, np.arange(self.num_examples)):
            return values
        mean, count = values.mean(), self.num_examples
        return mean + np.bincount(self.example, values - mean, count) * (count / len(values))

    def thinned(self, most: int) -> "Decisions":
        """At most ``most`` evenly spaced decisions."""
        stride = max(1, -(-len(self.labels) // most))
        logits, labels, example = (x[::stride] for x in (self.logits, self.labels, self.example))
        return Decisions(logits, labels, example, self.num_examples)


def yes_or_no(logits: Any) -> Any:
    """``[...]`` to ``[..., 2]``: the logits of no and of yes, whose softmax is the sigmoid of yes."""
    xp = jnp if isinstance(logits, jax.Array) else np
    return xp.stack([xp.zeros_like(logits), logits], axis=-1)


class Window(NamedTuple):
    """The part of an image that a view of it shows.

    Attributes:
      top: first row, in pixels of the image. What lies beyond the image is a border.
      left: first column.
      height: number of rows; the view has as many, or is resized.
      width: number of columns.
      mirrored: whether the view is then mirrored left to right.
      of: height and width of the image, if they are known.
    """

    top: Any
    left: Any
    height: Any
    width: Any
    mirrored: Any = False
    of: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)  # equal to another of its class, for compiled functions
class Task(abc.ABC):
    """What the labels of a data set are, and how the outputs of a head decide about them.

    This base class implements one decision between K classes for each element of the labels.

    Attributes:
      name: the name in the registry.
      shape: that of the labels, in words.
      noun: what a decision is about, in the singular; empty: an example.
      figures: ``{metric: its name in tables}`` of the field's own metrics, fractions of 1.
      one_label: whether each example has exactly one label. Most objectives and checks need that.
      moves: whether labels are of places in an image, so that they move when it is cropped or mirrored.
      whole_images: whether a view must show the whole image, where images have any size.
      fixed_decisions: whether the labels alone say which decisions there are, for any outputs.
      dtypes: kinds of NumPy dtypes that labels can have.
      panels: headings of the panels in which a report shows an example, see :meth:`draw`; empty: none.
      caption: what their colours mean.
      divergence: of two outputs of the head, for SD-Dropout: one of the library's divergences.
    """

    name: ClassVar[str]
    shape: ClassVar[str]
    noun: ClassVar[str] = ""
    figures: ClassVar[Mapping[str, str]] = {}
    one_label: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    whole_images: ClassVar[bool] = False
    fixed_decisions: ClassVar[bool] = True
    dtypes: ClassVar[str] = "iu"
    panels: ClassVar[tuple[str, ...]] = ()
    caption: ClassVar[str] = ""
    divergence: ClassVar[Callable[..., jax.Array]] = staticmethod(losses.symmetric_kl)

    # ----------------------------------------------------------------------- labels, on the host

    @abc.abstractmethod
    def fits(self, labels: np.ndarray, input_shape: tuple[int, ...]) -> bool:
        """Whether labels ``[N, ...]`` of inputs ``[N, *input_shape]`` have the shape of this task's."""

    @abc.abstractmethod
    def count_classes(self, labels: np.ndarray) -> int:
        """The number of classes K that training labels show."""

    @abc.abstractmethod
    def validated(
        self, name: str, labels: np.ndarray, num_classes: int, allowed: str
    ) -> np.ndarray:
        """The labels in their final dtype.

        Args:
          name: what messages call them.
          labels: labels that ``fits`` accepts, at least one.
          num_classes: K.
          allowed: the range of the classes, in words.

        Raises:
          InputError: a label that is none.
        """

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """The groups within which examples are held out, int ``[N]``."""
        return np.zeros(len(labels), np.int32)

    def output_shape(
        self, input_shape: tuple[int, ...], label_shape: tuple[int, ...], num_classes: int
    ) -> tuple[int, ...]:
        """Shape of the network's outputs for an input of a shape with labels of another."""
        del input_shape
        return (*label_shape, num_classes)

    def moved(self, labels: Any, window: Window, shape: tuple[int, int]) -> Any:
        """The labels of a view of one image, if they move with it.

        Args:
          labels: those of the image, of NumPy or JAX.
          window: what the view shows.
          shape: height and width of the view in pixels.
        """
        raise NotImplementedError

    # -------------------------------------------------------------------------- in a training step

    def valid(self, labels: Any) -> Any:
        """Which labels count, booleans of the shape of the labels; None: all."""
        del labels
        return None

    def classes(self, outputs: Any) -> Any:
        """Logits ``[B, ..., C]`` of the classes of each decision, from the outputs of the head."""
        return outputs

    def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Cross-entropy of each example ``[B]``: the mean over its decisions, in nats."""
        valid, labels = self.valid(labels), labels.astype(jnp.int32)
        if valid is not None:
            labels = jnp.where(valid, labels, 0)
        return self.per_example(losses.cross_entropy(self.classes(outputs), labels), valid)

    def sd_dropout(
        self, samples: Sequence[jax.Array], labels: jax.Array, **options: Any
    ) -> jax.Array:
        """The term of SD-Dropout of each example ``[B]``: the mean over its decisions.

        Args:
          samples: outputs of the head ``[B, ...]`` on features with different masks.
          labels: ``[B, ...]``.
          **options: of :func:`sdd_jax.losses.sd_dropout_loss_from_logits`.
        """
        return self.mean_divergence(samples, self.valid(labels), **options)

    def mean_divergence(
        self, samples: Sequence[jax.Array], valid: jax.Array | None, **options: Any
    ) -> jax.Array:
        """Mean of SD-Dropout's divergence of ``samples`` where it counts, ``[B]``."""
        where = None if valid is None else valid[..., None]
        values = losses.sd_dropout_loss_from_logits(
            samples, where=where, divergence=self.divergence, **options
        )
        return self.per_example(values, valid)

    def choices(self, outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any, Any]:
        """Decisions to report the accuracy of while training.

        Returns:
          Logits ``[B, ..., C]``, labels ``[B, ...]``, and which of them count; None: all.
        """
        return self.classes(outputs), labels, self.valid(labels)

    def per_example(self, values: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Mean over the decisions of each example that count, ``[B]``; 0 where there are none.

        Every example has the same weight in a batch, however many of its decisions count. So the mean
        over the batch does not depend on how it is divided over devices.
        """
        axes = tuple(range(1, values.ndim))
        if not axes:
            return values
        if valid is None:
            return jnp.mean(values, axis=axes)
        total, count = jax.vmap(losses.sum_and_count)(values, valid)
        return total / jnp.maximum(count, 1)

    # ------------------------------------------------------------------------------ in an evaluation

    def read_out(self, outputs: jax.Array) -> jax.Array:
        """What an evaluation keeps of the outputs of a batch; the rest stays on the device. Traced."""
        return outputs

    def probabilities(self, outputs: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Probabilities in place of the logits z, from z / T; of the shape of the outputs."""
        scaled = outputs / temperature
        shifted = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        return shifted / shifted.sum(axis=-1, keepdims=True)

    def decisions(self, outputs: np.ndarray, labels: np.ndarray) -> Decisions:
        """All decisions that count on N examples."""
        logits = np.asarray(self.classes(outputs))
        example = np.broadcast_to(
            np.arange(len(labels)).reshape(-1, *(1,) * (labels.ndim - 1)), labels.shape
        )
        valid = self.valid(labels)
        if valid is None:
            flat = logits.reshape(-1, logits.shape[-1])
            return Decisions(flat, labels.reshape(-1), example.reshape(-1), len(labels))
        return Decisions(logits[valid], labels[valid], example[valid], len(labels))

    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The field's own metrics of N examples, in the order of ``figures``."""
        del outputs, labels
        return {}

    def contributions(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """What each example contributes to these metrics, ``[N]``, for those whose interval is known.

        As in :func:`sdd_jax.evaluation.metrics.contributions`, their mean is the metric.
        """
        del outputs, labels
        return {}

    def draw(
        self, panels: Sequence[Any], image: np.ndarray, outputs: np.ndarray, labels: np.ndarray
    ) -> None:
        """Draws an example for the report.

        Args:
          panels: an ``Axes`` of matplotlib for each of ``panels``.
          image: uint8 ``[H, W, C]``.
          outputs: its own.
          labels: likewise.
        """
        raise NotImplementedError


def of_labels(name: str, labels: np.ndarray, input_shape: tuple[int, ...]) -> Task:
    """The task of a data set.

    Args:
      name: its name; empty: the one of the package that the labels fit.
      labels: ``[N, ...]``.
      input_shape: shape of an input.

    Raises:
      InputError: no such task, or labels of another shape. The field is ``task``.
    """
    if name and name not in tasks.names():
        raise InputError(f"must be one of {', '.join(tasks.names())}, got {name!r}", field="task")
    package = [
        entry for entry in tasks.names() if tasks.get(entry).__module__.startswith("sdd_jax.")
    ]
    known = {entry: tasks.get(entry)() for entry in ([name] if name else package)}
    for task in known.values():
        if labels.dtype.kind in task.dtypes and task.fits(labels, input_shape):
            return task
    shown = f"{labels.dtype} {list(labels.shape)}"
    of = f"for inputs of shape {list(input_shape)}"
    if name:
        raise InputError(f"{name!r} does not fit labels {shown} {of}", field="task")
    raise InputError(f"no task ({', '.join(known)}) has labels {shown} {of}", field="task")


def figures() -> dict[str, str]:
    """``{metric: its name in tables}`` of the own metrics of all tasks, and of the accuracy."""
    known: list[Any] = [tasks.get(name) for name in tasks.names()]
    own = {metric: label for task in known for metric, label in task.figures.items()}
    return own | {"accuracy": "accuracy"}


def selecting(values: Mapping[str, float], prefix: str) -> str:
    """The metric by which a checkpoint or a setting is selected: the task's own, or the accuracy.

    Args:
      values: a line of the log of a run, which has the metrics of its task.
      prefix: "validation" or "eval".
    """
    return next((name for name in figures() if f"{prefix}/{name}" in values), "accuracy")
