r"""The Square attack: random search for squares of pixels, without gradients.

References:
  Andriushchenko et al., `Square Attack: a query-efficient black-box adversarial attack via random search
  <https://arxiv.org/abs/1912.00049>`_, 2020.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Array = jax.Array

FRACTION = 0.8  # of the pixels, in the first squares
# Queries of 10,000 that halve the fraction.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class _State(NamedTuple):
    best: Array
    best_loss: Array


def square(
    loss_fn: Callable[[Array], Array],
    images: ArrayLike,
    keys: Array,
    epsilon: ArrayLike,
    *,
    queries: int = 5000,
    bounds: tuple[float, float] = (0, 1),
) -> Array:
    r"""Attacks images with Square, L-infinity.

    The search starts at vertical stripes of :math:`x \pm \epsilon`. A query moves one square of pixels,
    each channel by :math:`+2 \epsilon` or :math:`-2 \epsilon`, within the ball, and is kept if the loss
    is larger. The squares shrink by a schedule for 10,000 queries, scaled to ``queries``. An image with
    a positive loss is left as it is.

    Squares and signs differ from image to image, and a square may lie at any edge. In the authors' code,
    the images of a batch share them, and no square reaches the last row or column.

    Args:
      loss_fn: images ``[B, H, W, C]`` to losses ``[B]``, positive where the image is misclassified, as
        :func:`sdd_jax.evaluation.apgd.margin_loss`; each a function of its own image alone.
      images: floating-point ``[B, H, W, C]``, within ``bounds``.
      keys: one PRNG key per image, ``[B]``.
      epsilon: radius of the ball.
      queries: number of queries after the first; static under ``jax.jit``.
      bounds: range of the images.

    Returns:
      The attacked images ``[B, H, W, C]``.

    References:
      Andriushchenko et al., 2020, algorithms 1 and 2.
    """
    images = jnp.asarray(images)
    _, height, width, channels = images.shape

    def signs(key, shape):
        return epsilon * jax.random.rademacher(key, shape, images.dtype)

    def square_of(key, side):
        row_key, column_key, sign_key = jax.random.split(key, 3)
        inside = (
            _interval(row_key, side, height)[:, None] & _interval(column_key, side, width)[None]
        )
        return jnp.where(inside[..., None], 2 * signs(sign_key, (1, 1, channels)), 0)

    def step(state: _State, settings) -> tuple[_State, None]:
        query, side = settings
        moves = jax.vmap(lambda key: square_of(jax.random.fold_in(key, query), side))(keys)
        inside = jnp.clip(state.best + moves, images - epsilon, images + epsilon)
        new = jnp.clip(inside, *bounds)
        losses = loss_fn(new)
        is_better = (losses > state.best_loss) & (state.best_loss <= 0)
        best = jnp.where(is_better[:, None, None, None], new, state.best)
        return _State(best, jnp.where(is_better, losses, state.best_loss)), None

    stripes = jax.vmap(lambda key: signs(key, (1, width, channels)))(keys)
    start = jnp.clip(images + stripes, *bounds)
    schedule = np.arange(1, queries + 1, dtype=np.int32), _sides(queries, height, width)
    state, _ = jax.lax.scan(step, _State(start, loss_fn(start)), schedule)
    return state.best


def _interval(key: Array, side: Array, size: int) -> Array:
    """A random interval of ``side`` of the indices up to ``size``, as a mask ``[size]``."""
    start = jax.random.randint(key, (), 0, size - side + 1)
    index = jnp.arange(size)
    return (index >= start) & (index < start + side)


def _sides(queries: int, height: int, width: int) -> np.ndarray:
    """The side of the square of each query, int32 ``[queries]``."""
    scaled = np.arange(queries) * 10_000 // max(queries, 1)
    fraction = FRACTION / 2 ** np.searchsorted(HALVINGS, scaled)
    sides = np.maximum(np.round(np.sqrt(fraction * height * width)), 1)
    return np.minimum(sides, min(height, width)).astype(np.int32)
