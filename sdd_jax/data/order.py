"""The order of the training examples: which of them make up the batch of a step."""

import numpy as np

from sdd_jax.data.samplers import samplers
from sdd_jax.parallel import local_places


class Order:
    """This process's share of the batches, which are a function of (seed, epoch) alone.

    Args:
      labels: of the training examples, ``[N]``.
      batch_size: of all devices together.
      sampler: a name in ``sdd_jax.data.samplers``.
      seed: of the data order.

    Attributes:
      steps_per_epoch: batches in an epoch.
      position: places in the global batch, int32 ``[local devices, B on a device]``.
    """

    def __init__(self, *, labels: np.ndarray, batch_size: int, sampler: str, seed: int):
        self._labels, self._batch_size, self._seed = labels, batch_size, seed
        self._sampler = samplers.get(sampler)
        self._epochs: dict[int, np.ndarray] = {}
        self.position = local_places(batch_size)
        self.steps_per_epoch = len(self._epoch(0))

    def index(self, step: int) -> np.ndarray:
        """Places in the training set of a step's views, int32 ``[local devices, B on a device, V]``."""
        epoch, i = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[i][self.position]

    def __getstate__(self):
        return vars(self) | {"_epochs": {}}  # quicker to draw again than to send

    def _epoch(self, epoch: int) -> np.ndarray:
        batches = self._epochs.get(epoch)
        if batches is None:
            rng = np.random.default_rng([self._seed, epoch])
            batches = self._sampler(self._labels, self._batch_size, rng)
            # Two at a time: around the end of an epoch some threads are in the next one already.
            self._epochs = dict([*self._epochs.items()][-1:]) | {epoch: batches}
        return batches
