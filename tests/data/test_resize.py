"""Images in another shape, against Pillow."""

import numpy as np
import pytest
from PIL import Image

from sdd_jax import data


def smooth(shape):
    """Colour gradients with some noise on them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[1], : shape[2]]
    waves = [127 + 90 * np.sin(x / 5 + c) * np.cos(y / (4 + c)) for c in range(shape[3])]
    images = np.stack([np.stack(waves, -1)] * shape[0]) + rng.normal(0, 12, shape)
    return np.clip(images, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(8, 8), (20, 12), (48, 40)])
def test_resizing_is_pillows_bilinear_with_antialiasing(size):
    images = smooth((3, 32, 24, 3))
    found = data.resized(images, (*size, 3))
    expected = np.stack(
        [
            np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
            for image in images
        ]
    )
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_grey_becomes_colour_and_colour_becomes_its_luma():
    grey, colour = smooth((2, 8, 8, 1)), smooth((2, 8, 8, 3))
    np.testing.assert_array_equal(data.resized(grey, (8, 8, 3)), np.repeat(grey, 3, axis=-1))
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colour])
    found = data.resized(colour, (8, 8, 1))[..., 0].astype(int)
    assert np.abs(found - expected).max() <= 1


def test_images_of_the_right_shape_are_left_alone():
    images = smooth((2, 8, 6, 3))
    assert data.resized(images, (8, 6, 3)) is images


def test_images_beyond_one_batch_keep_their_order():
    images = np.zeros((2500, 4, 4, 1), np.uint8)
    images[:, ...] = (np.arange(2500) % 251)[:, None, None, None]
    np.testing.assert_array_equal(data.resized(images, (2, 2, 1))[:, 0, 0, 0], images[:, 0, 0, 0])
