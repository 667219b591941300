"""The whole training set in device memory; only indices travel."""

import functools

import jax
import numpy as np

from sdd_jax.data.dataset import Split
from sdd_jax.data.engines.base import RawBatch, engines
from sdd_jax.data.samplers import samplers
from sdd_jax.parallel import local_shares


@engines.register("resident")
class ResidentEngine:
    """Batches gathered on the device by index vectors.

    Args:
      split: the training examples.
      batch_size: of all devices together.
      sampler: a name in ``sdd_jax.data.samplers``.
      seed: of the data order.
    """

    def __init__(self, *, split: Split, batch_size: int, sampler: str, seed: int):
        self.steps_per_epoch = len(split) // batch_size
        self.resident = {"images": split.images, "labels": split.labels}
        self._batch_size, self._seed = batch_size, seed
        self._sampler = samplers.get(sampler)
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def inputs(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Index vectors ``[local devices, steps, B, V]`` and positions ``[local devices, steps, B]``."""
        steps = [divmod(step, self.steps_per_epoch) for step in range(start, stop)]
        index = np.stack([self._epoch(epoch)[i] for epoch, i in steps])
        position = np.arange(self._batch_size, dtype=np.int32)
        position = np.broadcast_to(position, (len(steps), self._batch_size))
        return {
            "index": local_shares(index, axis=1),
            "position": local_shares(position, axis=1),
        }

    def gather(self, resident: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> RawBatch:
        """Takes the examples at ``inputs["index"]`` ``[B, V]``; labels are those of view 0."""
        index = inputs["index"]
        views = tuple(resident["images"][index[:, v]] for v in range(index.shape[1]))
        return RawBatch(views, resident["labels"][index[:, 0]], index[:, 0], inputs["position"])

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch])
        return self._sampler(self.resident["labels"], self._batch_size, rng)
