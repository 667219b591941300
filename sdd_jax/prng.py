"""Random keys: seed -> named stream -> step -> index of the example in the global batch.

An example's randomness therefore depends neither on the number of devices that share the batch nor on
other streams.
"""

import zlib
from typing import Any

import jax


def stream_key(seed: int, stream: str) -> jax.Array:
    """The key of a named stream."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def example_keys(seed: int, stream: str, step: jax.Array, position: jax.Array) -> jax.Array:
    """One key per example, ``[B]``, of a stream at a step.

    Args:
      seed: the run's seed.
      stream: name of the stream.
      step: int32 scalar.
      position: ``[B]`` int32, indices in the global batch.
    """
    return keys_at(jax.random.fold_in(stream_key(seed, stream), step), position)


def keys_at(key: jax.Array, position: jax.Array) -> jax.Array:
    """One key per example, ``[B]``, from one key and the examples' indices ``[B]``."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, position)


def settings() -> dict[str, Any]:
    """JAX's settings under which a seed gives the same random numbers, by name."""
    names = ("jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")
    return {name: getattr(jax.config, name) for name in names}
