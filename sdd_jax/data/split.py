"""A part of a data set: inputs and their labels."""

import dataclasses
import math
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sdd_jax.data.lazy_images import THREADS, LazyImages
from sdd_jax.data.lazy_maps import LazyMaps
from sdd_jax.errors import InputError
from sdd_jax.tasks import Window

# Enough to notice another set of images, and read within 0.1 s. More would delay every start.
CHECKSUM_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Split:
    """Inputs and their labels.

    Attributes:
      images: images uint8 ``[N, H, W, C]``, in memory or decoded on demand; or inputs of another kind,
        see :mod:`sdd_jax.data.inputs`.
      labels: ``[N, ...]``, as the task of the data set has them; an array, or maps decoded on demand.
      move: :meth:`sdd_jax.tasks.Task.moved`, if labels are of images as they are stored and not yet of
        views of them.
    """

    images: np.ndarray | LazyImages
    labels: Any
    move: Callable[[np.ndarray, Window, tuple[int, int]], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> "Split":
        """The examples at ``index``."""
        return Split(self.images[index], self.labels[index], self.move)

    def for_evaluation(self) -> "Split":
        """The split with the labels of its evaluation views."""
        if self.move is None or not isinstance(self.images, LazyImages):
            return self
        with ThreadPoolExecutor(THREADS) as pool:
            windows = pool.map(self.images.window, range(len(self)))
            labels = list(pool.map(self.moved, range(len(self)), windows))
        return Split(self.images, np.stack(labels))

    def moved(self, index: int, window: Window) -> np.ndarray:
        """The labels of a view of one image.

        Raises:
          InputError: they cannot be read, or do not fit the image.
        """
        assert self.move is not None
        labels = self.labels[index]
        try:
            return self.move(labels, window, self.images.shape[1:3])
        except InputError as error:
            raise InputError(f"image {index}: {error.reason}") from error

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and checksums by which a resumed run recognises its data.

        Returns:
          ``examples``, N; ``shape``, ``[H, W, C]``; ``labels``, the CRC-32 of all labels, or
          :meth:`LazyMaps.checksum`; ``images``, that of the pixels, in arrays above ``CHECKSUM_BYTES``
          of evenly spaced images, or :meth:`LazyImages.checksum`. All values are plain, and the same on
          every machine.

        Raises:
          InputError: an image file cannot be read.
        """
        if isinstance(self.labels, LazyMaps):
            labels = self.labels.checksum()
        else:
            dtype = "<f4" if self.labels.dtype.kind == "f" else "<i4"
            labels = zlib.crc32(np.ascontiguousarray(self.labels, dtype).data)
        if isinstance(self.images, np.ndarray):
            stride = max(1, math.ceil(self.images.nbytes / CHECKSUM_BYTES))
            images = zlib.crc32(np.ascontiguousarray(self.images[::stride]).data)
        else:
            images = self.images.checksum()
        return {
            "examples": len(self),
            "shape": [int(n) for n in self.images.shape[1:]],
            "labels": labels,
            "images": images,
        }
