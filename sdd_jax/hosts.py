"""Agreement between the hosts of a job: all of them go on, or all stop with one line.

Every host must call these functions, in the same order. With one host they do nothing.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdd_jax import supervisor
from sdd_jax.errors import Failure, InputError

_CONNECTION = re.compile(r"gloo|coordination|connection|unavailable|peer", re.IGNORECASE)


def first() -> bool:
    """True on the host that decides and writes."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The values of all hosts, in order; JSON's types."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, max(lengths) - len(text))))
    return [json.loads(bytes(text[:length])) for text, length in zip(texts, lengths, strict=True)]


def lost(error: Exception) -> Failure | None:
    """The failure to report in place of an error of the runtime that another process has caused."""
    if jax.process_count() == 1 or not _CONNECTION.search(str(error)):
        return None
    return Failure(supervisor.LOST)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends when every host has run the block.

    Raises:
      Failure: the block failed on another host only. A host whose own block fails raises its own error.
    """
    try:
        yield
    except Exception as error:
        gather([str(error) or type(error).__name__, isinstance(error, InputError)])
        raise
    for process, failure in enumerate(gather(None)):
        if failure is not None:
            reason, is_input = failure
            raise (InputError if is_input else Failure)(f"process {process}: {reason}")
