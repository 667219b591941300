"""Predictions of students that keep the spread of an ensemble, with one pass in place of many."""

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, entr

from sdd_jax.losses._arguments import at_least_float32, check_same_shape
from sdd_jax.mc_dropout import Prediction, mc_dropout

LARGE = 32.0  # from here on, three terms of the asymptotic series are exact to 1e-10


def dirichlet_prediction(logits: jax.Array) -> Prediction:
    r"""Computes the prediction of a Dirichlet distribution over posteriors.

    .. math:: \pi \sim \mathrm{Dir}(e^z), \qquad \bar\pi = \mathrm{softmax}(z), \qquad
              I(y; \pi) = \sum_c \bar\pi_c\, g(e^{z_c}) - g\big(\textstyle\sum_c e^{z_c}\big), \qquad
              g(a) = \psi(a + 1) - \log a

    The usual form, :math:`H[\bar\pi] - \mathbb{E} H[\pi]`, cancels in float32 where the student is sure;
    this one does not.

    Args:
      logits: z, ``[..., K]``, of a student of :func:`sdd_jax.dirichlet_nll_loss` or
        :func:`sdd_jax.dirichlet_proxy_loss`.

    Returns:
      The prediction, as that of :func:`sdd_jax.mc_dropout`, in float32 or float64.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> prediction = sdd_jax.dirichlet_prediction(jnp.zeros((1, 2)))
      >>> print(f"{prediction.mutual_information[0]:.4f}")  # log 2 - 1/2
      0.1931

    References:
      Malinin, Mlodozeniec and Gales, `Ensemble Distribution Distillation
      <https://arxiv.org/abs/1905.00076>`_, 2020, equation 8.
    """
    z = at_least_float32(logits)
    probs = jax.nn.softmax(z)
    total = _log_digamma_gap(jax.nn.logsumexp(z, axis=-1))
    information = jnp.sum(jnp.where(probs > 0, probs * _log_digamma_gap(z), 0), axis=-1) - total
    return _prediction(probs, information)


def _log_digamma_gap(log_a: jax.Array) -> jax.Array:
    """g(a) = digamma(a + 1) - log(a), without cancellation for large a."""
    a = jnp.exp(jnp.minimum(log_a, 80.0))  # float32 ends at 88
    series = 1 / (2 * a) - 1 / (12 * a**2) + 1 / (120 * a**4)
    return jnp.where(a > LARGE, series, digamma(jnp.minimum(a, LARGE) + 1) - log_a)


def logit_gaussian_prediction(
    mean: jax.Array, log_variance: jax.Array, key: jax.Array, *, num_samples: int = 100
) -> Prediction:
    r"""Computes the prediction of a Gaussian distribution over logits, by sampling.

    .. math:: z \sim N\left(\mu, \mathrm{diag}(e^s)\right), \qquad
              \bar\pi = \mathbb{E}\, \mathrm{softmax}(z), \qquad
              I(y; z) = \mathbb{E}\, \mathrm{KL}(\mathrm{softmax}(z) \,\|\, \bar\pi)

    The samples are those of the logits, which cost no pass through the network. All examples share the
    random numbers.

    Args:
      mean: :math:`\mu`, ``[..., K]``.
      log_variance: s, ``[..., K]``.
      key: a PRNG key.
      num_samples: number of samples, at least 1.

    Returns:
      The prediction, as that of :func:`sdd_jax.mc_dropout`, in float32 or float64.

    Raises:
      ValueError: shapes that do not fit, or ``num_samples`` below 1.

    Example:
      >>> import jax, jax.numpy as jnp, sdd_jax
      >>> zeros = jnp.zeros((4, 3))
      >>> sdd_jax.logit_gaussian_prediction(zeros, zeros, jax.random.key(0)).probs.shape
      (4, 3)

    References:
      Shen, Zhang, Sabuncu and Sun, `Real-Time Uncertainty Estimation in Computer Vision via
      Uncertainty-Aware Distribution Distillation <https://arxiv.org/abs/2007.15857>`_, 2021.
    """
    check_same_shape(mean=mean, log_variance=log_variance)
    mean, deviation = at_least_float32(mean), jnp.exp(at_least_float32(log_variance) / 2)

    def log_probs(key):
        noise = jax.random.normal(key, (1,) * (mean.ndim - 1) + mean.shape[-1:], mean.dtype)
        return jax.nn.log_softmax(mean + deviation * noise)

    @jax.jit
    def sampled(key):
        probs = mc_dropout(log_probs, key, num_samples=num_samples).probs
        log_mean = jnp.log(jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))

        def add(total, key):  # each class adds at least 0: nothing cancels
            z = log_probs(key)
            p = jnp.exp(z)
            return total + jnp.sum(p * (z - log_mean) - p + probs, axis=-1), None

        zeros = jnp.zeros(probs.shape[:-1], probs.dtype)
        total, _ = jax.lax.scan(add, zeros, jax.random.split(key, num_samples))
        return probs, total / num_samples

    return _prediction(*sampled(key))


def two_head_prediction(logits: jax.Array, information_logits: jax.Array) -> Prediction:
    r"""Computes the prediction of a student with a second head for the mutual information.

    .. math:: \bar\pi = \mathrm{softmax}(z), \qquad I = \log K\, \mathrm{sigmoid}(r)

    Args:
      logits: z, ``[..., K]``.
      information_logits: r, ``[...]``, of a student of :func:`sdd_jax.mutual_information_loss`.

    Returns:
      The prediction, as that of :func:`sdd_jax.mc_dropout`, in float32 or float64. Its mutual
      information is at most the entropy.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(sdd_jax.two_head_prediction(jnp.zeros((1, 4)), jnp.zeros(1)).mutual_information)
      [0.6931472]
    """
    z, r = at_least_float32(logits), at_least_float32(information_logits)
    return _prediction(jax.nn.softmax(z), jnp.log(z.shape[-1]).astype(r.dtype) * jax.nn.sigmoid(r))


def _prediction(probs: jax.Array, information: jax.Array) -> Prediction:
    entropy = jnp.sum(entr(probs), axis=-1)
    information = jnp.clip(information, 0, entropy)
    return Prediction(probs, entropy, entropy - information, information)
