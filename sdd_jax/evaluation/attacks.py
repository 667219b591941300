r"""Adversarial attacks within an L-infinity ball, as pure functions.

Both maximise a loss of the network's output within ``|x' - x| <= epsilon``, in the units of the images,
and keep to the images' range. They see the gradient of the whole network, normalisation included.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Loss = Callable[[jax.Array], jax.Array]


class Attack(NamedTuple):
    """The state of an iterated attack.

    Attributes:
      current: the last iterate, ``[B, ...]``.
      best: of all iterates the one of the largest loss, each example for itself.
      best_loss: its loss, ``[B]``.
    """

    current: jax.Array
    best: jax.Array
    best_loss: jax.Array


def fgsm(
    loss_fn: Loss, images: jax.Array, epsilon: jax.Array, *, bounds: tuple[float, float] = (0, 1)
) -> jax.Array:
    r"""The fast gradient sign method.

    .. math:: x' = \mathrm{clip}(x + \epsilon \, \mathrm{sign} \nabla_x \ell(x))

    Args:
      loss_fn: images ``[B, ...]`` to losses ``[B]``, of each example's image alone.
      images: floating-point, within ``bounds``.
      epsilon: size of the ball.
      bounds: range of the images.

    References:
      Goodfellow et al., `Explaining and Harnessing Adversarial Examples
      <https://arxiv.org/abs/1412.6572>`_, 2015, section 4.
    """
    gradient = jax.grad(lambda x: jnp.sum(loss_fn(x)))(images)
    return jnp.clip(images + epsilon * jnp.sign(gradient), *bounds)


def pgd_start(
    loss_fn: Loss,
    images: jax.Array,
    keys: jax.Array,
    epsilon: jax.Array,
    *,
    bounds: tuple[float, float] = (0, 1),
) -> Attack:
    """A random point of the ball, by one key per example; the best so far is the image itself."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], minval=-1))(keys)
    return Attack(jnp.clip(images + epsilon * noise, *bounds), images, loss_fn(images))


def pgd_step(
    loss_fn: Loss,
    attack: Attack,
    images: jax.Array,
    epsilon: jax.Array,
    step_size: jax.Array,
    *,
    bounds: tuple[float, float] = (0, 1),
) -> Attack:
    r"""One step of projected gradient descent.

    .. math:: x_{t+1} = \Pi_\epsilon(x_t + \alpha \, \mathrm{sign} \nabla \ell(x_t))

    The point it starts from is compared with the best so far: after n steps call :func:`pgd_end`, and n
    + 1 points have been compared.

    References:
      Madry et al., `Towards Deep Learning Models Resistant to Adversarial Attacks
      <https://arxiv.org/abs/1706.06083>`_, 2018, section 2.1.
    """
    (_, losses), gradient = jax.value_and_grad(
        lambda x: (lambda losses: (jnp.sum(losses), losses))(loss_fn(x)), has_aux=True
    )(attack.current)
    best, best_loss = _better(attack, losses)
    moved = attack.current + step_size * jnp.sign(gradient)
    inside = jnp.clip(jnp.clip(moved, images - epsilon, images + epsilon), *bounds)
    return Attack(inside, best, best_loss)


def pgd_end(loss_fn: Loss, attack: Attack) -> jax.Array:
    """The adversarial images: of all points the one of the largest loss."""
    return _better(attack, loss_fn(attack.current))[0]


def _better(attack: Attack, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    better = losses > attack.best_loss
    shape = better.shape + (1,) * (attack.best.ndim - 1)
    best = jnp.where(better.reshape(shape), attack.current, attack.best)
    return best, jnp.where(better, losses, attack.best_loss)
