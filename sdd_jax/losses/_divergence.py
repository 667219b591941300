"""Divergences between softened posteriors."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from sdd_jax.losses._arguments import (
    at_least_float32,
    check_gradient,
    check_same_shape,
    check_samples,
    check_temperature,
    stop_gradients,
)


def kl_divergence(
    target_logits: jax.Array,
    prediction_logits: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    gradient: str = "both",
    axis: int = -1,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the Kullback-Leibler divergence of two softened posteriors.

    .. math:: \mathrm{KL}(p \| q) = \sum_c p_c (\log p_c - \log q_c), \qquad
              p = \mathrm{softmax}(z_p / T), \quad q = \mathrm{softmax}(z_q / T)

    There is no factor :math:`T^2`. The value and its gradients are finite however far apart finite
    logits are. A logit of minus infinity excludes a class: :math:`0 \log 0` is 0 where the target
    excludes it, and the divergence is infinite where the prediction alone does.

    Args:
      target_logits: ``[..., K]``, of the target p.
      prediction_logits: the same shape, of the prediction q.
      temperature: T > 0.
      gradient: "forward" stops the gradient at the target, "reverse" at the prediction, "both" at
        neither. The value is the same.
      axis: the axis of the classes.
      where: boolean, broadcast to the logits; classes that are False are ignored. Locations without any
        (``mask[..., None]``) have no divergence and no gradient, whatever their logits.

    Returns:
      Per-example divergence ``[...]`` in nats.

    Raises:
      ValueError: shapes that differ, temperature not positive, or an unknown gradient.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> p, q = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([0.25, 0.25, 0.5]))
      >>> print(f"{sdd_jax.kl_divergence(p, q):.4f}")
      0.1733
    """
    check_same_shape(target_logits=target_logits, prediction_logits=prediction_logits)
    check_temperature(temperature)
    check_gradient(gradient)
    log_p = _log_posterior(target_logits, temperature, axis, where)
    log_q = _log_posterior(prediction_logits, temperature, axis, where)
    return _kl_of_log_posteriors(log_p, log_q, gradient, axis)


def symmetric_kl(
    logits_u: jax.Array,
    logits_v: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    gradient: str = "both",
    axis: int = -1,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the sum of the two Kullback-Leibler divergences of two softened posteriors.

    .. math:: \mathrm{KL}(p_u \| p_v) + \mathrm{KL}(p_v \| p_u), \qquad
              p = \mathrm{softmax}(z / T)

    The two directions are summed, not halved, and there is no factor :math:`T^2`.

    Args:
      logits_u: ``[..., K]``.
      logits_v: the same shape.
      temperature: T > 0.
      gradient: "both", through both arguments of both divergences (the authors' default); "forward",
        which stops the target of each divergence (the authors' "detach"); or "reverse", which stops
        the prediction of each. The value is the same; the gradients of "forward" and "reverse" add up
        to that of "both".
      axis: the axis of the classes.
      where: boolean, broadcast to the logits; classes that are False are ignored. Locations without any
        (``mask[..., None]``) have no divergence and no gradient, whatever their logits.

    Returns:
      Per-example divergence ``[...]`` in nats.

    Raises:
      ValueError: shapes that differ, temperature not positive, or an unknown gradient.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> p, q = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([0.25, 0.25, 0.5]))
      >>> print(f"{sdd_jax.symmetric_kl(p, q):.4f}")
      0.3466

    References:
      Lee et al., `Self-Knowledge Distillation via Dropout <https://arxiv.org/abs/2208.05642>`_, 2022,
      section 3.
    """
    check_same_shape(logits_u=logits_u, logits_v=logits_v)

    def kl(target, prediction):
        return kl_divergence(
            target, prediction, temperature=temperature, gradient=gradient, axis=axis, where=where
        )

    return kl(logits_u, logits_v) + kl(logits_v, logits_u)


def pairwise_symmetric_kl(
    logits: Sequence[jax.Array],
    *,
    temperature: float | jax.Array = 1.0,
    gradient: str = "both",
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the mean of :func:`sdd_jax.symmetric_kl` over all pairs of several posteriors.

    .. math:: \frac{2}{n (n - 1)} \sum_{i < j}
              \left[\mathrm{KL}(p_i \| p_j) + \mathrm{KL}(p_j \| p_i)\right]

    Args:
      logits: n >= 2 arrays ``[..., K]``, of the same shape.
      temperature: T > 0.
      gradient: "both", "forward" or "reverse", see :func:`sdd_jax.symmetric_kl`.
      where: boolean, broadcast to the logits; classes that are False are ignored. Locations without any
        (``mask[..., None]``) have no divergence and no gradient, whatever their logits.

    Returns:
      Per-example divergence ``[...]`` in nats.

    Raises:
      ValueError: fewer than two posteriors, shapes that differ, temperature not positive, or an unknown
        gradient.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> logits = [jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])]
      >>> print(f"{sdd_jax.pairwise_symmetric_kl(logits):.4f}")
      0.2215
    """
    check_samples(logits)
    n = len(logits)
    if n == 2:  # spares the stacked copy
        return symmetric_kl(*logits, temperature=temperature, gradient=gradient, where=where)
    check_temperature(temperature)
    check_gradient(gradient)
    # The sum over j of KL(p_i || p_j) is n times the divergence from the mean of all log p_j, so the
    # cost grows with n and not with the number of pairs.
    log_p = _log_posterior(jnp.stack(logits), temperature, -1, where)
    log_mean = jnp.mean(log_p, axis=0, keepdims=True)
    return 2 / (n - 1) * jnp.sum(_kl_of_log_posteriors(log_p, log_mean, gradient, -1), axis=0)


def entropy(logits: jax.Array, *, axis: int = -1) -> jax.Array:
    r"""Computes the entropy of ``softmax(logits)``.

    .. math:: -\sum_c p_c \log p_c

    A logit of minus infinity excludes a class.

    Args:
      logits: ``[..., K]``.
      axis: the axis of the classes.

    Returns:
      Per-example entropy ``[...]`` in nats, between 0 and log K.

    Example:
      >>> import jax.numpy as jnp
      >>> from sdd_jax import losses
      >>> print(f"{losses.entropy(jnp.array([0.0, 0.0, -jnp.inf])):.4f}")  # log 2
      0.6931
    """
    log_p = jax.nn.log_softmax(at_least_float32(logits), axis=axis)
    p = jnp.exp(log_p)
    return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0), axis=axis)


def _log_posterior(logits, temperature, axis, where):
    """Computes log softmax(logits / T), with zero at ignored classes."""
    logits = at_least_float32(logits)
    if where is None:
        return jax.nn.log_softmax(logits / temperature, axis=axis)
    logits = jnp.where(where, logits, 0.0)
    return jnp.where(where, jax.nn.log_softmax(logits / temperature, axis=axis, where=where), 0.0)


def _kl_of_log_posteriors(log_p, log_q, gradient, axis):
    log_p, log_q = stop_gradients(log_p, log_q, gradient)
    has_mass = jnp.exp(log_p) > 0  # 0 log 0 is 0
    log_p, log_q = jnp.where(has_mass, log_p, 0.0), jnp.where(has_mass, log_q, 0.0)
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p, axis=axis)
