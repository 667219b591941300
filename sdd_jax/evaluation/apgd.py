r"""Auto-PGD: gradient ascent within an L-infinity ball, with a step size that needs no setting.

The step size starts at twice the radius. At checkpoints it is halved for the images whose loss has not
risen often enough, and these restart at their best point.

References:
  Croce and Hein, `Reliable evaluation of adversarial robustness with an ensemble of diverse
  parameter-free attacks <https://arxiv.org/abs/2003.01690>`_, 2020, algorithm 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Array = jax.Array
Objective = Callable[[Array], tuple[Array, Array]]

MOMENTUM = 0.75  # alpha, the share of the new step
RISES = 0.75  # rho, the share of steps that must raise the loss


class _State(NamedTuple):
    """One entry per image; ``losses`` and ``gradient`` are those of ``current``."""

    current: Array
    previous: Array
    gradient: Array
    losses: Array
    best: Array
    best_gradient: Array
    best_loss: Array
    attacked: Array  # last point that was misclassified
    is_fooled: Array
    step_size: Array
    rises: Array  # steps that raised the loss, since the last checkpoint
    checked_loss: Array  # best loss at the last checkpoint
    was_halved: Array  # at the last checkpoint


def dlr_loss(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""Computes the difference-of-logits ratio, which shifts and scales of the logits do not change.

    .. math:: -\frac{z_y - \max_{c \ne y} z_c}{z_{\pi_1} - z_{\pi_3}}

    with the logits in falling order :math:`z_{\pi_1} \ge z_{\pi_2} \ge \dots`. It is positive exactly
    where another class has the largest logit.

    Args:
      logits: ``[B, K]``, K at least 3.
      labels: integers ``[B]`` in [0, K).

    Returns:
      Losses ``[B]``.

    Raises:
      ValueError: fewer than three classes.

    References:
      Croce and Hein, 2020, equation 6.

    Examples:
      >>> dlr_loss(jnp.array([[4.0, 2.0, 0.0, -1.0]]), jnp.array([0]))
      Array([-0.5], dtype=float32)
    """
    logits = jnp.asarray(logits)
    if logits.shape[-1] < 3:
        raise ValueError(f"logits must have three classes or more, got {logits.shape[-1]}")
    first, _, third = jnp.moveaxis(jax.lax.top_k(logits, 3)[0], -1, 0)
    return margin_loss(logits, labels) / (first - third + 1e-12)


def margin_loss(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""Computes by how much another class exceeds the label's, :math:`\max_{c \ne y} z_c - z_y`.

    Args:
      logits: ``[B, K]``, K at least 2.
      labels: integers ``[B]`` in [0, K).

    Returns:
      Losses ``[B]``, positive exactly where another class has the largest logit.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)[:, None]
    is_label = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None] == labels
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return others - jnp.take_along_axis(logits, labels, axis=-1)[:, 0]


def apgd_start(
    images: ArrayLike,
    keys: Array,
    epsilon: ArrayLike,
    *,
    bounds: tuple[float, float] = (0, 1),
) -> Array:
    """Draws the first point of each image: uniform noise, scaled until it touches the ball.

    Args:
      images: floating-point ``[B, ...]``, within ``bounds``.
      keys: one PRNG key per image, ``[B]``.
      epsilon: radius of the ball.
      bounds: range of the images.

    Returns:
      Images ``[B, ...]``.
    """
    images = jnp.asarray(images)

    def noise(key):
        uniform = jax.random.uniform(key, images.shape[1:], images.dtype, minval=-1)
        return uniform / (jnp.max(jnp.abs(uniform)) + 1e-12)

    return jnp.clip(images + epsilon * jax.vmap(noise)(keys), *bounds)


def apgd(
    objective: Objective,
    images: ArrayLike,
    start: ArrayLike,
    epsilon: ArrayLike,
    *,
    steps: int = 100,
    bounds: tuple[float, float] = (0, 1),
) -> Array:
    r"""Attacks images with Auto-PGD.

    .. math:: z_{t+1} = \Pi(x_t + \eta_t \, \mathrm{sign} \nabla \ell(x_t)), \qquad
       x_{t+1} = \Pi(x_t + \tfrac34 (z_{t+1} - x_t) + \tfrac14 (x_t - x_{t-1}))

    As in the authors' code, the first step has no momentum; a checkpoint halves the step size where at
    most three quarters of its steps raised the loss, and where the best loss has not risen since a last
    checkpoint that did not halve it; the first step counts as raising a loss of zero.

    Args:
      objective: function from images ``[B, ...]`` to losses ``[B]`` and whether each image is
        misclassified, ``[B]``; each a function of its own image alone.
      images: floating-point ``[B, ...]``, within ``bounds``.
      start: first points ``[B, ...]``, see :func:`apgd_start`.
      epsilon: radius of the ball.
      steps: number of steps, one evaluation of the gradient each; static under ``jax.jit``.
      bounds: range of the images.

    Returns:
      The attacked images ``[B, ...]``: for each, the last point that was misclassified, or else the one
      with the largest loss.

    References:
      Croce and Hein, 2020, algorithm 1.
    """
    images, start = jnp.asarray(images), jnp.asarray(start)

    def project(x):
        return jnp.clip(jnp.clip(x, images - epsilon, images + epsilon), *bounds)

    def total_loss(x):
        losses, is_fooled = objective(x)
        return jnp.sum(losses), (losses, is_fooled)

    evaluate = jax.grad(total_loss, has_aux=True)

    def step(state: _State, settings) -> tuple[_State, None]:
        momentum, window = settings
        x, gradient = state.current, state.gradient
        moved = project(x + _column(state.step_size, x) * jnp.sign(gradient))
        new = project(x + momentum * (moved - x) + (1 - momentum) * (x - state.previous))
        gradient, (losses, is_fooled) = evaluate(new)
        is_best = losses > state.best_loss
        best = _where(is_best, new, state.best)
        best_gradient = _where(is_best, gradient, state.best_gradient)
        best_loss = jnp.where(is_best, losses, state.best_loss)
        rises = state.rises + (losses > state.losses).astype(state.rises.dtype)
        stagnates = ~state.was_halved & (best_loss <= state.checked_loss)
        is_checkpoint = window > 0
        halved = is_checkpoint & ((rises <= RISES * window) | stagnates)
        return _State(
            current=_where(halved, best, new),
            previous=x,
            gradient=_where(halved, best_gradient, gradient),
            losses=losses,
            best=best,
            best_gradient=best_gradient,
            best_loss=best_loss,
            attacked=_where(is_fooled, new, state.attacked),
            is_fooled=state.is_fooled | is_fooled,
            step_size=jnp.where(halved, state.step_size / 2, state.step_size),
            rises=jnp.where(is_checkpoint, 0, rises),
            checked_loss=jnp.where(is_checkpoint, best_loss, state.checked_loss),
            was_halved=jnp.where(is_checkpoint, halved, state.was_halved),
        ), None

    gradient, (losses, is_fooled) = evaluate(start)
    state = _State(
        current=start,
        previous=start,
        gradient=gradient,
        losses=jnp.zeros_like(losses),
        best=start,
        best_gradient=gradient,
        best_loss=losses,
        attacked=start,
        is_fooled=is_fooled,
        step_size=jnp.full_like(losses, 2 * epsilon),
        rises=jnp.zeros_like(losses),
        checked_loss=losses,
        was_halved=jnp.ones(losses.shape, bool),
    )
    momentum = jnp.where(jnp.arange(steps) > 0, MOMENTUM, 1).astype(start.dtype)
    windows = jnp.asarray(_windows(steps), losses.dtype)
    state, _ = jax.lax.scan(step, state, (momentum, windows))
    return _where(state.is_fooled, state.attacked, state.best)


def _windows(steps: int) -> np.ndarray:
    """For each step, the number of steps since the last checkpoint if it is one itself, or else 0."""
    first, shrink, last = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    windows = np.zeros(steps, np.int32)
    end, size = first, first
    while end <= steps:
        windows[end - 1] = size
        size = max(size - shrink, last)
        end += size
    return windows


def _column(values: Array, like: Array) -> Array:
    """Values ``[B]`` with the rank of images ``[B, ...]``."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def _where(condition: Array, x: Array, y: Array) -> Array:
    return jnp.where(_column(condition, x), x, y)
