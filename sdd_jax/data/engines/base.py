"""The interface between engines and the training loop.

For each call the loop takes the *inputs* of some steps from the engine on the host. Inside the compiled
step, ``gather`` turns them into a batch. The inputs (indices or images) depend on the engine; the
batches do not.
"""

import dataclasses
from typing import Any, Protocol

import jax

from sdd_jax.registry import Registry

engines = Registry("sdd_jax.data.engines", "engine")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RawBatch:
    """Examples of one step on one device, before augmentation.

    Attributes:
      views: V arrays uint8 ``[B, H, W, C]``, or of other inputs.
      labels: int32 ``[B]``, or as the task has them.
      index: int32 ``[B]``, indices in the training set.
      position: int32 ``[B]``, indices in the global batch, from which the examples' keys are derived.
    """

    views: tuple[jax.Array, ...]
    labels: jax.Array
    index: jax.Array
    position: jax.Array


class Engine(Protocol):
    """Batches in an order that is a function of the seed and the epoch alone.

    Attributes:
      steps_per_epoch: number of batches in an epoch.
      steps_per_call: default number of steps per dispatch.
      resident: arrays that stay on every device during the run.
    """

    steps_per_epoch: int
    steps_per_call: int
    resident: Any

    def inputs(self, start: int, stop: int) -> Any:
        """Inputs of the steps ``[start, stop)``, ``[local devices, steps, B per device, ...]``."""
        ...

    def gather(self, resident: Any, inputs: Any) -> RawBatch:
        """The batch of one step on one device; traced."""
        ...

    def skipped(self, start: int, stop: int) -> int:
        """Number of this host's examples in the steps ``[start, stop)`` that replace another.

        Call it after ``inputs`` of these steps.
        """
        ...

    def close(self) -> None:
        """Ends background threads and processes."""
        ...
