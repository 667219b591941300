"""Batches whose examples have two views: two of one image, or two images of one class."""

import numpy as np

from sdd_jax.data.samplers import samplers
from sdd_jax.data.samplers.uniform import uniform


@samplers.register("two_views")
def two_views(labels: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Every example once an epoch, twice in its batch, to be augmented twice."""
    return np.repeat(uniform(labels, batch_size, rng), 2, axis=-1)


@samplers.register("same_class")
def same_class(labels: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Every example once an epoch, beside another of its class (or itself, if it is the only one)."""
    first = uniform(labels, batch_size, rng)
    order = np.argsort(labels, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    counts = np.bincount(labels)
    start = (np.cumsum(counts) - counts)[labels[first]]
    size = counts[labels[first]]
    # A step of 1 to size - 1 around the ring of the class: uniform over the others.
    step = 1 + (rng.random(first.shape) * np.maximum(size - 1, 1)).astype(np.int64)
    partner = order[start + (place[first] - start + step) % size]
    return np.concatenate([first, partner.astype(np.int32)], axis=-1)
