"""Distribution distillation into a Gaussian distribution of the logits."""

import math

import jax
import jax.numpy as jnp

from sdd_jax.losses._arguments import at_least_float32, check_same_shape, teacher_samples


def logit_gaussian_loss(
    mean: jax.Array,
    log_variance: jax.Array,
    teacher_logits: jax.Array,
    *,
    sample_axis: int | None = None,
) -> jax.Array:
    r"""Computes the negative log-likelihood of a teacher's logits under the student's Gaussian.

    .. math:: \frac12 \sum_c \left[ e^{-s_c} (z_{\sigma, c} - \mu_c)^2 + s_c + \log 2\pi \right]

    :math:`z_\sigma` are the logits of one sample of the teacher. The minimum over samples is at their
    mean and at the logarithm of their variance, class by class; the gradient is unbiased for any number
    of samples. :func:`sdd_jax.logit_gaussian_prediction` gives the mean posterior and the spread. The
    paper adds a loss against the labels, which is left to the caller.

    Args:
      mean: :math:`\mu`, the student's logits ``[..., K]``.
      log_variance: s, ``[..., K]``, from a second head.
      teacher_logits: ``[..., K]``, or with an additional axis for several samples: masks, networks, or
        both. Its gradient is stopped.
      sample_axis: the axis of ``teacher_logits`` over samples, along which the loss is averaged.

    Returns:
      Per-example loss ``[...]`` in nats, the negative logarithm of a density: it can be negative.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> zeros, teacher = jnp.zeros((4, 2)), jnp.ones((7, 4, 2))  # seven samples
      >>> loss = sdd_jax.logit_gaussian_loss(zeros, zeros, teacher, sample_axis=0)
      >>> print(f"{loss[0]:.4f}")  # 1 + log 2 pi
      2.8379

    References:
      Shen, Zhang, Sabuncu and Sun, `Real-Time Uncertainty Estimation in Computer Vision via
      Uncertainty-Aware Distribution Distillation <https://arxiv.org/abs/2007.15857>`_, 2021.
    """
    check_same_shape(mean=mean, log_variance=log_variance)
    samples = at_least_float32(teacher_samples(mean, teacher_logits, sample_axis))
    mean, log_variance = at_least_float32(mean), at_least_float32(log_variance)
    squares = jnp.mean((samples - mean[None]) ** 2, axis=0)
    terms = jnp.exp(-log_variance) * squares + log_variance + math.log(2 * math.pi)
    return jnp.sum(terms, axis=-1) / 2
