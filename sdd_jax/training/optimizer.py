"""Stochastic gradient descent as the papers use it."""

from collections.abc import Mapping
from typing import Any

import optax

from sdd_jax.errors import check


def sgd(options: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    r"""Momentum with coupled weight decay on all parameters, as in PyTorch.

    .. math:: m \leftarrow \mu m + (g + \lambda \theta), \qquad \theta \leftarrow \theta - \eta_t m

    Args:
      options: ``config.optimizer``: ``momentum`` mu, ``nesterov``, ``weight_decay`` lambda.
      schedule: eta as a function of the step.

    Raises:
      InputError: a value out of range.
    """
    momentum, weight_decay = options["momentum"], options["weight_decay"]
    check(0 <= momentum < 1, "config.optimizer.momentum", momentum, "in [0, 1)")
    check(weight_decay >= 0, "config.optimizer.weight_decay", weight_decay, "0 or more")
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=options["nesterov"]),
    )
