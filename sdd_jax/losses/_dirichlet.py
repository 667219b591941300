"""Distribution distillation into a Dirichlet distribution, whose log-concentrations are the logits."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, polygamma

from sdd_jax.losses._arguments import (
    at_least_float32,
    check_fraction,
    check_temperature,
    teacher_samples,
)

# Bounds of the log-concentrations. Beyond, float32 overflows; there is no gradient.
LARGEST_LOG = 60.0
LARGE = 32.0  # from here on, three terms of the asymptotic series are exact to 1e-9


def _concentrations(logits, temperature: float | jax.Array = 1.0):
    return jnp.exp(jnp.clip(logits / temperature, -LARGEST_LOG, LARGEST_LOG))


def dirichlet_nll_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    smoothing: float | jax.Array = 1e-3,
    sample_axis: int | None = None,
) -> jax.Array:
    r"""Computes the negative log-likelihood of a teacher's posteriors under the student's Dirichlet.

    .. math:: -T^2 \log \mathrm{Dir}\left(\pi_\sigma;\, e^{z/T}\right) = T^2 \Big[
              \sum_c \log \Gamma(\alpha_c) - \log \Gamma(\alpha_0)
              - \sum_c (\alpha_c - 1) \log \pi_{\sigma, c} \Big], \qquad \alpha = e^{z/T}

    z are the student's logits, :math:`\alpha_0 = \sum_c \alpha_c`, and :math:`\pi_\sigma` is the
    softened posterior of one sample of the teacher. At T = 1 the mean of the distribution is softmax(z),
    so that the student is evaluated as any other network; :func:`sdd_jax.dirichlet_prediction` gives its
    spread. The loss is linear in :math:`\log \pi_\sigma`: its gradient is unbiased for any number of
    samples.

    Args:
      student_logits: z, ``[..., K]``.
      teacher_logits: ``[..., K]``, or with an additional axis for several samples: masks, networks, or
        both. Its gradient is stopped.
      temperature: T > 0; may be traced. The authors start above 1 and anneal to 1, since the posteriors
        of a trained teacher lie near the corners of the simplex, where the likelihood has no common
        support with a student at its start.
      smoothing: weight of the uniform distribution that is mixed into :math:`\pi_\sigma`, in [0, 1]; the
        authors' 1e-3.
      sample_axis: the axis of ``teacher_logits`` over samples, along which the loss is averaged.

    Returns:
      Per-example loss ``[...]`` in nats, the negative logarithm of a density: it can be negative.

    Raises:
      ValueError: an option outside its range, or shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> student, teacher = jnp.zeros((4, 3)), jnp.ones((7, 4, 3))  # seven samples
      >>> loss = sdd_jax.dirichlet_nll_loss(student, teacher, sample_axis=0)
      >>> print(f"{loss[0]:.4f}")  # -log Gamma(3)
      -0.6931

    References:
      Malinin, Mlodozeniec and Gales, `Ensemble Distribution Distillation
      <https://arxiv.org/abs/1905.00076>`_, 2020, section 4.
    """
    check_temperature(temperature)
    check_fraction("smoothing", smoothing)
    student = at_least_float32(student_logits)
    samples = at_least_float32(teacher_samples(student_logits, teacher_logits, sample_axis))
    temperature = jnp.asarray(temperature, student.dtype)
    probs = jax.nn.softmax(samples / temperature)
    smoothed = probs + jnp.asarray(smoothing, probs.dtype) * (1 / probs.shape[-1] - probs)
    tiny = jnp.finfo(probs.dtype).tiny
    mean_log = jnp.mean(jnp.log(jnp.maximum(smoothed, tiny)), axis=0)
    alpha = _concentrations(student, temperature)
    log_normaliser = jnp.sum(gammaln(alpha), axis=-1) - gammaln(jnp.sum(alpha, axis=-1))
    return temperature**2 * (log_normaliser - jnp.sum((alpha - 1) * mean_log, axis=-1))


def dirichlet_proxy_loss(
    student_logits: jax.Array, teacher_logits: jax.Array, *, sample_axis: int
) -> jax.Array:
    r"""Computes the reverse KL divergence of a student's Dirichlet from a proxy of the teacher's.

    .. math:: \frac{1}{b}
              \mathrm{KL}\left(\mathrm{Dir}(1 + e^z) \,\|\, \mathrm{Dir}(1 + b \bar\pi)\right),
              \qquad b = \frac{K - 1}
              {2 \sum_c \bar\pi_c \left(\log \bar\pi_c - \overline{\log \pi_c}\right)}

    z are the student's logits, bars are means over the samples of the teacher, and b is the precision of
    the Dirichlet with mean :math:`\bar\pi` that fits them best, by Stirling's approximation. The minimum
    is 0, at :math:`e^z = b \bar\pi`. So softmax(z) is the mean of the ensemble, as in
    :func:`sdd_jax.dropout_distillation_loss`, and the sum of :math:`e^z` is the precision, which
    :func:`sdd_jax.dirichlet_prediction` reads as a spread. The 1 that is added to both sides keeps the
    gradient of rare classes bounded; unlike the authors, who predict with :math:`1 + e^z`, we leave it
    out of the prediction, whose mean it would draw towards the uniform distribution.

    It trains where :func:`sdd_jax.dirichlet_nll_loss` does not: with many classes, and without an
    annealed temperature. The estimate of b needs several samples, and is biased high by few of them.

    Args:
      student_logits: z, ``[..., K]``.
      teacher_logits: ``[..., K]`` with an additional axis for two or more samples: masks, networks, or
        both. Its gradient is stopped.
      sample_axis: the axis of ``teacher_logits`` over samples.

    Returns:
      Per-example loss ``[...]`` in nats per unit of precision.

    Raises:
      ValueError: shapes that do not fit, or less than two samples.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> teacher = jnp.array([[[0.0, 2.0]], [[2.0, 0.0]]])  # two samples for one example
      >>> b = 0.5 / (jnp.log(0.5) - jnp.mean(jnp.log(jnp.array([0.1192029, 0.8807971]))))
      >>> student = jnp.log(0.5 * b) * jnp.ones((1, 2))
      >>> print(abs(sdd_jax.dirichlet_proxy_loss(student, teacher, sample_axis=0)) < 1e-5)
      [ True]

    References:
      Ryabinin, Malinin and Gales, `Scaling Ensemble Distribution Distillation to Many Classes with Proxy
      Targets <https://arxiv.org/abs/2105.06987>`_, 2021, section 4.
    """
    student = at_least_float32(student_logits)
    samples = at_least_float32(teacher_samples(student_logits, teacher_logits, sample_axis))
    if len(samples) < 2:
        raise ValueError(f"teacher_logits must hold at least 2 samples, got {len(samples)}")
    log_probs = jax.nn.log_softmax(samples)
    mean = jnp.mean(jnp.exp(log_probs), axis=0)
    log_mean = jax.nn.logsumexp(log_probs, axis=0) - np.log(len(samples)).astype(student.dtype)
    spread = jnp.sum(mean * (log_mean - jnp.mean(log_probs, axis=0)), axis=-1, keepdims=True)
    # 0 for samples that are equal; by rounding, also below.
    precision = (mean.shape[-1] - 1) / (2 * jnp.maximum(spread, jnp.finfo(spread.dtype).eps))
    return _scaled_divergence(student, mean, precision)


@jax.custom_jvp
def _scaled_divergence(z, mean, precision):
    """KL(Dir(1 + e^z) || Dir(1 + b mean)) / b, ``[...]``; ``precision`` b is ``[..., 1]``."""
    alpha, beta, alpha_0, beta_0 = _sides(z, mean, precision)
    cross = jnp.sum((alpha - beta) * (digamma(alpha) - digamma(alpha_0)), axis=-1)
    log_normalisers = jnp.sum(gammaln(beta) - gammaln(alpha), axis=-1)
    log_normalisers += jnp.squeeze(gammaln(alpha_0) - gammaln(beta_0), axis=-1)
    return (log_normalisers + cross) / jnp.squeeze(precision, axis=-1)


@_scaled_divergence.defjvp
def _scaled_divergence_jvp(primals, tangents):
    # The derivative (a_c - b_c) trigamma(a_c) - (a_0 - b_0) trigamma(a_0) is a difference of numbers
    # near 1, multiplied by e^z: in float32, automatic differentiation gives noise from z = 15 on.
    z, mean, precision = primals
    alpha, beta, alpha_0, beta_0 = _sides(z, mean, precision)
    gap, gap_0 = _trigamma_gap(alpha), _trigamma_gap(alpha_0)
    difference = gap - gap_0 - beta / alpha * (1 + gap) + beta_0 / alpha_0 * (1 + gap_0)
    gradient = (alpha - 1) / precision * difference
    return _scaled_divergence(*primals), jnp.sum(gradient * tangents[0], axis=-1)


def _sides(z, mean, precision):
    """The concentrations of student and proxy, and their sums ``[..., 1]``."""
    alpha, beta = 1 + _concentrations(z), 1 + mean * precision
    return alpha, beta, *(jnp.sum(x, axis=-1, keepdims=True) for x in (alpha, beta))


def _trigamma_gap(a: jax.Array) -> jax.Array:
    """a trigamma(a) - 1, without cancellation for large a; a is at least 1."""
    series = 1 / (2 * a) + 1 / (6 * a**2) - 1 / (30 * a**4)
    small = jnp.minimum(a, LARGE)
    return jnp.where(a > LARGE, series, small * polygamma(1, small) - 1)
