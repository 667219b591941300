"""Divergences between two softened posteriors."""

import math
import numbers

import jax
import jax.numpy as jnp

from sdd_jax.losses._precision import at_least_float32

GRADIENTS = ("both", "forward", "reverse")


def kl_divergence(
    target_logits: jax.Array,
    prediction_logits: jax.Array,
    *,
    temperature: float = 1.0,
    gradient: str = "both",
    axis: int = -1,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence between two softened posteriors.

    .. math:: \mathrm{KL}(p \| q) = \sum_c p_c (\log p_c - \log q_c), \qquad
              p = \mathrm{softmax}(z_p / T), \quad q = \mathrm{softmax}(z_q / T)

    No factor :math:`T^2`. Computed from two log-softmaxes, so it and its gradients stay finite however
    far apart the logits are.

    Args:
      target_logits: ``[..., K]``, giving the target p.
      prediction_logits: ``[..., K]``, giving the prediction q.
      temperature: T > 0.
      gradient: "forward" stops the gradient at the target, "reverse" at the prediction, "both" at
        neither. The value is the same.
      axis: the axis of the classes.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example divergence ``[...]`` in nats.

    Raises:
      ValueError: temperature not positive, or an unknown gradient.
    """
    if isinstance(temperature, numbers.Real) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be greater than 0 and finite, got {temperature}")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
    target_logits = at_least_float32(target_logits)
    prediction_logits = at_least_float32(prediction_logits)
    if gradient == "forward":
        target_logits = jax.lax.stop_gradient(target_logits)
    elif gradient == "reverse":
        prediction_logits = jax.lax.stop_gradient(prediction_logits)
    log_p = _log_posterior(target_logits, temperature, axis, where)
    log_q = _log_posterior(prediction_logits, temperature, axis, where)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=axis, where=where)


def symmetric_kl(
    logits_u: jax.Array,
    logits_v: jax.Array,
    *,
    temperature: float = 1.0,
    gradient: str = "both",
    axis: int = -1,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Sum of the two Kullback-Leibler divergences between two softened posteriors.

    .. math:: \mathrm{KL}(p_u \| p_v) + \mathrm{KL}(p_v \| p_u), \qquad
              p = \mathrm{softmax}(z / T)

    The two directions are summed, not halved, and there is no factor :math:`T^2`.

    Args:
      logits_u: ``[..., K]``.
      logits_v: ``[..., K]``.
      temperature: T > 0.
      gradient: "both", through both arguments of both divergences (the authors' default); "forward",
        where the target of each is stopped (the authors' "detach"); "reverse", where the prediction
        of each is stopped. The value is the same; the gradients of "forward" and "reverse" add up to
        that of "both".
      axis: the axis of the classes.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example divergence ``[...]`` in nats.

    Raises:
      ValueError: temperature not positive, or an unknown gradient.

    References:
      Lee et al., `Self-Knowledge Distillation via Dropout <https://arxiv.org/abs/2208.05642>`_, 2022:
      the loss of section 3.
    """
    options = {"temperature": temperature, "gradient": gradient, "axis": axis, "where": where}
    return kl_divergence(logits_u, logits_v, **options) + kl_divergence(
        logits_v, logits_u, **options
    )


def entropy(logits: jax.Array, *, axis: int = -1) -> jax.Array:
    r"""Entropy of ``softmax(logits)``.

    .. math:: -\sum_c p_c \log p_c

    Args:
      logits: ``[..., K]``.
      axis: the axis of the classes.

    Returns:
      ``[...]``, in nats, between 0 and log K.
    """
    log_p = jax.nn.log_softmax(at_least_float32(logits), axis=axis)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=axis)


def _log_posterior(logits, temperature, axis, where):
    """log softmax(logits / T); zero, not minus infinity, at classes that do not take part."""
    if where is None:
        return jax.nn.log_softmax(logits / temperature, axis=axis)
    logits = jnp.where(where, logits, 0.0)
    return jnp.where(where, jax.nn.log_softmax(logits / temperature, axis=axis, where=where), 0.0)
