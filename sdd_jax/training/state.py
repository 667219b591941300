"""The training state: everything a checkpoint must hold, and nothing random."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from sdd_jax.objectives import Auxiliary
from sdd_jax.training.random import stream_key


@flax.struct.dataclass
class TrainState:
    """One frozen pytree.

    Attributes:
      step: int32 scalar, the number of completed steps.
      params: the network's parameters, float32.
      batch_stats: running statistics of batch norm.
      opt_state: of the optimizer.
      auxiliary: parameters and batch statistics of the objective's auxiliary network; empty without.
      memory: the objective's; empty without.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    auxiliary: Any = flax.struct.field(default_factory=dict)
    memory: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def trainable(self) -> Any:
        """What the optimizer sees: the parameters, and those of the auxiliary network if any."""
        return trainable(self.params, self.auxiliary)


def create(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_shape: tuple[int, int, int],
    initialise: Callable[[jax.Array, Any], Any] | None = None,
    auxiliary: Auxiliary | None = None,
    memory: Any = None,
) -> TrainState:
    """The state before the first step; a function of the seed, and of what ``initialise`` changes.

    Args:
      model: the network.
      optimizer: the gradient transformation.
      seed: of the initial values.
      image_shape: ``(H, W, C)``.
      initialise: changes the network's initial values.
      auxiliary: the objective's auxiliary network.
      memory: the objective's memory before the first step.
    """
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape))))
    variables = init(stream_key(seed, "params"))
    if initialise is not None:
        variables = initialise(stream_key(seed, "initialise"), variables)
    second = {}
    if auxiliary is not None:
        init = jax.jit(lambda key: auxiliary.module.init(key, *auxiliary.arguments))
        initial = init(stream_key(seed, "auxiliary"))
        second = {"params": initial["params"], "batch_stats": initial.get("batch_stats", {})}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(optimizer.init)(trainable(variables["params"], second)),
        auxiliary=second,
        memory={} if memory is None else memory,
    )


def trainable(params: Any, auxiliary: Any) -> Any:
    """See :attr:`TrainState.trainable`."""
    return {"params": params, "auxiliary": auxiliary["params"]} if auxiliary else params
