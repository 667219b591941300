r"""Gradient-sign perturbations of images: the FGSM and PGD attacks, and the inputs of ODIN.

The attacks maximise a loss of the network's output within the ball ``|x' - x| <= epsilon`` of the
L-infinity norm, in the units of the images, and within the images' range. The gradient is that of the
whole network, normalisation included.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array
LossFn = Callable[[Array], Array]


class PGDState(NamedTuple):
    """State of projected gradient descent.

    Attributes:
      current: last iterate, ``[B, ...]``.
      best: iterate with the largest loss so far, for each example, ``[B, ...]``.
      best_loss: loss of ``best``, ``[B]``.
    """

    current: Array
    best: Array
    best_loss: Array


def fgsm(
    loss_fn: LossFn,
    images: ArrayLike,
    epsilon: ArrayLike,
    *,
    bounds: tuple[float, float] = (0, 1),
) -> Array:
    r"""Attacks images with the fast gradient sign method.

    .. math:: x' = \mathrm{clip}(x + \epsilon \, \mathrm{sign} \nabla_x \ell(x))

    Args:
      loss_fn: images ``[B, ...]`` to losses ``[B]``, each a function of its own image alone.
      images: floating-point ``[B, ...]``, within ``bounds``.
      epsilon: radius of the ball.
      bounds: range of the images.

    Returns:
      The attacked images ``[B, ...]``.

    References:
      Goodfellow et al., `Explaining and Harnessing Adversarial Examples
      <https://arxiv.org/abs/1412.6572>`_, 2015, section 4.

    Examples:
      >>> images = jnp.array([[0.5, 0.25, 1.0]])
      >>> fgsm(lambda x: x @ jnp.array([2.0, -1.0, 3.0]), images, 0.125)
      Array([[0.625, 0.125, 1.   ]], dtype=float32)
    """
    images = jnp.asarray(images)
    gradient = jax.grad(lambda x: jnp.sum(loss_fn(x)))(images)
    return jnp.clip(images + epsilon * jnp.sign(gradient), *bounds)


def pgd_start(
    loss_fn: LossFn,
    images: ArrayLike,
    keys: Array,
    epsilon: ArrayLike,
    *,
    bounds: tuple[float, float] = (0, 1),
) -> PGDState:
    """Starts projected gradient descent at a random point of the ball.

    Args:
      loss_fn: as in :func:`fgsm`.
      images: floating-point ``[B, ...]``, within ``bounds``.
      keys: one PRNG key per image, ``[B]``.
      epsilon: radius of the ball.
      bounds: range of the images.

    Returns:
      A state whose best iterate is the image itself.
    """
    images = jnp.asarray(images)
    noise = jax.vmap(
        lambda key: jax.random.uniform(key, images.shape[1:], images.dtype, minval=-1)
    )(keys)
    return PGDState(jnp.clip(images + epsilon * noise, *bounds), images, loss_fn(images))


def pgd_step(
    loss_fn: LossFn,
    state: PGDState,
    images: ArrayLike,
    epsilon: ArrayLike,
    step_size: ArrayLike,
    *,
    bounds: tuple[float, float] = (0, 1),
) -> PGDState:
    r"""Takes one step of projected gradient descent.

    .. math:: x_{t+1} = \Pi_\epsilon(x_t + \alpha \, \mathrm{sign} \nabla \ell(x_t))

    A step evaluates the loss at its starting point, and :func:`pgd_end` at the last point, so n steps
    choose among n + 2 points, the image included.

    Args:
      loss_fn: as in :func:`fgsm`.
      state: the result of :func:`pgd_start` or of the previous step.
      images: the original images ``[B, ...]``.
      epsilon: radius of the ball.
      step_size: alpha.
      bounds: range of the images.

    Returns:
      The next state.

    References:
      Madry et al., `Towards Deep Learning Models Resistant to Adversarial Attacks
      <https://arxiv.org/abs/1706.06083>`_, 2018, section 2.1.
    """

    def total_loss(x):
        losses = loss_fn(x)
        return jnp.sum(losses), losses

    images = jnp.asarray(images)
    gradient, losses = jax.grad(total_loss, has_aux=True)(state.current)
    best, best_loss = _better(state, losses)
    moved = state.current + step_size * jnp.sign(gradient)
    inside = jnp.clip(jnp.clip(moved, images - epsilon, images + epsilon), *bounds)
    return PGDState(inside, best, best_loss)


def pgd_end(loss_fn: LossFn, state: PGDState) -> Array:
    """Returns the attacked images ``[B, ...]``: for each, the iterate with the largest loss."""
    return _better(state, loss_fn(state.current))[0]


def odin_inputs(
    logits_fn: Callable[[Array], Array],
    images: ArrayLike,
    epsilon: ArrayLike,
    *,
    temperature: ArrayLike,
) -> Array:
    r"""Moves images towards higher confidence, as ODIN does before it scores them.

    .. math:: x' = x - \epsilon \, \mathrm{sign}(-\nabla_x \log \max_c p_c), \qquad
       p = \mathrm{softmax}(z(x) / T)

    The score is :func:`~sdd_jax.evaluation.metrics.maximum_softmax_probability` of x' at temperature T.
    As in the reference, the result is not clipped to the images' range.

    Args:
      logits_fn: function from images ``[B, ...]`` to logits ``[B, K]``.
      images: floating-point ``[B, ...]``.
      epsilon: size of the change, in the units of the images.
      temperature: T.

    Returns:
      The moved images ``[B, ...]``.

    References:
      Liang et al., `Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks
      <https://arxiv.org/abs/1706.02690>`_, 2018, equation 2.
    """

    def log_confidence(x):
        return jnp.max(jax.nn.log_softmax(logits_fn(x) / temperature), axis=-1)

    return fgsm(log_confidence, images, epsilon, bounds=(-jnp.inf, jnp.inf))


def _better(state: PGDState, losses: Array) -> tuple[Array, Array]:
    is_better = losses > state.best_loss
    shape = is_better.shape + (1,) * (state.best.ndim - 1)
    best = jnp.where(is_better.reshape(shape), state.current, state.best)
    return best, jnp.where(is_better, losses, state.best_loss)
