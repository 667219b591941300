"""Divergences summed over independent outputs: sigmoid heads and regression.

Both are the symmetric KL divergence of two predicted distributions. Within an exponential family it is
the product of two differences, that of the means and that of the natural parameters: probability and
logit of a Bernoulli distribution; the output, twice, for a Gaussian.

References:
  Banerjee et al., `Clustering with Bregman Divergences
  <https://www.jmlr.org/papers/v6/banerjee05b.html>`_, 2005, section 4.
"""

import jax
import jax.numpy as jnp

from sdd_jax.losses._arguments import (
    at_least_float32,
    check_gradient,
    check_same_shape,
    check_temperature,
)


def symmetric_bernoulli_kl(
    logits_u: jax.Array,
    logits_v: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    gradient: str = "both",
    axis: int = -1,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the symmetric KL divergence of two sigmoid heads, summed over their classes.

    .. math:: \sum_c w_c \left[\mathrm{KL}(p_{u,c} \| p_{v,c}) + \mathrm{KL}(p_{v,c} \| p_{u,c})\right]
              = \sum_c w_c\, (p_{u,c} - p_{v,c}) \frac{z_{u,c} - z_{v,c}}{T}, \qquad
              p = \mathrm{sigmoid}(z / T)

    The KL divergences are those of Bernoulli distributions, one per class: for several labels per
    example, and for the classification branch of a detector. The value and its gradients are finite
    however large finite logits are; an infinite logit counts as a very large one. There is no factor
    :math:`T^2`.

    Args:
      logits_u: ``[..., K]``.
      logits_v: the same shape.
      temperature: T > 0.
      gradient: "both", "forward" or "reverse", see :func:`sdd_jax.symmetric_kl`.
      axis: the axis of the classes.
      where: boolean, broadcast to the logits; classes that are False are ignored.
      weights: w, broadcast to the logits. A power of the class's probability at each location, with
        its gradient stopped, makes the loss focus on objects.

    Returns:
      Per-example divergence ``[...]`` in nats.

    Raises:
      ValueError: shapes that differ, temperature not positive, or an unknown gradient.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> u, v = jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])
      >>> print(f"{sdd_jax.symmetric_bernoulli_kl(u, v):.4f}")
      0.0718

    References:
      Yang et al., `Multi-Label Knowledge Distillation <https://arxiv.org/abs/2308.06453>`_, 2023: one KL
      divergence per class.

      Yang et al., `Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection
      <https://arxiv.org/abs/2308.14286>`_, 2023: weights of classes and locations.
    """
    check_same_shape(logits_u=logits_u, logits_v=logits_v)
    u, v = _parameters(logits_u, logits_v, temperature, gradient, where)
    largest = jnp.finfo(u.dtype).max / 8  # so that no difference is inf - inf
    u, v = (jnp.clip(z, -largest, largest) for z in (u, v))
    products = _product(jax.nn.sigmoid(u) - jax.nn.sigmoid(v), u - v, gradient)
    if weights is not None:
        products *= jnp.broadcast_to(jnp.asarray(weights, products.dtype), products.shape)
    return jnp.sum(products, axis=axis)


def squared_error(
    outputs_u: jax.Array,
    outputs_v: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    gradient: str = "both",
    axis: int = -1,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the squared error of two outputs, summed over them: regression and embeddings.

    .. math:: \sum_c \left(\frac{z_{u,c} - z_{v,c}}{T}\right)^2

    This is the symmetric KL divergence of Gaussians with means z and standard deviation T, so the factor
    :math:`T^2` of SD-Dropout cancels the temperature. It grows with D: for a mean over the outputs,
    divide the weight of the loss by D. For embeddings of norm 1 it is two minus twice their cosine, at
    T = 1.

    Args:
      outputs_u: ``[..., D]``.
      outputs_v: the same shape.
      temperature: T > 0.
      gradient: "both"; with "forward" or "reverse", which stop either of two equal parts, half of it.
      axis: the axis of the outputs.
      where: boolean, broadcast to the outputs; outputs that are False are ignored.

    Returns:
      Per-example squared error ``[...]``.

    Raises:
      ValueError: shapes that differ, temperature not positive, or an unknown gradient.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(sdd_jax.squared_error(jnp.array([1.0, 2.0]), jnp.array([2.0, 4.0])))
      5.0
    """
    check_same_shape(outputs_u=outputs_u, outputs_v=outputs_v)
    u, v = _parameters(outputs_u, outputs_v, temperature, gradient, where)
    return jnp.sum(_product(u - v, u - v, gradient), axis=axis)


def _parameters(u, v, temperature, gradient, where):
    """Checks the options; returns z / T of both, zero at what is ignored."""
    check_temperature(temperature)
    check_gradient(gradient)

    def parameters(z):
        z = at_least_float32(z)
        return (z if where is None else jnp.where(where, z, 0.0)) / temperature

    return parameters(u), parameters(v)


def _product(mean_difference, parameter_difference, gradient):
    r"""Multiplies the differences; "forward" stops the gradient of the first, "reverse" of the second.

    .. math:: T \, \partial\, \mathrm{KL}(q \| p) / \partial z = p - q, \qquad
              T \, \partial\, \mathrm{KL}(p \| q) / \partial z = p'(z) (z - z_q)

    with the other distribution q constant: the derivatives of the two factors of the product.
    """
    if gradient == "forward":
        mean_difference = jax.lax.stop_gradient(mean_difference)
    elif gradient == "reverse":
        parameter_difference = jax.lax.stop_gradient(parameter_difference)
    return mean_difference * parameter_difference
