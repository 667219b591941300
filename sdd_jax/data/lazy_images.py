"""Images of any size, decoded on demand."""

import io
import math
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from sdd_jax.errors import InputError
from sdd_jax.tasks import Window

# Training crops of a part of the image, as in the Inception papers and torchvision.
AREA = (0.08, 1.0)  # fraction of the image
RATIO = (3 / 4, 4 / 3)  # width to height
ATTEMPTS = 10
RESIZE = 256 / 224  # short side of a test image to the side of its crop
SCALES = (0.6, 1.4)  # of whole images: side of a training crop to the long side of the image
THREADS = min(8, os.cpu_count() or 1)
CHECKSUM_IMAGES = 64  # files may be on a slow disk


class UndecodableImageError(InputError):
    """The contents of an image file are damaged, so that every attempt to decode it fails."""


class LazyImages:
    """An array uint8 ``[N, size, size, 3]`` of images that are decoded when they are read.

    ``np.asarray`` gives the evaluation view of each image, see :func:`central_view`; or, if views are to
    show whole images, the image resized so that its long side is that of the view, with a black border
    below or to the right. Indexing with a slice or an index vector decodes nothing.

    Args:
      images: N encoded image files, or arrays uint8 ``[H, W, C]`` with C 1 or 3.
      size: side in pixels of the views.
      name: name of the images in error messages.
      index: indices into ``images`` of the images in this array; by default all.
      resize: short side of a resized image to the side of its evaluation view.
      whole: whether evaluation views show whole images, and training views keep the aspect ratio.

    Raises:
      UndecodableImageError: when an image is read whose contents are damaged.
      InputError: when an image is read whose file cannot be read.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        images: Sequence[bytes | np.ndarray] | np.ndarray,
        size: int,
        name: str,
        index: np.ndarray | None = None,
        resize: float = RESIZE,
        whole: bool = False,
    ):
        self._images: Any = images
        self._size, self._name, self._resize = size, name, resize
        self._whole = whole
        self._index = np.arange(len(images)) if index is None else index

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(N, size, size, 3)``."""
        return len(self), self._size, self._size, 3

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)):
            image = self._decoded(int(index))
            if self._whole:
                return self._view(image, whole_window(image.height, image.width))
            return central_view(image, self._size, resize=self._resize)
        chosen = self._index[index]
        return LazyImages(self._images, self._size, self._name, chosen, self._resize, self._whole)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        views = np.empty(self.shape, np.uint8)
        # Pillow releases the interpreter lock while it decodes and resizes.
        with ThreadPoolExecutor(THREADS) as pool:
            for i, view in enumerate(pool.map(self.__getitem__, range(len(self)))):
                views[i] = view
        return views if dtype is None else views.astype(dtype, copy=False)

    def random_view(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, Window]:
        """The training view of one image, uint8 ``[size, size, 3]``, and the part that it shows.

        This is a :func:`random_box`, or a :func:`random_square` if views show whole images.
        """
        image = self._decoded(index)
        draw = random_square if self._whole else random_box
        left, top, width, height = draw(rng, image.width, image.height)
        window = Window(top, left, height, width, of=(image.height, image.width))
        return self._view(image, window), window

    def window(self, index: int) -> Window:
        """The part that the evaluation view of one whole image shows.

        Raises:
          InputError: the header of its file cannot be read.
        """
        sizes = getattr(self._images, "sizes", None)  # known without the files
        if sizes is not None:
            return whole_window(*map(int, sizes[self._index[index]]))
        stored = self._stored(index)
        if isinstance(stored, np.ndarray):
            return whole_window(*stored.shape[:2])
        try:
            width, height = Image.open(io.BytesIO(stored)).size
        except Exception as error:
            raise self._error(index, error, transient=MemoryError) from error
        return whole_window(height, width)

    def _view(self, image: Image.Image, window: Window) -> np.ndarray:
        right, bottom = window.left + window.width, window.top + window.height
        crop = image.crop((window.left, window.top, right, bottom))  # black beyond the image
        return _resized(crop, (self._size, self._size))

    def checksum(self) -> int:
        """CRC-32 of at most 64 evenly spaced images as they are stored.

        None is decoded: the pixels depend on the version of the decoder. A damaged image counts as
        empty.

        Raises:
          InputError: a file cannot be read.
        """

        def stored(index: int) -> bytes | np.ndarray:
            try:
                return self._stored(index)
            except UndecodableImageError:  # an engine may skip it
                return b""

        return checksum(len(self), stored)

    def _decoded(self, index: int) -> Image.Image:
        stored = self._stored(index)
        try:
            if isinstance(stored, np.ndarray):
                image = Image.fromarray(stored[..., 0] if stored.shape[-1] == 1 else stored)
            else:
                image = Image.open(io.BytesIO(stored))
            return image.convert("RGB")
        except Exception as error:  # on damaged files, Pillow raises errors of many types
            raise self._error(index, error, transient=MemoryError) from error

    def _stored(self, index: int) -> bytes | np.ndarray:
        try:
            return self._images[self._index[index]]
        except Exception as error:  # and so does ArrayRecord
            raise self._error(index, error, transient=(OSError, MemoryError)) from error

    def _error(self, index: int, error: Exception, *, transient: Any) -> InputError:
        """The error to raise; one of the types ``transient`` need not occur at the next attempt."""
        kind = InputError if isinstance(error, transient) else UndecodableImageError
        reason = f"{type(error).__name__}: {error}"
        return kind(f"{self._name}: image {self._index[index]} cannot be decoded: {reason}")


def checksum(count: int, stored: Callable[[int], bytes | np.ndarray]) -> int:
    """CRC-32 of at most 64 of ``count`` evenly spaced contents."""
    result = 0
    for index in range(0, count, math.ceil(count / CHECKSUM_IMAGES) or 1):
        content = stored(index)
        is_array = isinstance(content, np.ndarray)
        result = zlib.crc32(np.ascontiguousarray(content).data if is_array else content, result)
    return result


def central_view(image: Image.Image, size: int, *, resize: float = RESIZE) -> np.ndarray:
    """The evaluation view: the short side resized to ``size * resize``, then the central square.

    Args:
      image: RGB image.
      size: side of the square in pixels.
      resize: short side of the resized image to the side of the square, by default 256 / 224.

    Returns:
      uint8 ``[size, size, 3]``.
    """
    short, target = min(image.size), round(size * resize)
    width, height = (target if side == short else target * side // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return _resized(image, (width, height))[top : top + size, left : left + size]


def whole_window(height: int, width: int) -> Window:
    """The square that has the image in its upper left corner."""
    side = max(height, width)
    return Window(0, 0, side, side, of=(height, width))


def random_square(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Draws a square as CenterNet does: of random side and position, which keeps the aspect ratio.

    The side is 0.6 to 1.4 times the long side of the image. The square lies within the image where it
    is shorter, and holds the image where it is longer.

    Args:
      rng: source of the square.
      width: width of the image in pixels.
      height: height of the image in pixels.

    Returns:
      Left, top, width and height.
    """
    side = max(1, round(max(width, height) * rng.uniform(*SCALES)))
    left, top = (
        int(rng.integers(min(0, n - side), max(0, n - side), endpoint=True))
        for n in (width, height)
    )
    return left, top, side, side


def random_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Draws a box of random area, aspect ratio and position, as torchvision's RandomResizedCrop.

    Args:
      rng: source of the box; each attempt draws the area and the logarithm of the ratio, and a box that
        fits its top and its left side.
      width: width of the image in pixels.
      height: height of the image in pixels.

    Returns:
      Left, top, width and height. If ten attempts do not fit into the image, this is the largest central
      box of an allowed ratio.
    """
    low, high = (math.log(ratio) for ratio in RATIO)
    for _ in range(ATTEMPTS):
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
    """Bilinear, with antialiasing where it shrinks."""
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
