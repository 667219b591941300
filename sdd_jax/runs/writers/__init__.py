"""Metric writers by name: where metrics and plots go beside ``metrics.jsonl``, the log of record.

A writer is a file here that registers a subclass of :class:`Writer`. Only the first process uses it.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

from sdd_jax.errors import InputError, require
from sdd_jax.paths import Path
from sdd_jax.registry import Registry

FIELD = "config.log_to"

writers = Registry("sdd_jax.runs.writers", f"--{FIELD}")


class Writer:
    """Base class of the metric writers; its constructor opens the writer.

    Args:
      workdir: the run's folder.
      start: the step at which the run starts or resumes. What an interrupted run wrote for later steps
        must not be shown twice. None: an evaluation, perhaps of an earlier checkpoint and while the run
        trains on; what the run has written must stay visible.
      config: the run's config.

    Attributes:
      package: the package that it needs, imported in the constructor only.

    Raises:
      InputError: the writer cannot be used.
      WriteError: it cannot write; also raised by every method.
    """

    package: ClassVar[str]

    def __init__(self, workdir: Path, *, start: int | None, config: Mapping[str, Any]):
        raise NotImplementedError

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of a step; a step can be written twice, with other metrics."""
        raise NotImplementedError

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image, uint8 ``[H, W, C]`` with 1, 3 or 4 channels."""
        raise NotImplementedError

    def flush(self) -> None:
        """Writes what is pending, before a checkpoint; by default, nothing is."""

    def close(self) -> None:
        """Writes what is pending, and ends."""
        raise NotImplementedError


def installed(names: Sequence[str]) -> list[type[Writer]]:
    """Returns the writers of these names without opening them.

    Raises:
      InputError: there is no writer of that name, or its package is not installed.
    """
    found = []
    for name in dict.fromkeys(names):
        known = writers.names()
        require(name in known, FIELD, name, f"names of writers: {', '.join(known)}")
        writer = cast("type[Writer]", writers.get(name))
        spec = importlib.util.find_spec(writer.package)
        if spec is None or spec.origin is None:  # no origin: a folder of that name
            raise InputError(
                f"{name!r} needs the package {writer.package}: pip install {writer.package}",
                field=FIELD,
            )
        found.append(writer)
    return found
