"""Which examples a batch holds. A sampler is a file here that registers a function.

The function takes ``labels`` ``[N]``, ``batch_size`` and a NumPy generator that depends on the seed and
the epoch alone, and returns the epoch's batches: int32 ``[steps, batch_size, V]``, the places in the
training set of the V views that make up each example.
"""

from sdd_jax.registry import Registry

samplers = Registry("sdd_jax.data.samplers", "objective.sampler")
