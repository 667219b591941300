"""Cross-entropies against labels."""

import jax
import jax.numpy as jnp
import optax

from sdd_jax.dropout import known_number
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


def generalised_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, q: float | jax.Array = 0.7
) -> jax.Array:
    r"""Computes the generalised cross-entropy, which learns less from labels that seem wrong.

    .. math:: \frac{1 - p_y^q}{q}

    Its gradient is that of the cross-entropy times :math:`p_y^q`. It tends to the cross-entropy as q
    tends to 0, and is :math:`1 - p_y`, half the mean absolute error of the paper, for q = 1. The
    paper's truncated variant, constant for labels of small probability, is another loss.

    As in :func:`sdd_jax.cross_entropy`, a label outside [0, K) gives nan.

    Args:
      logits: ``[..., K]``, unnormalised.
      labels: integers ``[...]`` in [0, K), some of which may be wrong.
      q: in (0, 1]; may be traced. A larger q is more robust to wrong labels and slower to train.

    Returns:
      Per-example loss ``[...]`` in [0, 1/q].

    Raises:
      ValueError: q outside (0, 1], or labels not of the shape of the logits without the classes.
      TypeError: logits not floating-point, or labels not integers.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> logits, labels = jnp.log(jnp.array([[0.64, 0.36], [0.25, 0.75]])), jnp.array([0, 0])
      >>> print(sdd_jax.generalised_cross_entropy(logits, labels, q=0.5))
      [0.4 1. ]

    References:
      Zhang & Sabuncu, `Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
      Labels <https://arxiv.org/abs/1805.07836>`_, 2018, equation 6.
    """
    known = known_number("q", q)
    if known is not None and not 0 < known <= 1:
        raise ValueError(f"q must be in (0, 1], got {q}")
    losses = cross_entropy(logits, labels)
    # Any smaller q gives the same loss, the cross-entropy, or underflows.
    q = jnp.maximum(jnp.asarray(q, losses.dtype), jnp.finfo(losses.dtype).eps ** 2)
    return -jnp.expm1(-q * losses) / q  # accurate where p_y^q is near 1
