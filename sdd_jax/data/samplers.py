"""Samplers, which draw the batches of an epoch, and the order of the batches over a run.

A sampler is registered with ``@samplers.register(NAME)``. It takes ``labels`` ``[N]``, ``batch_size``
and a NumPy generator, and returns the batches of an epoch: int32 ``[steps, batch_size, V]``, indices in
the training set of the V views of each example.
"""

import numpy as np

from sdd_jax.devices import local_indices
from sdd_jax.errors import InputError
from sdd_jax.registry import Registry

samplers = Registry("sdd_jax.data.samplers", "objective.sampler")


@samplers.register("uniform")
def uniform(labels: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws every example once an epoch; the incomplete last batch is dropped."""
    steps = len(labels) // batch_size
    order = rng.permutation(len(labels))[: steps * batch_size]
    return order.astype(np.int32).reshape(steps, batch_size, 1)


@samplers.register("two_views")
def two_views(labels: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws every example once an epoch, as two views that are augmented independently."""
    return np.repeat(uniform(labels, batch_size, rng), 2, axis=-1)


@samplers.register("same_class")
def same_class(labels: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws every example once an epoch, with a random other example of its class as second view.

    The only example of a class is its own second view.
    """
    first = uniform(labels, batch_size, rng)
    by_class = np.argsort(labels, kind="stable")
    rank = np.empty_like(by_class)
    rank[by_class] = np.arange(len(by_class))
    counts = np.bincount(labels)
    start = (np.cumsum(counts) - counts)[labels[first]]
    size = counts[labels[first]]
    # A shift of 1 to size - 1, modulo the size of the class: uniform over the others.
    shift = 1 + (rng.random(first.shape) * np.maximum(size - 1, 1)).astype(np.int64)
    second = by_class[start + (rank[first] - start + shift) % size]
    return np.concatenate([first, second.astype(np.int32)], axis=-1)


@samplers.register("overlapping")
def overlapping(labels: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Repeats the second half of each batch as the first half of the next.

    An epoch draws every example twice, those of its first and last half batch once, so it has about
    twice as many steps.

    Raises:
      InputError: an odd batch size.
    """
    if batch_size % 2:
        raise InputError(f"batch_size must be even for the sampler 'overlapping', got {batch_size}")
    half = batch_size // 2
    count = len(labels) // half
    halves = rng.permutation(len(labels))[: count * half].astype(np.int32).reshape(count, half)
    return np.concatenate([halves[:-1], halves[1:]], axis=1)[..., None]


class BatchOrder:
    """This process's share of the batches of a run, a function of the seed and the epoch alone.

    Args:
      labels: labels of the training examples, ``[N]``.
      batch_size: global batch size.
      sampler: name of a sampler.
      seed: seed of the data order.

    Attributes:
      steps_per_epoch: number of batches in an epoch.
      position: indices in the global batch, int32 ``[local devices, B per device]``.
    """

    def __init__(self, *, labels: np.ndarray, batch_size: int, sampler: str, seed: int):
        self._labels, self._batch_size, self._seed = labels, batch_size, seed
        self._sampler = samplers.get(sampler)
        self._epochs: dict[int, np.ndarray] = {}
        self.position = local_indices(batch_size)
        self.steps_per_epoch = len(self._epoch(0))

    def index(self, step: int) -> np.ndarray:
        """Indices in the training set of a step's views, int32 ``[local devices, B per device, V]``."""
        epoch, i = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[i][self.position]

    def __getstate__(self):
        # It is faster to draw the epochs again than to pickle them.
        return vars(self) | {"_epochs": {}}

    def _epoch(self, epoch: int) -> np.ndarray:
        batches = self._epochs.get(epoch)
        if batches is None:
            rng = np.random.default_rng([self._seed, epoch])
            batches = self._sampler(self._labels, self._batch_size, rng)
            # Keep two epochs: near the end of one, some threads already read the next.
            self._epochs = dict([*self._epochs.items()][-1:]) | {epoch: batches}
        return batches
