"""The training state: everything that a checkpoint must hold. It contains no PRNG keys."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from sdd_jax.objectives import Auxiliary
from sdd_jax.prng import stream_key
from sdd_jax.training.optimizers import Optimizer


@flax.struct.dataclass
class TrainState:
    """The state of training, an immutable pytree.

    Attributes:
      step: int32 scalar, the number of completed steps.
      params: the network's parameters, float32.
      batch_stats: running statistics of batch norm.
      opt_state: state of the optimizer over ``trainable``.
      auxiliary: ``{"params": ..., "batch_stats": ...}`` of the objective's auxiliary network; both empty
        without one.
      memory: memory of the objective; empty without one.
      ema: exponential moving average of ``params``; empty without one.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    auxiliary: Any
    memory: Any
    ema: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for evaluation, with the averaged parameters if there are any."""
        return {"params": self.ema or self.params, "batch_stats": self.batch_stats}

    @property
    def trainable(self) -> dict[str, Any]:
        """The parameters that the optimizer updates, of both networks."""
        return {"params": self.params, "auxiliary": self.auxiliary["params"]}


def create(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    seed: int,
    image_shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    initialise: Callable[[jax.Array, Any], Any] | None = None,
    auxiliary: Auxiliary | None = None,
    memory: Any = None,
) -> TrainState:
    """Creates the state before the first step, a function of the seed and of ``initialise``.

    Args:
      model: the network.
      optimizer: the gradient transformation and the average.
      seed: seed of the initial values.
      image_shape: shape of an input; of an image, ``(H, W, C)``.
      dtype: dtype of the inputs.
      initialise: changes the network's initial values.
      auxiliary: the objective's auxiliary network.
      memory: the objective's memory before the first step.
    """
    variables = _initial(model, stream_key(seed, "params"), jnp.zeros((1, *image_shape), dtype))
    if initialise is not None:
        variables = initialise(stream_key(seed, "initialise"), variables)
    auxiliary_variables = {"params": {}, "batch_stats": {}}
    if auxiliary is not None:
        auxiliary_variables = _initial(
            auxiliary.module, stream_key(seed, "auxiliary"), *auxiliary.arguments
        )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=None,
        auxiliary=auxiliary_variables,
        memory={} if memory is None else memory,
        # Copies: the state is donated to the step, and a buffer can be donated once.
        ema=jax.tree.map(jnp.copy, variables["params"]) if optimizer.ema else {},
    )
    opt_state = jax.jit(optimizer.transformation.init)(state.trainable)
    return dataclasses.replace(state, opt_state=opt_state)


def _initial(module: nn.Module, key: jax.Array, *inputs: jax.Array) -> dict[str, Any]:
    variables = jax.jit(lambda key: module.init(key, *inputs))(key)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
