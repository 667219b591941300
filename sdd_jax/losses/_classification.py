"""Losses against labels."""

import jax
import jax.numpy as jnp
import optax

from sdd_jax.losses._precision import at_least_float32


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    r"""Negative log-likelihood of the labels under ``softmax(logits)``.

    .. math:: -\log p_y

    Args:
      logits: ``[..., K]``, unnormalised.
      labels: integers ``[...]`` in [0, K).

    Returns:
      Per-example loss ``[...]`` in nats.
    """
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), labels)


def label_smoothing(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.1) -> jax.Array:
    r"""Cross-entropy against labels mixed with the uniform distribution.

    .. math:: -(1 - \epsilon) \log p_y - \frac{\epsilon}{K} \sum_c \log p_c

    Args:
      logits: ``[..., K]``, unnormalised.
      labels: integers ``[...]`` in [0, K).
      smoothing: epsilon in [0, 1].

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: smoothing outside [0, 1].

    References:
      Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_,
      2016, section 7.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be in [0, 1], got {smoothing}")
    uniform = -jnp.mean(jax.nn.log_softmax(at_least_float32(logits), axis=-1), axis=-1)
    return (1 - smoothing) * cross_entropy(logits, labels) + smoothing * uniform
