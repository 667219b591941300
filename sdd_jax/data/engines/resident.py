"""An engine that keeps the training set in device memory and transfers indices only."""

import jax
import numpy as np

from sdd_jax.data.engines.base import RawBatch, engines
from sdd_jax.data.samplers import BatchOrder
from sdd_jax.data.split import Split
from sdd_jax.devices import platform
from sdd_jax.errors import require


@engines.register("resident")
class ResidentEngine:
    """Gathers batches on the device by index.

    Args:
      split: training examples, in memory.
      batch_size: global batch size.
      sampler: name of a sampler in :mod:`sdd_jax.data.samplers`.
      seed: seed of the data order.

    Raises:
      InputError: the images are decoded on demand.
    """

    def __init__(self, *, split: Split, batch_size: int, sampler: str, seed: int):
        in_memory = isinstance(split.images, np.ndarray)
        require(in_memory, "name", "resident", "streamed where image_size is set")
        self.resident = {"images": split.images, "labels": split.labels}
        self._order = BatchOrder(
            labels=split.labels, batch_size=batch_size, sampler=sampler, seed=seed
        )
        self.steps_per_epoch = self._order.steps_per_epoch
        self.steps_per_call = 1 if platform() == "cpu" else 100

    def inputs(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Indices ``[local devices, steps, B, V]`` and positions ``[local devices, steps, B]``."""
        index = np.stack([self._order.index(step) for step in range(start, stop)], axis=1)
        position = self._order.position[:, None]
        return {"index": index, "position": np.broadcast_to(position, index.shape[:-1])}

    def gather(self, resident: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> RawBatch:
        """Takes the examples at ``inputs["index"]`` ``[B, V]``; the labels are those of view 0."""
        index = inputs["index"]
        views = tuple(resident["images"][index[:, v]] for v in range(index.shape[1]))
        return RawBatch(views, resident["labels"][index[:, 0]], index[:, 0], inputs["position"])

    def skipped(self, start: int, stop: int) -> int:
        """0: images in memory need no decoding."""
        return 0

    def close(self) -> None:
        """Does nothing: there are no background threads."""
