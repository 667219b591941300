"""Functions of a network, compiled once for batches that are sharded over all devices.

A *program* is a function of one batch on the devices; :func:`stream` runs it over any number of
examples. Batches are padded to one size and the results for the padding are discarded, so that every
example counts once on any number of devices.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sdd_jax.data.inputs import Images, Inputs
from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.devices import AXIS, all_devices, local_indices, shard
from sdd_jax.mc_dropout import Prediction
from sdd_jax.tasks import Classification, Task

HostArray = np.ndarray | LazyImages

IN_FLIGHT = 2  # batches on the devices at a time: one running, one waiting


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and the normalisation of its input.

    Attributes:
      model: the network.
      mean: means by channel, see :class:`sdd_jax.data.Dataset`.
      std: standard deviations by channel.
      inputs: the kind of its inputs.
      task: what its outputs decide about.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    inputs: Inputs = dataclasses.field(default_factory=Images)
    task: Task = dataclasses.field(default_factory=Classification)

    def logits(self, variables: Any, images: jax.Array, **options: Any) -> jax.Array:
        """Logits ``[B, K]`` of images ``[B, H, W, C]``, uint8 or float, with pixels in [0, 255].

        Other tasks have ``[B, ..., K]``, or what they read from it; other inputs have another shape.
        """
        return self.task.read_out(self._apply(variables, self._normalised(images), **options))

    def features(self, variables: Any, images: jax.Array) -> jax.Array:
        """Penultimate features ``[B, D]``, dropout off."""
        return self._apply(variables, self._normalised(images), method="features")

    def prediction(self, variables: Any, images: jax.Array) -> Prediction:
        """Mean posterior and spread of images, dropout off, of a network with a ``spread``."""
        return self._apply(variables, self._normalised(images), method="prediction")

    def drop(self, features: jax.Array, keys: jax.Array) -> jax.Array:
        """Features ``[B, D]`` after the network's own dropout on them, by keys ``[B]``."""
        return self._apply({}, features, keys, method="drop")

    def head(self, variables: Any, features: jax.Array) -> jax.Array:
        """Logits ``[B, K]`` of features ``[B, D]``."""
        return self.task.read_out(self._apply(variables, features, method="head"))

    def _apply(self, *args: Any, **options: Any) -> Any:
        return self.model.apply(*args, **options)

    def _normalised(self, images):
        mean, std = (jnp.asarray(values, jnp.float32) for values in (self.mean, self.std))
        return self.inputs.normalise(images, mean, std)


@functools.lru_cache(maxsize=128)
def compiled(
    function: Callable, network: Network, *, gather: bool = True, **static: Any
) -> Callable:
    """Compiles ``function(network, variables, *batch, *scalars, **static)`` for all devices.

    The same function of the same network is compiled once per process, for all variables.

    Args:
      function: function of the network, its variables, arrays ``[B, ...]``, and scalars; the results of
        an example depend on that example alone, so that each device computes its share.
      network: its first argument.
      gather: copy the results to every device; otherwise leave them sharded, for the next function of
        the program.
      **static: keyword arguments of the function, constants of the compilation.

    Returns:
      A function of the variables, a tuple of sharded arrays and a tuple of scalars.
    """

    def call(variables, batch, scalars):
        return function(network, variables, *batch, *scalars, **static)

    layout = PartitionSpec() if gather else PartitionSpec(AXIS)
    return jax.jit(call, out_shardings=NamedSharding(all_devices(), layout))


def stream(
    program: Callable,
    batch_size: int,
    *arrays: HostArray,
    before_batch: Callable[[], None] = lambda: None,
) -> Any:
    """Runs ``program`` over all examples, batch by batch.

    Args:
      program: function from a batch of each array, ``[batch_size, ...]`` on the devices, to a tree of
        gathered arrays ``[batch_size, ...]``.
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
        pending.append(program(*(shard(_padded(array[part], indices.size)) for array in arrays)))
        if len(pending) == IN_FLIGHT:
            yield jax.device_get(pending.popleft())
    while pending:
        yield jax.device_get(pending.popleft())


def _padded(part: HostArray, count: int) -> np.ndarray:
    """The examples that this host reads, with zeros added: ``[count, ...]``."""
    examples = np.asarray(part)
    return np.pad(examples, [(0, count - len(examples))] + [(0, 0)] * (examples.ndim - 1))
