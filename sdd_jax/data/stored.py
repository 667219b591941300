"""Images of any size as they are stored, decoded where they are looked at."""

import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from sdd_jax.errors import InputError

# Of the crops that networks are trained on; as in the Inception papers and torchvision.
AREA = (0.08, 1.0)  # share of the image
RATIO = (3 / 4, 4 / 3)  # width to height
TRIES = 10
RESIZED = 256 / 224  # the short side of a test image, before the crop, in crops
THREADS = min(8, os.cpu_count() or 1)


class StoredImages:
    """An array uint8 ``[N, size, size, 3]`` of images that lie encoded on disk, or in other sizes.

    What ``np.asarray`` gives of it, or of a slice, is the view for evaluation: the short side resized
    to ``size * 256 / 224``, then the square in the middle. Slices and index vectors decode nothing.

    Args:
      stored: by place, the bytes of an image file, or uint8 ``[H, W, C]``, C 1 or 3.
      size: side of what comes out.
      what: whose images these are, for messages.
      index: the places in ``stored`` of these images; all, if it is not given.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        stored: Sequence[bytes | np.ndarray],
        size: int,
        what: str,
        index: np.ndarray | None = None,
    ):
        self._stored, self._size, self._what = stored, size, what
        self._index = np.arange(len(stored)) if index is None else index

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(N, size, size, 3)``."""
        return len(self), self._size, self._size, 3

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)):
            return central_view(self._decoded(index), self._size)
        return StoredImages(self._stored, self._size, self._what, self._index[index])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        images = np.empty(self.shape, np.uint8)
        # Pillow lets other threads run while it decodes and resizes.
        with ThreadPoolExecutor(THREADS) as pool:
            for i, image in enumerate(pool.map(self.__getitem__, range(len(self)))):
                images[i] = image
        return images if dtype is None else images.astype(dtype, copy=False)

    def random_view(self, place: int, rng: np.random.Generator) -> np.ndarray:
        """The view of an image for training, ``[size, size, 3]``: a crop of random size and shape."""
        image = self._decoded(place)
        left, top, width, height = random_box(rng, image.width, image.height)
        return _resized(
            image.crop((left, top, left + width, top + height)), (self._size, self._size)
        )

    def _decoded(self, place: int) -> Image.Image:
        place = self._index[place]
        try:
            stored = self._stored[place]
            if isinstance(stored, np.ndarray):
                image = Image.fromarray(stored[..., 0] if stored.shape[-1] == 1 else stored)
            else:
                image = Image.open(io.BytesIO(stored))
            return image.convert("RGB")
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            raise InputError(
                f"{self._what}: image {place} cannot be decoded: {type(error).__name__}: {error}"
            ) from error


def central_view(image: Image.Image, size: int) -> np.ndarray:
    """The short side resized to ``size * 256 / 224``, then the square in the middle."""
    short, target = min(image.size), round(size * RESIZED)
    width, height = (target if side == short else target * side // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return _resized(image, (width, height))[top : top + size, left : left + size]


def random_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """A box of random area and shape somewhere in the image: torchvision's RandomResizedCrop.

    Args:
      rng: draws, at each try, the share of the area, the logarithm of the ratio, and for a box that fits
        its upper and its left side.
      width: of the image.
      height: likewise.

    Returns:
      Left, top, width and height. After ten boxes that do not fit it is the largest one in the middle
      whose ratio is allowed.
    """
    low, high = (math.log(ratio) for ratio in RATIO)
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return int(left), int(top), w, h
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (width - w) // 2, (height - h) // 2, w, h


def _resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, and antialiased where it shrinks."""
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
