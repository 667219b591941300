"""What an engine is to the training loop.

The loop asks the host for the *inputs* of some steps and hands them to the device, where the step
turns them into a batch. What travels differs between engines (indices, or images); what the step
sees does not.
"""

from typing import Any, NamedTuple, Protocol

import jax

from sdd_jax.registry import Registry

engines = Registry("sdd_jax.data.engines", "config.engine")


class RawBatch(NamedTuple):
    """One step's examples on one device, as they are stored.

    Attributes:
      views: one array uint8 ``[B, H, W, C]`` for each view.
      labels: ``[B]`` int32.
      index: ``[B]`` int32, places in the training set.
      position: ``[B]`` int32, places in the global batch; what an example's randomness hangs on.
    """

    views: tuple[jax.Array, ...]
    labels: jax.Array
    index: jax.Array
    position: jax.Array


class Engine(Protocol):
    """Batches in an order that is a function of (seed, epoch) alone.

    Attributes:
      steps_per_epoch: batches in an epoch.
      steps_per_call: in one dispatch, where the config does not say.
      resident: host arrays that live on every device during the whole run.
    """

    steps_per_epoch: int
    steps_per_call: int
    resident: Any

    def inputs(self, start: int, stop: int) -> Any:
        """Steps ``[start, stop)`` as arrays ``[local devices, steps, B on a device, ...]``."""
        ...

    def gather(self, resident: Any, inputs: Any) -> RawBatch:
        """On the device: the batch of one step and one device."""
        ...

    def close(self) -> None:
        """Ends what runs in the background."""
        ...
