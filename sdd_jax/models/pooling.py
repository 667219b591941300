"""Pooling over square windows; the gradient of max-pooling is fast on every backend.

That gradient is a select-and-scatter. XLA compiles it well for GPU and TPU; on CPU it takes three times
as long as the gradient of the same maximum written as elementwise maxima of strided slices, and was half
of a small network's training step.
"""

from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sdd_jax.models.backends import per_backend


def max_pool(x: jax.Array, size: int, stride: int, padding: tuple[int, int] = (0, 0)) -> jax.Array:
    """Maxima over square windows.

    Where several elements of a window are its maximum, they share the gradient on CPU, and the first of
    them has it elsewhere; both are subgradients.

    Args:
      x: ``[B, H, W, C]``.
      size: of the windows, in pixels.
      stride: between windows, in pixels.
      padding: rows (and columns) of minus infinity before and after; each less than ``size``.

    Returns:
      ``[B, H', W', C]``, where ``H' = (H + sum(padding) - size) // stride + 1``.
    """

    def windowed(x):
        return nn.max_pool(x, (size, size), (stride, stride), (padding, padding))

    def sliced(x):
        x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=-jnp.inf)
        for axis in (1, 2):
            span = (x.shape[axis] - size) // stride * stride + 1
            x = reduce(
                jnp.maximum,
                [lax.slice_in_dim(x, i, i + span, stride, axis=axis) for i in range(size)],
            )
        return x

    return per_backend(cpu=sliced, default=windowed)(x)


def avg_pool(x: jax.Array, size: int, stride: int, padding: tuple[int, int] = (0, 0)) -> jax.Array:
    """Means over square windows, padding counted as zeros; arguments and shapes as in `max_pool`."""
    return nn.avg_pool(x, (size, size), (stride, stride), (padding, padding))
