"""Checks and conversions of the losses' arguments."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.dropout import known_number

HeadFn = Callable[[jax.Array], jax.Array]

GRADIENTS = ("both", "forward", "reverse")


def at_least_float32(x: jax.Array) -> jax.Array:
    """Converts half precision to float32; float32 and float64 stay as they are."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"logits and features must be floating-point, got {x.dtype}")
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def check_temperature(temperature: float | jax.Array) -> None:
    """Checks that the temperature is a scalar, positive and finite; traced values pass.

    Raises:
      TypeError: not a number.
      ValueError: not a scalar, not positive or not finite.
    """
    known = known_number("temperature", temperature)
    if known is not None and not 0 < known < math.inf:
        raise ValueError(f"temperature must be greater than 0 and finite, got {temperature}")


def check_fraction(name: str, value: float | jax.Array) -> None:
    """Checks that an argument is a scalar in [0, 1]; traced values pass.

    Raises:
      TypeError: not a number.
      ValueError: not a scalar, or outside [0, 1].
    """
    known = known_number(name, value)
    if known is not None and not 0 <= known <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_same_shape(**arrays: jax.Array) -> None:
    """Raises ValueError, with the names, unless all arrays have the same shape."""
    shapes = [jnp.shape(x) for x in arrays.values()]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"{', '.join(arrays)} must have the same shape, got {', '.join(map(str, shapes))}"
        )


def check_samples(logits: Sequence[jax.Array]) -> None:
    """Raises ValueError unless there are two or more arrays of logits, all of the same shape."""
    if len(logits) < 2:
        raise ValueError(f"num_samples must be at least 2, got {len(logits)}")
    if not isinstance(logits, jax.Array):  # a stacked array
        check_same_shape(**{f"logits[{i}]": z for i, z in enumerate(logits)})


def teacher_samples(
    student_logits: jax.Array, teacher_logits: jax.Array, sample_axis: int | None
) -> jax.Array:
    """Brings the logits of a teacher to the shape ``[S, ..., K]``; their gradient is stopped.

    Args:
      student_logits: ``[..., K]``.
      teacher_logits: ``[..., K]``, or with an additional axis for S samples.
      sample_axis: that axis; None for a single sample.

    Raises:
      ValueError: shapes that do not fit.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    shape = teacher_logits.shape
    if sample_axis is None:
        samples = teacher_logits[None]
    elif -len(shape) <= sample_axis < len(shape) and sample_axis % len(shape) != len(shape) - 1:
        samples = jnp.moveaxis(teacher_logits, sample_axis, 0)
    else:
        raise ValueError(
            f"sample_axis must be an axis of the teacher's logits {shape} other than the last, got "
            f"{sample_axis}"
        )
    if student_logits.shape != samples.shape[1:]:
        raise ValueError(
            f"student_logits must have the shape {samples.shape[1:]} of the teacher's, got "
            f"{student_logits.shape}"
        )
    return samples


def check_labels(logits: jax.Array, labels: jax.Array) -> None:
    """Checks that there is one integer label for each row of logits.

    Raises:
      TypeError: labels not integers.
      ValueError: labels not of the shape of the logits without the classes.
    """
    dtype = getattr(labels, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"labels must be an array of integers, got {dtype or type(labels).__name__}"
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of logits without the classes, {logits.shape[:-1]}, got "
            f"{labels.shape}"
        )


def nan_unless_classes(losses: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Replaces the losses of labels outside [0, K) by nan: indexing would wrap a label of -1."""
    if jnp.iinfo(labels.dtype).bits < 32:
        labels = labels.astype(np.int32)  # which can number all classes
    return jnp.where((labels >= 0) & (labels < num_classes), losses, jnp.nan)


def logits_of_head(head_fn: HeadFn, features: jax.Array) -> jax.Array:
    """Calls a head and checks that it returns one row of logits for each example.

    Args:
      head_fn: features ``[N, ..., D]`` to logits ``[N, ..., K]``.
      features: its argument.

    Raises:
      TypeError: the head returns something else than an array, such as a tuple.
      ValueError: the head returns another number of examples.
    """
    logits = head_fn(features)
    if not isinstance(logits, jax.Array | np.ndarray):
        raise TypeError(
            f"head_fn must return logits [N, ..., K], an array, got {type(logits).__name__}"
        )
    batch = features.shape[: features.ndim > 1]
    if logits.shape[: len(batch)] != batch or logits.ndim <= len(batch):
        raise ValueError(
            f"head_fn must return logits [N, ..., K] for features [N, ..., D], got {logits.shape} "
            f"for {features.shape}"
        )
    return logits


def check_gradient(gradient: str) -> None:
    """Raises ValueError unless ``gradient`` is one of ``GRADIENTS``."""
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")


def stop_gradients(
    target: jax.Array, prediction: jax.Array, gradient: str
) -> tuple[jax.Array, jax.Array]:
    """Stops the gradient at the target ("forward"), the prediction ("reverse") or neither."""
    if gradient == "forward":
        target = jax.lax.stop_gradient(target)
    elif gradient == "reverse":
        prediction = jax.lax.stop_gradient(prediction)
    return target, prediction
