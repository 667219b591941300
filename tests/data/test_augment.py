"""Augmentation and normalisation, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import augment

IMAGES = jnp.asarray(np.random.default_rng(0).integers(1, 256, (64, 6, 5, 3), dtype=np.uint8))
KEYS = jax.random.split(jax.random.key(0), 64)


def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_occur():
    cropped = np.asarray(augment.augment(KEYS, IMAGES, pad=1, flip=False))
    seen = set()
    for image, crop in zip(np.asarray(IMAGES), cropped, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        windows = {(y, x): padded[y : y + 6, x : x + 5] for y in range(3) for x in range(3)}
        (at,) = [at for at, window in windows.items() if np.array_equal(window, crop)]
        seen.add(at)
    assert len(seen) == 9


def test_a_flip_mirrors_about_half_of_the_images():
    flipped = np.asarray(augment.augment(KEYS, IMAGES, pad=0, flip=True))
    mirrored = [
        np.array_equal(f, i[:, ::-1]) for f, i in zip(flipped, np.asarray(IMAGES), strict=True)
    ]
    same = [np.array_equal(f, i) for f, i in zip(flipped, np.asarray(IMAGES), strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 20 < sum(mirrored) < 44


def test_an_image_depends_on_its_own_key_alone():
    whole = augment.augment(KEYS, IMAGES, pad=2, flip=True)
    part = augment.augment(KEYS[10:20], IMAGES[10:20], pad=2, flip=True)
    np.testing.assert_array_equal(whole[10:20], part)


def test_without_options_images_pass_through():
    np.testing.assert_array_equal(augment.augment(KEYS, IMAGES, pad=0, flip=False), IMAGES)


def test_normalisation():
    mean, std = np.float32([0.1, 0.2, 0.3]), np.float32([0.5, 0.6, 0.7])
    expected = (np.asarray(IMAGES) / 255 - mean) / std
    result = augment.normalise(IMAGES, mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_dropped_pixels_are_black_in_all_channels_at_the_given_rate():
    perturbed = np.asarray(augment.augment(KEYS, IMAGES, pad=0, flip=False, drop_pixels=0.2))
    black = (perturbed == 0).all(-1)
    np.testing.assert_array_equal(perturbed[~black], np.asarray(IMAGES)[~black])
    # 1920 pixels: five standard errors.
    assert abs(black.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / black.size)
