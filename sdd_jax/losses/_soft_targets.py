"""Losses against labels softened by a past or a virtual teacher."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdd_jax.losses._arguments import (
    at_least_float32,
    check_fraction,
    check_labels,
    check_same_shape,
    nan_unless_classes,
)
from sdd_jax.losses._classification import cross_entropy
from sdd_jax.losses._divergence import kl_divergence


def ps_kd_loss(
    logits: jax.Array, labels: jax.Array, past_probs: jax.Array, *, alpha: float | jax.Array
) -> jax.Array:
    r"""Computes the PS-KD loss, the cross-entropy against labels mixed with past predictions.

    .. math:: H\left((1 - \alpha)\, y + \alpha\, \mathrm{sg}(p_{\mathrm{past}}),\; p\right) =
              -(1 - \alpha) \log p_y - \alpha \sum_c p_{\mathrm{past}, c} \log p_c

    It replaces the cross-entropy. As there, a label outside [0, K) gives nan.

    Args:
      logits: ``[..., K]``, unnormalised.
      labels: integers ``[...]`` in [0, K).
      past_probs: probabilities ``[..., K]`` of the network one epoch ago; its gradient is stopped.
      alpha: weight of the past predictions, in [0, 1]; may be traced. In the paper it grows linearly
        from 0 to 0.8 over the epochs.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: alpha outside [0, 1], or shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> logits, past_probs = jnp.zeros((2, 4)), jnp.full((2, 4), 0.25)
      >>> print(sdd_jax.ps_kd_loss(logits, jnp.array([0, 3]), past_probs, alpha=0.5))  # log 4
      [1.3862944 1.3862944]

    References:
      Kim et al., `Self-Knowledge Distillation with Progressive Refinement of Targets
      <https://arxiv.org/abs/2006.12000>`_, 2021.
    """
    check_fraction("alpha", alpha)
    check_same_shape(logits=logits, past_probs=past_probs)
    logits = at_least_float32(logits)
    past_probs = jax.lax.stop_gradient(at_least_float32(past_probs)).astype(logits.dtype)
    alpha = jnp.asarray(alpha, logits.dtype)
    against_past = optax.losses.safe_softmax_cross_entropy(logits, past_probs)  # 0 log 0 is 0
    return (1 - alpha) * cross_entropy(logits, labels) + alpha * against_past


def tf_kd_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    correct: float = 0.99,
    temperature: float | jax.Array = 20.0,
) -> jax.Array:
    r"""Computes the teacher-free KD loss, in which a virtual, always correct teacher is softened.

    .. math:: \mathrm{KL}(p^d_\tau \| p_\tau), \qquad
              p^d_c = \begin{cases} a & c = y \\ (1 - a) / (K - 1) & c \neq y \end{cases}

    where the index tau denotes the softmax of logits divided by tau; the teacher's logits are
    :math:`\log p^d`. The paper's loss is ``(1 - alpha)`` times the cross-entropy plus ``alpha`` times
    this. As in the paper there is no factor :math:`\tau^2`; include it in the weight to match the scale
    of the cross-entropy's gradients.

    The authors' code computes another loss: the teacher is the softmax of :math:`p^d / \tau`, the
    student is not softened, and the divergence is averaged over the K classes as well as over the
    examples, then scaled by a multiplier.

    As in :func:`sdd_jax.cross_entropy`, a label outside [0, K) gives nan.

    Args:
      logits: ``[..., K]``, unnormalised.
      labels: integers ``[...]`` in [0, K).
      correct: a, the teacher's probability of the label before softening, in [1/K, 1).
      temperature: tau > 0, 20 or more in the paper.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: correct outside [1/K, 1), temperature not positive, or shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> loss = sdd_jax.tf_kd_loss(jnp.zeros(4), jnp.array(0), temperature=1.0)
      >>> print(f"{loss:.4f}")
      1.3193

    References:
      Yuan et al., `Revisiting Knowledge Distillation via Label Smoothing Regularization
      <https://arxiv.org/abs/1909.11723>`_, 2020, section 4, equations 8 and 9.
    """
    num_classes = logits.shape[-1]
    if not 1 / num_classes <= correct < 1:
        raise ValueError(f"correct must be in [1/{num_classes}, 1), got {correct}")
    logits = at_least_float32(logits)
    check_labels(logits, labels)
    # log p^d up to a constant, chosen so that it is zero at the classes other than the label.
    log_odds = math.log(correct * (num_classes - 1) / (1 - correct))
    # int32, because one_hot numbers the classes in the dtype of the labels.
    one_hot = jax.nn.one_hot(labels.astype(np.int32), num_classes, dtype=logits.dtype)
    losses = kl_divergence(log_odds * one_hot, logits, temperature=temperature, gradient="forward")
    return nan_unless_classes(losses, labels, num_classes)
