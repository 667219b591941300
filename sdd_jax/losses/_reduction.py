"""The mean of losses at locations, of which some are padding."""

import jax
import jax.numpy as jnp

from sdd_jax.losses._arguments import at_least_float32, check_same_shape


def sum_and_count(losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Computes the weighted sum of losses and the sum of the weights, the two parts of a mean.

    .. math:: \sum_i w_i \ell_i, \qquad \sum_i w_i

    Their ratio is the mean over the locations that count. Where devices, or the steps of an accumulated
    gradient, have different counts, the mean of their means is another number: add up sums and counts
    before the division. Inside ``pmap`` or ``shard_map``, differentiate the ratio of
    ``jax.lax.psum(sum_and_count(losses, weights), axis_name)``, and take the ``pmean`` of the gradients.

    Args:
      losses: ``[B, ...]``. A loss whose weight is zero is ignored, even if it is nan.
      weights: the same shape: a mask, boolean or of integers, or weights of at least 0.

    Returns:
      ``(total, count)``, two scalars. ``count`` is 0 if nothing counts.

    Raises:
      ValueError: shapes that differ.
      TypeError: losses not floating-point.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> losses, mask = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])
      >>> total, count = sdd_jax.sum_and_count(losses, mask)
      >>> print(total / count)
      2.0
    """
    check_same_shape(losses=losses, weights=weights)
    losses = at_least_float32(losses)
    weights = jnp.asarray(weights).astype(losses.dtype)
    total = jnp.sum(weights * jnp.where(weights != 0, losses, 0.0))
    return total, jnp.sum(weights)
