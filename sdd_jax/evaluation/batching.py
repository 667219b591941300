"""Functions of a network, compiled once and mapped over batches on all devices.

A *program* is a function of one batch on the devices; :func:`stream` runs it over any number of
examples. Batches are padded to one size and the results for the padding are discarded, so that every
example counts once on any number of devices.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data.images import normalise
from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.devices import AXIS, local_indices

HostArray = np.ndarray | LazyImages

IN_FLIGHT = 2  # batches on the devices at a time: one running, one waiting


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and the normalisation of its input.

    Attributes:
      model: the network.
      mean: channel means of pixels in [0, 1].
      std: channel standard deviations of pixels in [0, 1].
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def logits(self, variables: Any, images: jax.Array, **options: Any) -> jax.Array:
        """Logits ``[B, K]`` of images ``[B, H, W, C]``, uint8 or float, with pixels in [0, 255]."""
        return self._apply(variables, self._normalised(images), **options)

    def features(self, variables: Any, images: jax.Array) -> jax.Array:
        """Penultimate features ``[B, D]``, dropout off."""
        return self._apply(variables, self._normalised(images), method="features")

    def drop(self, features: jax.Array, keys: jax.Array) -> jax.Array:
        """Features ``[B, D]`` after the network's own dropout on them, by keys ``[B]``."""
        return self._apply({}, features, keys, method="drop")

    def head(self, variables: Any, features: jax.Array) -> jax.Array:
        """Logits ``[B, K]`` of features ``[B, D]``."""
        return self._apply(variables, features, method="head")

    def _apply(self, *args: Any, **options: Any) -> Any:
        return self.model.apply(*args, **options)

    def _normalised(self, images):
        mean, std = (jnp.asarray(values, jnp.float32) for values in (self.mean, self.std))
        return normalise(images, mean, std)


@functools.lru_cache(maxsize=128)
def compiled(
    function: Callable, network: Network, *, gather: bool = True, **static: Any
) -> Callable:
    """Compiles ``function(network, variables, *shares, *scalars, **static)`` for all devices.

    The same function of the same network is compiled once per process, for all variables.

    Args:
      function: function of the network, its variables, one device's arrays ``[b, ...]``, and scalars.
      network: its first argument.
      gather: return the results of all devices, ``[B, ...]``, on every host; otherwise leave them
        sharded, for the next function of the program.
      **static: keyword arguments of the function, constants of the compilation.

    Returns:
      A function of the variables, a tuple of sharded arrays and a tuple of scalars.
    """

    def mapped(replicated, shares):
        variables, scalars, _ = replicated
        results = function(network, variables, *shares, *scalars, **static)
        return jax.lax.all_gather(results, AXIS, tiled=True) if gather else results

    on_devices = jax.pmap(mapped, axis_name=AXIS, in_axes=(None, 0), out_axes=None if gather else 0)

    def call(variables, shares, scalars):
        # If the arguments hold as many arrays as there are arguments, pmap treats each argument as one
        # array, which is wrong if one of them is empty. The zero adds an array.
        return on_devices((variables, scalars, np.int32(0)), shares)

    return call


def stream(
    program: Callable,
    batch_size: int,
    *arrays: HostArray,
    before_batch: Callable[[], None] = lambda: None,
) -> Any:
    """Runs ``program`` over all examples, batch by batch.

    Args:
      program: function from a share of each array, ``[local devices, b, ...]``, to a tree of gathered
        arrays ``[batch_size, ...]``.
      batch_size: a multiple of the number of devices.
      *arrays: host arrays ``[N, ...]``, N at least 1; they may be memory-mapped or decoded on demand.
      before_batch: called before each batch; an exception it raises ends the stream.

    Returns:
      The tree, with host arrays ``[N, ...]``.
    """
    results = list(_in_order(program, batch_size, arrays, before_batch))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(arrays[0])], *results)


def _in_order(program, batch_size, arrays, before_batch) -> Iterator[Any]:
    pending = collections.deque()
    indices = local_indices(batch_size)  # the part of a batch that this host reads and decodes
    for start in range(0, len(arrays[0]), batch_size):
        before_batch()
        part = slice(start + indices[0, 0], start + indices[-1, -1] + 1)
        pending.append(program(*(_by_device(array[part], indices.shape) for array in arrays)))
        if len(pending) == IN_FLIGHT:
            yield jax.device_get(pending.popleft())
    while pending:
        yield jax.device_get(pending.popleft())


def _by_device(part: HostArray, shape: tuple[int, ...]) -> np.ndarray:
    """Pads the examples that this host reads and divides them over its devices: ``[*shape, ...]``."""
    examples = np.asarray(part)
    padding = [(0, math.prod(shape) - len(examples))] + [(0, 0)] * (examples.ndim - 1)
    return np.pad(examples, padding).reshape(*shape, *examples.shape[1:])
