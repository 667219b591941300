"""Augmentation and normalisation, on the device, each image by its own key."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.errors import check


def augment(
    keys: jax.Array, images: jax.Array, *, pad: int, flip: bool, drop_pixels: float = 0.0
) -> jax.Array:
    """Crops, mirrors and perturbs images at random.

    Args:
      keys: one PRNG key per image, ``[B]``.
      images: uint8 ``[B, H, W, C]``.
      pad: black pixels around the image before a crop ``[H, W]`` is taken anywhere in it.
      flip: mirror left to right with probability 1/2.
      drop_pixels: probability with which a pixel becomes black.

    Returns:
      uint8 ``[B, H, W, C]``.
    """

    def one(key, image):
        for_y, for_x, for_flip = jax.random.uniform(key, (3,))
        if pad:
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            y, x = (jnp.int32(u * (2 * pad + 1)) for u in (for_y, for_x))
            image = jax.lax.dynamic_slice(padded, (y, x, jnp.int32(0)), image.shape)
        if flip:
            image = jnp.where(for_flip < 0.5, image[:, ::-1], image)
        if drop_pixels:
            shape = (*image.shape[:2], 1)
            keep = jax.random.uniform(jax.random.fold_in(key, 1), shape) >= drop_pixels
            image = jnp.where(keep, image, jnp.zeros_like(image))
        return image

    return jax.vmap(one)(keys, images) if pad or flip or drop_pixels else images


def normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """``(images / 255 - mean) / std`` by channel: uint8 ``[B, H, W, C]`` to float32."""
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, -1) for v in (mean, std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def check_options(options: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
    """Checks ``config.augment`` for images ``[H, W, C]``.

    Raises:
      InputError: a negative padding, or one with which crops could miss the image.
    """
    height, width = image_shape[:2]
    check(
        0 <= options["pad"] < min(height, width),
        "config.augment.pad",
        options["pad"],
        f"0 or more, and less than the images' {height}x{width} pixels",
    )
