"""Augmentation and normalisation, on the device, each image by its own key."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.errors import check


def random_crop(key: jax.Array, image: jax.Array, *, pad: int) -> jax.Array:
    """Pads ``image`` ``[H, W, C]`` with ``pad`` black pixels and crops a random ``[H, W, C]``."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    y, x = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (y, x, jnp.zeros_like(x)), image.shape)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors ``image`` ``[H, W, C]`` left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def augment(keys: jax.Array, images: jax.Array, *, pad: int, flip: bool) -> jax.Array:
    """Crops and flips ``images`` ``[B, H, W, C]`` by one key each ``[B]``; same shape and dtype."""

    def one(key, image):
        crop_key, flip_key = jax.random.split(key)
        if pad:
            image = random_crop(crop_key, image, pad=pad)
        if flip:
            image = random_flip(flip_key, image)
        return image

    return jax.vmap(one)(keys, images) if pad or flip else images


def normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """``(images / 255 - mean) / std`` by channel: uint8 ``[B, H, W, C]`` to float32."""
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, -1) for v in (mean, std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def check_options(options: Mapping[str, Any]) -> None:
    """Checks ``config.augment``.

    Raises:
      InputError: a negative padding.
    """
    check(options["pad"] >= 0, "config.augment.pad", options["pad"], "0 or more")
