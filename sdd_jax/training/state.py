"""The training state: everything a checkpoint must hold, and nothing random."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from sdd_jax.training.random import stream_key


@flax.struct.dataclass
class TrainState:
    """One frozen pytree.

    Attributes:
      step: int32 scalar, the number of completed steps.
      params: the network's parameters, float32.
      batch_stats: running statistics of batch norm.
      opt_state: of the optimizer.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_shape: tuple[int, int, int],
    initialise: Callable[[jax.Array, Any], Any] | None = None,
) -> TrainState:
    """The state before the first step; a function of the seed, and of what ``initialise`` changes."""
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape))))
    variables = init(stream_key(seed, "params"))
    if initialise is not None:
        variables = initialise(stream_key(seed, "initialise"), variables)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(optimizer.init)(variables["params"]),
    )
