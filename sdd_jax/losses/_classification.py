"""Cross-entropies against labels."""

import jax
import jax.numpy as jnp
import optax

from sdd_jax.losses._arguments import (
    at_least_float32,
    check_fraction,
    check_labels,
    nan_unless_classes,
)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    r"""Computes the negative log-likelihood of the labels under ``softmax(logits)``.

    .. math:: -\log p_y

    A label outside [0, K) gives nan, with zero gradient, and cannot train another class. To ignore
    examples, replace their losses by zero with ``jnp.where``.

    Args:
      logits: ``[..., K]``, unnormalised.
      labels: integers ``[...]`` in [0, K).

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: labels not of the shape of the logits without the classes.
      TypeError: logits not floating-point, or labels not integers.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(sdd_jax.cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])))  # log 4
      [1.3862944 1.3862944]
    """
    logits = at_least_float32(logits)
    check_labels(logits, labels)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return nan_unless_classes(losses, labels, logits.shape[-1])


def label_smoothing(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.1) -> jax.Array:
    r"""Computes the cross-entropy against labels mixed with the uniform distribution.

    .. math:: -(1 - \epsilon) \log p_y - \frac{\epsilon}{K} \sum_c \log p_c

    As in :func:`sdd_jax.cross_entropy`, a label outside [0, K) gives nan.

    Args:
      logits: ``[..., K]``, unnormalised.
      labels: integers ``[...]`` in [0, K).
      smoothing: epsilon in [0, 1].

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: smoothing outside [0, 1], or labels not of the shape of the logits without the
        classes.
      TypeError: logits not floating-point, or labels not integers.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> loss = sdd_jax.label_smoothing(jnp.array([2.0, 0.0, 0.0]), jnp.array(0), smoothing=0.3)
      >>> print(f"{loss:.4f}")
      0.6395

    References:
      Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_,
      2016, section 7.
    """
    check_fraction("smoothing", smoothing)
    logits = at_least_float32(logits)
    uniform = jnp.full_like(logits, 1 / logits.shape[-1])
    against_uniform = optax.losses.softmax_cross_entropy(logits, uniform)
    return (1 - smoothing) * cross_entropy(logits, labels) + smoothing * against_uniform
