"""How batches and state are spread over devices and hosts.

One mapped axis, ``AXIS``, runs over all devices of all hosts. State is the same everywhere; of a batch
each device holds an equal share, in order, and each host hands in the shares of its own devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def replicate(tree: Any) -> Any:
    """Puts host arrays on every local device once, laid out as mapped functions take and give them."""
    copy = jax.pmap(lambda _, x: x, axis_name=AXIS, in_axes=(0, None), out_axes=None)
    return copy(jnp.arange(jax.local_device_count()), tree)


def to_devices(shares: Any) -> Any:
    """Puts host arrays ``[local devices, ...]`` where mapped functions take them without a copy."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(shares, NamedSharding(mesh, PartitionSpec(AXIS)))


def local_places(batch_size: int) -> np.ndarray:
    """Which of a global batch this host hands in: int32 ``[local devices, B on a device]``, a range.

    Args:
      batch_size: of all devices together, a multiple of their number.
    """
    by_device = np.arange(batch_size, dtype=np.int32).reshape(jax.device_count(), -1)
    first = jax.process_index() * jax.local_device_count()
    return by_device[first : first + jax.local_device_count()]
