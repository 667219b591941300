"""Losses against labels that a teacher, past or virtual, softens."""

import math
import numbers

import jax
import jax.numpy as jnp
import optax

from sdd_jax.losses._classification import cross_entropy
from sdd_jax.losses._divergence import kl_divergence
from sdd_jax.losses._precision import at_least_float32


def ps_kd_loss(
    logits: jax.Array, labels: jax.Array, past_probs: jax.Array, *, alpha: float | jax.Array
) -> jax.Array:
    r"""PS-KD: cross-entropy against labels mixed with the network's own past predictions.

    .. math:: H\left((1 - \alpha)\, y + \alpha\, \mathrm{sg}(p_{\mathrm{past}}),\; p\right) =
              -(1 - \alpha) \log p_y - \alpha \sum_c p_{\mathrm{past}, c} \log p_c

    It takes the place of the cross-entropy.

    Args:
      logits: ``[..., K]``, unnormalised.
      labels: integers ``[...]`` in [0, K).
      past_probs: probabilities ``[..., K]``, of the network an epoch ago; its gradient is stopped.
      alpha: trust in the past predictions, in [0, 1]; may be traced. The paper lets it grow linearly
        from 0 to 0.8 over the epochs.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: alpha outside [0, 1].

    References:
      Kim et al., `Self-Knowledge Distillation with Progressive Refinement of Targets
      <https://arxiv.org/abs/2006.12000>`_, 2021.
    """
    if isinstance(alpha, numbers.Real) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    logits = at_least_float32(logits)
    past_probs = jax.lax.stop_gradient(at_least_float32(past_probs))
    alpha = jnp.asarray(alpha, logits.dtype)
    from_past = optax.safe_softmax_cross_entropy(logits, past_probs)  # 0 log 0 is 0
    return (1 - alpha) * cross_entropy(logits, labels) + alpha * from_past


def tf_kd_loss(
    logits: jax.Array, labels: jax.Array, *, correct: float = 0.99, temperature: float = 20.0
) -> jax.Array:
    r"""Teacher-free distillation: a virtual teacher that is always right, and softened.

    .. math:: \mathrm{KL}(p^d_\tau \| p_\tau), \qquad
              p^d_c = \begin{cases} a & c = y \\ (1 - a) / (K - 1) & c \neq y \end{cases}

    where the index tau stands for a softmax of logits divided by tau; the teacher's logits are
    :math:`\log p^d`. The paper's loss is ``(1 - alpha)`` of the cross-entropy plus ``alpha`` of this.
    As in the paper there is no factor :math:`\tau^2`: put it into the weight to have gradients of the
    size of the cross-entropy's. (Its authors' code computes another loss: the softmax of
    :math:`p^d / \tau` teaches, and the student is not softened.)

    Args:
      logits: ``[..., K]``, unnormalised.
      labels: integers ``[...]`` in [0, K).
      correct: a, the teacher's probability of the label before it is softened, in [1/K, 1).
      temperature: tau > 0, 20 or more in the paper.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: correct outside [1/K, 1), or temperature not positive.

    References:
      Yuan et al., `Revisiting Knowledge Distillation via Label Smoothing Regularization
      <https://arxiv.org/abs/1909.11723>`_, 2020, section 4, equations 8 and 9.
    """
    num_classes = logits.shape[-1]
    if not 1 / num_classes <= correct < 1:
        raise ValueError(f"correct must be in [1/{num_classes}, 1), got {correct}")
    logits = at_least_float32(logits)
    # int32, because one_hot numbers the classes in the dtype of the labels.
    labels = jnp.asarray(labels, jnp.int32)
    # Logits are free up to a constant: log p^d, less its value at the classes that are not the label.
    log_odds = math.log(correct * (num_classes - 1) / (1 - correct))
    teacher_logits = log_odds * jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    return kl_divergence(teacher_logits, logits, temperature=temperature, gradient="forward")
