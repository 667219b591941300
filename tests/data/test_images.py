"""Augmentation, normalisation and resizing, against NumPy and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdd_jax.data.images import augment, check_crop, normalise, resized
from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 6, 5, 3), dtype=np.uint8)
KEYS = jax.random.split(jax.random.key(0), 64)


def smooth(shape):
    """Colour gradients with some noise."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    waves = [127 + 90 * np.sin(x / 5 + c) * np.cos(y / (4 + c)) for c in range(shape[3])]
    images = np.stack(waves, -1)[None] + np.random.default_rng(0).normal(0, 12, shape)
    return np.clip(images, 0, 255).astype(np.uint8)


def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_occur():
    windows_seen = set()
    for image, crop in zip(IMAGES, np.asarray(augment(KEYS, IMAGES, pad=1)), strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        windows = {(y, x): padded[y : y + 6, x : x + 5] for y in range(3) for x in range(3)}
        (at,) = [at for at, window in windows.items() if np.array_equal(window, crop)]
        windows_seen.add(at)
    assert len(windows_seen) == 9


def test_a_flip_mirrors_about_half_of_the_images():
    flipped = np.asarray(augment(KEYS, IMAGES, flip=True))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    unchanged = (flipped == IMAGES).all((1, 2, 3))
    assert np.all(mirrored != unchanged)
    assert 20 < mirrored.sum() < 44


def test_dropped_pixels_are_black_in_all_channels_at_the_rate():
    perturbed = np.asarray(augment(KEYS, IMAGES, drop_pixels=0.2))
    black = (perturbed == 0).all(-1)
    np.testing.assert_array_equal(perturbed[~black], IMAGES[~black])
    # 1920 pixels: five standard errors.
    assert abs(black.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / black.size)


def test_augmentation_depends_on_the_keys_of_the_images_alone():
    options = {"pad": 2, "flip": True, "drop_pixels": 0.1}
    whole = augment(KEYS, IMAGES, **options)
    part = augment(KEYS[10:20], IMAGES[10:20], **options)
    np.testing.assert_array_equal(whole[10:20], part)
    np.testing.assert_array_equal(augment(KEYS, IMAGES), IMAGES)


def test_padding_must_be_less_than_the_image():
    check_crop(4, (6, 5, 3))
    with pytest.raises(InputError, match="^pad: must be less than the .* 6x5 pixels, got 5"):
        check_crop(5, (6, 5, 3))


def test_normalisation():
    mean, std = np.float32([0.1, 0.2, 0.3]), np.float32([0.5, 0.6, 0.7])
    normalised = normalise(jnp.asarray(IMAGES), mean, std)
    assert normalised.dtype == jnp.float32
    np.testing.assert_allclose(normalised, (IMAGES / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (20, 12), (48, 40)])
def test_resizing_is_pillows_bilinear_with_antialiasing(size):
    images = smooth((3, 32, 24, 3))
    result = resized(images, (*size, 3))
    assert result.dtype == np.uint8
    for image, ours in zip(images, result, strict=True):
        pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(ours.astype(int), np.asarray(pillow).astype(int), atol=1)


def test_grey_becomes_colour_and_colour_becomes_luma():
    grey, colour = smooth((2, 8, 8, 1)), smooth((2, 8, 8, 3))
    np.testing.assert_array_equal(resized(grey, (8, 8, 3)), np.repeat(grey, 3, axis=-1))
    luma = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colour])
    result = resized(colour, (8, 8, 1))[..., 0]
    np.testing.assert_allclose(result.astype(int), luma.astype(int), atol=1)


def test_images_of_the_right_shape_are_returned_as_they_are():
    images = smooth((2, 8, 6, 3))
    assert resized(images, (8, 6, 3)) is images
    lazy = LazyImages(images, 8, "")
    assert resized(lazy, (8, 8, 3)) is lazy
    np.testing.assert_array_equal(resized(lazy, (4, 4, 1)), resized(np.asarray(lazy), (4, 4, 1)))


def test_many_images_keep_their_order():
    levels = (np.arange(2500) % 251).astype(np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (2500, 4, 4, 1))
    np.testing.assert_array_equal(resized(images, (2, 2, 1))[:, 0, 0, 0], levels)
