"""Maps of the labels of pixels, of images of any size, decoded on demand."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sdd_jax.data.lazy_images import checksum
from sdd_jax.errors import InputError, require_array


class LazyMaps:
    """Labels uint8 ``[N, size, size]`` of views, of which there are maps of whole images until then.

    An integer index decodes a map, uint8 ``[H, W]``. A slice or an index vector decodes nothing.

    Args:
      maps: N encoded image files of one channel, or with a palette, whose indices are the labels.
      size: side in pixels of the views.
      name: name of the maps in error messages.
      validated: ``(name, labels [1, H, W]) -> labels``, of the task; raises an InputError for a label
        that is none.
      index: indices into ``maps`` of those in this array; by default all.

    Raises:
      InputError: when a map is read that cannot be decoded, or has a label that is none.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(
        self,
        maps: Sequence[bytes],
        size: int,
        name: str,
        validated: Callable[[str, np.ndarray], np.ndarray] | None = None,
        index: np.ndarray | None = None,
    ):
        self._maps: Any = maps
        self._size, self._name, self._validated = size, name, validated
        self._index = np.arange(len(maps)) if index is None else index

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(N, size, size)``."""
        return len(self), self._size, self._size

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index):
        if not isinstance(index, (int, np.integer)):
            chosen = self._index[index]
            return LazyMaps(self._maps, self._size, self._name, self._validated, chosen)
        number = self._index[index]
        name = f"{self._name}: map {number}"
        try:
            labels = np.asarray(Image.open(io.BytesIO(self._maps[number])))
        except Exception as error:  # on damaged files, Pillow raises errors of many types
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{name} cannot be decoded: {reason}") from error
        fits = labels.ndim == 2 and labels.dtype.kind in "iu"
        require_array(fits, name, f"{labels.dtype} {labels.shape}", "integers [H, W]")
        return labels if self._validated is None else self._validated(name, labels[None])[0]

    def validated_by(self, validated: Callable[[str, np.ndarray], np.ndarray]) -> "LazyMaps":
        """These maps, each of which is validated when it is read."""
        return LazyMaps(self._maps, self._size, self._name, validated, self._index)

    def checksum(self) -> int:
        """As :meth:`sdd_jax.data.lazy_images.LazyImages.checksum`."""
        return checksum(len(self), lambda index: self._maps[self._index[index]])
