"""Every example once an epoch."""

import numpy as np

from sdd_jax.data.samplers import samplers


@samplers.register("uniform")
def uniform(labels: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """A random permutation cut into whole batches; the few examples that remain sit the epoch out."""
    steps = len(labels) // batch_size
    order = rng.permutation(len(labels))[: steps * batch_size]
    return order.astype(np.int32).reshape(steps, batch_size, 1)
