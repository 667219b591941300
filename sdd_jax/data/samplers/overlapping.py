"""Batches that repeat half of the one before."""

import numpy as np

from sdd_jax.data.samplers import samplers


@samplers.register("overlapping")
def overlapping(labels: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """The first half of a batch is the second half of the one before.

    An epoch shows every example twice (those of its first and last half batch once), so it has about
    twice the steps.
    """
    half = batch_size // 2
    count = len(labels) // half
    halves = rng.permutation(len(labels))[: count * half].astype(np.int32).reshape(count, half)
    return np.concatenate([halves[:-1], halves[1:]], axis=1)[..., None]
