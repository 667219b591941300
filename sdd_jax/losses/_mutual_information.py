"""The second head of a student that learns the mutual information beside the mean of an ensemble."""

import math

import jax

from sdd_jax.losses._arguments import at_least_float32, teacher_samples
from sdd_jax.losses._dropout_distillation import dropout_distillation_loss


def mutual_information_loss(
    information_logits: jax.Array,
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    sample_axis: int | None = None,
) -> jax.Array:
    r"""Computes the loss of a head that predicts the value of the Dropout-Distillation loss.

    .. math:: \log\left(1 + e^r\right) - r\, \frac{\mathrm{KL}(f_\sigma(x) \,\|\, q(x))}{\log K}

    Its minimum over r is at :math:`\log K\, \mathrm{sigmoid}(r) = \mathbb{E}_\sigma \mathrm{KL}(f_\sigma
    \,\|\, q) = I(y; \sigma \mid x) + \mathrm{KL}(\bar f \,\|\, q)`: the minimum of
    :func:`sdd_jax.dropout_distillation_loss` at the input x is the mutual information, which never
    exceeds log K, and a second head can read it off. The loss is linear in the divergence, so its
    gradient is unbiased with a single sample, whereas the mutual information of a few samples is biased
    low.

    Args:
      information_logits: r, ``[...]``, from a second head.
      student_logits: logits of q, ``[..., K]``. Their gradient is stopped.
      teacher_logits: logits of f, ``[..., K]``, or with an additional axis for several samples: masks,
        networks, or both. Their gradient is stopped.
      sample_axis: the axis of ``teacher_logits`` over samples, along which the loss is averaged.

    Returns:
      Per-example loss ``[...]``.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> student, teacher = jnp.zeros((4, 3)), jnp.ones((7, 4, 3))  # seven samples, which agree
      >>> print(sdd_jax.mutual_information_loss(jnp.full(4, -9.0), student, teacher, sample_axis=0))
      [0.0001234 0.0001234 0.0001234 0.0001234]

    References:
      The minimum: Rota Bulo et al., `Dropout Distillation
      <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016, theorem 1. The head is this project's.
    """
    if information_logits.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"information_logits must have the shape of student_logits without the classes, "
            f"{student_logits.shape[:-1]}, got {information_logits.shape}"
        )
    samples = teacher_samples(student_logits, teacher_logits, sample_axis)
    divergence = jax.lax.stop_gradient(
        dropout_distillation_loss(student_logits, samples, sample_axis=0)
    )
    r = at_least_float32(information_logits)
    share = divergence.astype(r.dtype) / math.log(student_logits.shape[-1])
    return jax.nn.softplus(r) - r * share
