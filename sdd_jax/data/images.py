"""Image operations on the device: augmentation, normalisation, resizing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.errors import require
from sdd_jax.options import Count
from sdd_jax.tasks import Window

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
RESIZE_BATCH = 1000  # images


def augment(keys: jax.Array, images: jax.Array, **options: Any) -> jax.Array:
    """Augments images whose labels do not move with them, see :func:`augment_pairs`."""
    return augment_pairs(keys, images, None, **options)[0]


def augment_pairs(
    keys: jax.Array,
    images: jax.Array,
    labels: jax.Array | None,
    *,
    move: Callable[[jax.Array, Window, tuple[int, int]], jax.Array] | None = None,
    pad: Count = 0,
    flip: bool = False,
    drop_pixels: float = 0.0,
) -> tuple[jax.Array, jax.Array | None]:
    """Crops, mirrors and perturbs images, and labels of places in them, each by its own key.

    Args:
      keys: ``[B]`` PRNG keys.
      images: uint8 ``[B, H, W, C]``.
      labels: ``[B, ...]``, which move with the images; or None.
      move: :meth:`sdd_jax.tasks.Task.moved` of their task.
      pad: width in pixels of the black border that is added on every side before a random ``[H, W]``
        crop is taken; less than H and W, see :func:`check_crop`.
      flip: mirror left to right with probability 1/2.
      drop_pixels: probability of setting a pixel to black, in all channels.

    Returns:
      uint8 ``[B, H, W, C]``, and the labels.
    """
    if not (pad or flip or drop_pixels):
        return images, labels

    def augment_one(key, image, label):
        height, width, _ = shape = image.shape
        u_top, u_left, u_flip = jax.random.uniform(key, (3,))
        top, left = (jnp.int32(u * (2 * pad + 1)) for u in (u_top, u_left))
        mirrored = u_flip < 0.5 if flip else False
        if pad:
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            image = jax.lax.dynamic_slice(padded, (top, left, jnp.int32(0)), shape)
        if flip:
            image = jnp.where(mirrored, image[:, ::-1], image)
        if label is not None and (pad or flip):
            assert move is not None
            window = Window(top - pad, left - pad, height, width, mirrored)
            label = move(label, window, (height, width))
        if drop_pixels:
            shape = (*image.shape[:2], 1)
            keep = jax.random.uniform(jax.random.fold_in(key, 1), shape) >= drop_pixels
            image = jnp.where(keep, image, jnp.zeros_like(image))
        return image, label

    return jax.vmap(augment_one)(keys, images, labels)


def check_crop(pad: int, image_shape: tuple[int, int, int]) -> None:
    """Raises an InputError if random crops could miss images of shape ``(H, W, C)`` altogether."""
    height, width, _ = image_shape
    allowed = f"less than the height and width of the images, {height}x{width} pixels"
    require(pad < min(height, width), "pad", pad, allowed)


def normalise(images: jax.Array, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Normalises uint8 images to float32 ``(images / 255 - mean) / std``.

    Args:
      images: uint8 ``[B, H, W, C]``.
      mean: ``[C]``, of pixels in [0, 1].
      std: ``[C]``, likewise.

    Returns:
      float32 ``[B, H, W, C]``.
    """
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, -1) for v in (mean, std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def resized(
    images: np.ndarray | LazyImages, shape: tuple[int, int, int]
) -> np.ndarray | LazyImages:
    """Resizes images and converts between grey and colour.

    Resizing is bilinear, with antialiasing where it shrinks. Grey is the luma of ITU-R BT.601.

    Args:
      images: uint8 ``[N, H, W, C]``, C 1 or 3.
      shape: ``(H', W', C')``.

    Returns:
      uint8 ``[N, H', W', C']``; ``images`` itself if it already has this shape.
    """
    if images.shape[1:] == shape:
        return images
    starts = range(0, len(images), RESIZE_BATCH)
    batches = (np.asarray(images[start : start + RESIZE_BATCH]) for start in starts)
    return np.concatenate([np.asarray(_resized(batch, shape)) for batch in batches])


def _resized(images: np.ndarray, shape: tuple[int, int, int]) -> jax.Array:
    if images.shape[-1] > shape[-1]:
        images = np.round(images @ np.asarray(LUMA, np.float32))[..., None]
    if images.shape[-1] < shape[-1]:
        images = np.repeat(images, shape[-1], axis=-1)
    x = jnp.asarray(images, jnp.float32)
    x = jax.image.resize(x, (len(images), *shape), "linear", antialias=True)
    return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)
