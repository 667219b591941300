"""Optimizers: optax transformations with weight decay, clipping and a parameter average.

Every optimizer has these options besides its own:

* ``weight_decay``: lambda, and ``weight_decay_mask``: "all" decays all parameters, "kernels" those of
  two or more dimensions, so neither biases nor the scales and offsets of norms. LARS and LAMB restrict
  their trust ratios to the same parameters.
* ``decay`` (where both exist): "coupled" adds lambda theta to the gradient (L2 regularisation), so that
  it passes through momentum and normalisation; "decoupled" adds it to the update, which is then
  multiplied by the learning rate.
* ``clip_norm``: the gradient is scaled down to this global norm, before weight decay; 0 for none.
* ``ema``: decay of an exponential moving average of the parameters, which is then evaluated; 0 for none.

The program provides ``schedule``, a function from the peak learning rate to an optax schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from sdd_jax.options import NonNegative, Positive, Rate
from sdd_jax.registry import Registry

optimizers = Registry("sdd_jax.training.optimizers", "optimizer")

MakeSchedule = Callable[[float], optax.Schedule]
Decay = Literal["coupled", "decoupled"]
Mask = Literal["all", "kernels"]


@dataclass(frozen=True)
class Optimizer:
    """A gradient transformation, and the decay of the average of the parameters.

    Attributes:
      transformation: optax transformation of gradients to updates.
      ema: decay in [0, 1) of the exponential moving average of the parameters; 0 for no average.
    """

    transformation: optax.GradientTransformation
    ema: float = 0.0


@optimizers.register("sgd")
def sgd(
    *,
    schedule: MakeSchedule,
    learning_rate: Positive = 0.1,
    momentum: Rate = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 1e-4,
    decay: Decay = "coupled",
    weight_decay_mask: Mask = "all",
    clip_norm: NonNegative = 0.0,
    ema: Rate = 0.0,
) -> Optimizer:
    r"""Stochastic gradient descent with momentum, as in PyTorch.

    .. math:: m \leftarrow \mu m + (g + \lambda \theta), \qquad \theta \leftarrow \theta - \eta_t m

    With decoupled decay, :math:`m \leftarrow \mu m + g` and
    :math:`\theta \leftarrow \theta - \eta_t (m + \lambda \theta)`.
    """
    rate, add_decay = schedule(learning_rate), _weight_decay(weight_decay, weight_decay_mask)
    if decay == "coupled":
        steps = [add_decay, optax.sgd(rate, momentum=momentum, nesterov=nesterov)]
    else:
        steps = [
            optax.trace(momentum, nesterov=nesterov),
            add_decay,
            optax.scale_by_learning_rate(rate),
        ]
    return _optimizer(steps, clip_norm, ema)


@optimizers.register("adamw")
def adamw(
    *,
    schedule: MakeSchedule,
    learning_rate: Positive = 1e-3,
    b1: Rate = 0.9,
    b2: Rate = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.05,
    decay: Decay = "decoupled",
    weight_decay_mask: Mask = "kernels",
    clip_norm: NonNegative = 0.0,
    ema: Rate = 0.0,
) -> Optimizer:
    r"""AdamW; with coupled decay, Adam with L2 regularisation.

    .. math:: \theta \leftarrow \theta - \eta_t \left(\frac{\hat m}{\sqrt{\hat v} + \epsilon}
              + \lambda \theta\right)

    References:
      Loshchilov and Hutter, `Decoupled Weight Decay Regularization
      <https://arxiv.org/abs/1711.05101>`_, 2019.
    """
    adam = _adam(b1, b2, eps)
    add_decay = _weight_decay(weight_decay, weight_decay_mask)
    steps = [adam, add_decay] if decay == "decoupled" else [add_decay, adam]
    return _optimizer(
        [*steps, optax.scale_by_learning_rate(schedule(learning_rate))], clip_norm, ema
    )


@optimizers.register("lars")
def lars(
    *,
    schedule: MakeSchedule,
    learning_rate: Positive = 1.0,
    momentum: Rate = 0.9,
    nesterov: bool = False,
    trust_coefficient: Positive = 1e-3,
    eps: NonNegative = 0.0,
    weight_decay: NonNegative = 1e-4,
    weight_decay_mask: Mask = "kernels",
    clip_norm: NonNegative = 0.0,
    ema: Rate = 0.0,
) -> Optimizer:
    r"""LARS, for large batches: SGD whose steps are proportional to the norm of each array.

    .. math:: u = g + \lambda \theta, \qquad
              m \leftarrow \mu m + \eta_t \, c \, \frac{\|\theta\|}{\|u\| + \epsilon} \, u, \qquad
              \theta \leftarrow \theta - m

    with the trust coefficient c. Parameters outside the mask have the factor 1 in place of
    :math:`c \|\theta\| / (\|u\| + \epsilon)`, and so has an array that is zero.

    References:
      You et al., `Large Batch Training of Convolutional Networks <https://arxiv.org/abs/1708.03888>`_,
      2017.
    """
    steps = [
        _weight_decay(weight_decay, weight_decay_mask),
        _trust_ratio(weight_decay_mask, trust_coefficient=trust_coefficient, eps=eps),
        optax.scale_by_learning_rate(schedule(learning_rate)),
        optax.trace(momentum, nesterov=nesterov),
    ]
    return _optimizer(steps, clip_norm, ema)


@optimizers.register("lamb")
def lamb(
    *,
    schedule: MakeSchedule,
    learning_rate: Positive = 5e-3,
    b1: Rate = 0.9,
    b2: Rate = 0.999,
    eps: Positive = 1e-6,
    weight_decay: NonNegative = 0.02,
    weight_decay_mask: Mask = "kernels",
    clip_norm: NonNegative = 0.0,
    ema: Rate = 0.0,
) -> Optimizer:
    r"""LAMB, for large batches: Adam whose steps are proportional to the norm of each array.

    .. math:: u = \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda \theta, \qquad
              \theta \leftarrow \theta - \eta_t \frac{\|\theta\|}{\|u\|} u

    Parameters outside the mask have the factor 1 in place of :math:`\|\theta\| / \|u\|`, and so has
    an array that is zero. The default learning rate and decay are those of Wightman et al., `ResNet
    Strikes Back <https://arxiv.org/abs/2110.00476>`_, 2021, for batches of 2048.

    References:
      You et al., `Large Batch Optimization for Deep Learning <https://arxiv.org/abs/1904.00962>`_, 2020.
    """
    steps = [
        _adam(b1, b2, eps),
        _weight_decay(weight_decay, weight_decay_mask),
        _trust_ratio(weight_decay_mask),
        optax.scale_by_learning_rate(schedule(learning_rate)),
    ]
    return _optimizer(steps, clip_norm, ema)


def _optimizer(steps: list[Any], clip_norm: float, ema: float) -> Optimizer:
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return Optimizer(optax.chain(*clip, *steps), ema)


def _adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(b1, b2, eps)

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


def _weight_decay(weight_decay: float, mask: Mask) -> optax.GradientTransformation:
    return optax.add_decayed_weights(weight_decay, mask=_kernels if mask == "kernels" else None)


def _trust_ratio(mask: Mask, **options: float) -> optax.GradientTransformation:
    ratio = optax.scale_by_trust_ratio(**options)
    return optax.masked(ratio, _kernels) if mask == "kernels" else ratio


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim >= 2, params)
