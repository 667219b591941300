"""A network's functions, compiled once and mapped over batches on all devices.

A *program* is a function of one batch on the devices; :func:`stream` runs it over any number of
examples. Batches are padded to one size and what comes of the padding is dropped, so that every example
counts once on any number of devices.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from sdd_jax.data import augment
from sdd_jax.parallel import AXIS, local_places

IN_FLIGHT = 2  # batches on the devices at a time: one that runs, one that waits


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and how its input is normalised.

    Attributes:
      model: the network.
      mean: per channel, of pixels in [0, 1].
      std: likewise.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def logits(self, variables: Any, images: jax.Array, **options: Any) -> jax.Array:
        """``[B, K]`` of images ``[B, H, W, C]``, whose pixels, uint8 or not, lie in [0, 255]."""
        return self.model.apply(variables, self._normalise(images), **options)

    def features(self, variables: Any, images: jax.Array) -> jax.Array:
        """``[B, D]``, dropout off."""
        return self.model.apply(variables, self._normalise(images), method="features")

    def drop(self, features: jax.Array, keys: jax.Array) -> jax.Array:
        """The features under the network's own dropout on them."""
        return self.model.apply({}, features, keys, method="drop")

    def head(self, variables: Any, features: jax.Array) -> jax.Array:
        """Logits ``[B, K]`` of features ``[B, D]``."""
        return self.model.apply(variables, features, method="head")

    def _normalise(self, images):
        return augment.normalise(images, np.float32(self.mean), np.float32(self.std))


@functools.lru_cache(maxsize=128)
def compiled(function: Callable, network: Network, *, gather: bool = True, **static) -> Callable:
    """``function(network, variables, *shares, *scalars, **static)`` on every device's share of a batch.

    The same function of the same network is compiled once in a process, whatever the variables.

    Args:
      function: of the network, its variables, arrays ``[b, ...]`` of a device, then scalars.
      network: its first argument.
      gather: whether every process gets the results of all devices, ``[B, ...]``; if not, each device
        keeps its own, ready for the next function of the program.
      **static: keyword arguments that are constants of the compilation.

    Returns:
      A function of ``variables``, a tuple of shares and a tuple of scalars.
    """

    def mapped(everywhere, shares):
        variables, scalars, _ = everywhere
        results = function(network, variables, *shares, *scalars, **static)
        return jax.lax.all_gather(results, AXIS, tiled=True) if gather else results

    on_devices = jax.pmap(mapped, axis_name=AXIS, in_axes=(None, 0), out_axes=None if gather else 0)

    def call(variables, shares, scalars):
        # Where there are as many arrays as arguments, pmap takes each argument to be one array. The
        # zero keeps an empty argument from making it so by accident.
        return on_devices((variables, scalars, np.int32(0)), shares)

    return call


def stream(
    program: Callable,
    batch_size: int,
    *arrays: np.ndarray,
    before_batch: Callable[[], None] = lambda: None,
) -> Any:
    """Runs ``program`` over all examples, batch by batch.

    Args:
      program: shares of each array in, a tree of gathered arrays ``[batch_size, ...]`` out.
      batch_size: a multiple of the number of devices.
      *arrays: host arrays ``[N, ...]``, N >= 1; they may be memory-mapped.
      before_batch: called before each batch; what it raises ends the stream.

    Returns:
      The tree, of host arrays ``[N, ...]``.
    """
    results = list(_in_order(program, batch_size, arrays, before_batch))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(arrays[0])], *results)


def _in_order(program, batch_size, arrays, before_batch) -> Iterator[Any]:
    pending = collections.deque()
    own = local_places(batch_size)  # what this host reads, and decodes, of a batch
    for start in range(0, len(arrays[0]), batch_size):
        before_batch()
        places = slice(start + own[0, 0], start + own[-1, -1] + 1)
        pending.append(program(*(_divided(array[places], own.shape) for array in arrays)))
        if len(pending) == IN_FLIGHT:
            yield jax.device_get(pending.popleft())
    while pending:
        yield jax.device_get(pending.popleft())


def _divided(part: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The part of an array that a host reads, padded, by device: ``[*shape, ...]``."""
    padding = [(0, math.prod(shape) - len(part))] + [(0, 0)] * (part.ndim - 1)
    return np.pad(part, padding).reshape(*shape, *part.shape[1:])
