"""Images of one data set in the shape of another's."""

import jax
import jax.numpy as jnp
import numpy as np

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def resized(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Resizes images and turns grey into colour or colour into grey.

    Args:
      images: uint8 ``[N, H, W, C]``, C 1 or 3.
      shape: ``(H', W', C')``.

    Returns:
      uint8 ``[N, H', W', C']``: bilinear, antialiased where it shrinks; luma for grey.
    """
    if images.shape[1:] == shape:
        return images
    return np.concatenate(
        [np.asarray(_resize(images[i : i + 1000], shape)) for i in range(0, len(images), 1000)]
    )


def _resize(images, shape):
    if images.shape[-1] > shape[-1]:
        images = np.round(images @ np.float32(LUMA))[..., None]
    if images.shape[-1] < shape[-1]:
        images = np.repeat(images, shape[-1], axis=-1)
    x = jnp.asarray(images, jnp.float32)
    x = jax.image.resize(x, (len(images), *shape), "linear", antialias=True)
    return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)
