"""Corruptions against Pillow, SciPy, colorsys and the statistics of their noise."""

import colorsys
import io

import jax
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, features

from sdd_jax.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, names, parameters

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
GREY, COLOUR = (8, 8, 1), (20, 12, 3)
compiled = jax.jit(corrupt, static_argnums=0)

each_shape = pytest.mark.parametrize("shape", [GREY, COLOUR])
each_name = pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for shape in (GREY, COLOUR) for name in names(shape[-1])]
)


def split_keys(images, seed=0):
    return jax.random.split(jax.random.key(seed), len(images))


def run(name, images, severity, keys=None):
    keys = split_keys(images) if keys is None else keys
    return np.asarray(compiled(name, keys, images, parameters(name, severity, images.shape[1:])))


def pictures(shape):
    """Eight images, half of them smooth, half white noise; some elements are black or white."""
    x = np.random.default_rng(0).standard_normal((8, *shape))
    x[::2] = scipy.ndimage.gaussian_filter(x[::2], (0, 2, 2, 0.5), mode="nearest")
    x /= x.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(128 + 80 * x, 0, 255).astype(np.uint8)


def constant(level):
    return np.full((16, 32, 32, 3), level, np.uint8)


def assert_truncated(levels, expected):
    """Levels lie below the expected values by less than one, up to the error of float32."""
    below = np.clip(expected, 0, 255) - levels
    assert below.min() > -0.01
    assert below.max() < 1.01


def to_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def pillow_jpeg(image, quality):
    file = io.BytesIO()
    to_pillow(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)


def pillow_pixelate(image, scale):
    height, width, _ = image.shape
    small = to_pillow(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)).reshape(image.shape)


@pytest.mark.parametrize(
    ("name", "by_pillow", "settings"),
    [
        pytest.param(
            *("jpeg_compression", pillow_jpeg, (80, 65, 58, 50, 40)),
            marks=pytest.mark.skipif(
                not features.check_feature("libjpeg_turbo"), reason="another JPEG library"
            ),
        ),
        ("pixelate", pillow_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    ],
)
@pytest.mark.parametrize("shape", [GREY, COLOUR, (32, 32, 3), (33, 47, 3), (13, 30, 1)])
def test_jpeg_and_pixelate_are_pillows_to_the_bit(name, by_pillow, settings, shape):
    images = pictures(shape)
    for severity, setting in zip(SEVERITIES, settings, strict=True):
        expected = np.stack([by_pillow(image, setting) for image in images])
        np.testing.assert_array_equal(run(name, images, severity), expected)


@each_shape
def test_gaussian_blur_is_scipys(shape):
    images = pictures(shape)
    for severity, std in zip(SEVERITIES, (0.4, 0.6, 0.7, 0.8, 1), strict=True):
        expected = scipy.ndimage.gaussian_filter(
            images.astype(float), (0, std, std, 0), mode="nearest", truncate=4
        )
        assert_truncated(run("gaussian_blur", images, severity), expected)


@each_shape
def test_defocus_is_convolution_with_a_softened_disk(shape):
    images = pictures(shape)
    settings = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    for severity, (radius, std) in zip(SEVERITIES, settings, strict=True):
        y, x = np.mgrid[-8:9, -8:9]
        disk = np.where(np.hypot(x, y) <= radius, 1.0, 0.0)
        near = (abs(x) <= 1) & (abs(y) <= 1)
        gaussian = np.where(near, np.exp(-(x**2 + y**2) / (2 * std**2)), 0)
        kernel = scipy.ndimage.convolve(disk / disk.sum(), gaussian / gaussian.sum())
        expected = scipy.ndimage.convolve(
            images.astype(float), kernel[None, :, :, None], mode="mirror"
        )
        assert_truncated(run("defocus_blur", images, severity), expected)


def colours():
    """Random colours, greys from black to white, and pure colours: ``[8, 8, 8, 3]``."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    images[:2] = np.arange(0, 256, 2).reshape(2, 8, 8, 1)
    images[2, :2] = 255 * (np.arange(48).reshape(2, 8, 3) % 2)
    images[2, 2:4] = [[[0, 0, v] for v in range(8)], [[v, 0, 0] for v in range(8)]]
    return images


@pytest.mark.parametrize(
    ("name", "settings", "change"),
    [
        ("brightness", (0.05, 0.1, 0.15, 0.2, 0.3), lambda h, s, v, c: (h, s, min(v + c, 1))),
        (
            "saturate",
            ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
            lambda h, s, v, ab: (h, min(s * ab[0] + ab[1], 1), v),
        ),
    ],
)
def test_brightness_and_saturate_change_hsv(name, settings, change):
    images = colours()
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in images.reshape(-1, 3) / 255]
    for severity, setting in zip(SEVERITIES, settings, strict=True):
        pixels = [colorsys.hsv_to_rgb(*change(*pixel, setting)) for pixel in hsv]
        expected = 255 * np.reshape(pixels, images.shape)
        assert_truncated(run(name, images, severity), expected)


def test_brightness_of_a_grey_image_adds_to_each_level():
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    assert_truncated(run("brightness", images, 2), images + 0.1 * 255)


def test_contrast_shrinks_each_channel_towards_its_mean():
    images = pictures(COLOUR)
    mean = images.mean(axis=(1, 2), keepdims=True)
    for severity, factor in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        assert_truncated(run("contrast", images, severity), factor * images + (1 - factor) * mean)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "contrast", "pixelate"])
def test_a_constant_image_keeps_its_level(name):
    images = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 8, 8, 1))
    for severity in SEVERITIES:
        np.testing.assert_array_equal(run(name, images, severity), images)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("gaussian_noise", lambda x, i: (0.04, 0.06, 0.08, 0.09, 0.10)[i]),
        ("shot_noise", lambda x, i: np.sqrt(x / (500, 250, 100, 75, 50)[i])),
        ("speckle_noise", lambda x, i: x * (0.06, 0.1, 0.12, 0.16, 0.2)[i]),
    ],
)
@pytest.mark.parametrize("level", [110, 140])
def test_noise_keeps_the_mean_and_has_its_standard_deviation(name, deviation, level):
    images = constant(level)
    for severity in SEVERITIES:
        result = run(name, images, severity).astype(float)
        expected = 255 * deviation(level / 255, severity - 1)
        assert abs(result.mean() + 0.5 - level) < 5 * expected / np.sqrt(result.size) + 0.1
        assert result.std() == pytest.approx(expected, rel=0.02)


def test_shot_noise_counts_photons():
    result = run("shot_noise", constant(10), 5)
    count = np.arange(50)
    expected = scipy.stats.poisson.pmf(count, 50 * 10 / 255)
    frequency = np.array([np.mean(result == int(255 * n / 50 + 1e-9)) for n in count])
    assert frequency.sum() == pytest.approx(1)
    assert np.all(abs(frequency - expected) < 5 * np.sqrt(expected / result.size) + 1e-4)


def test_a_black_image_has_no_photons_and_a_white_one_is_clipped():
    assert not run("shot_noise", constant(0), 5).any()
    white = run("shot_noise", constant(255), 1)
    assert np.mean(white == 255) == pytest.approx(scipy.stats.poisson.sf(499, 500), abs=0.02)


def test_impulse_noise_is_salt_and_pepper_in_equal_parts_by_element():
    images = constant(99)
    for severity, amount in zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True):
        result = run("impulse_noise", images, severity)
        tolerance = 5 * np.sqrt(amount / 2 / result.size)
        assert abs(np.mean(result == 0) - amount / 2) < tolerance
        assert abs(np.mean(result == 255) - amount / 2) < tolerance
        assert np.isin(result, (0, 99, 255)).all()
        changed = result != 99
        both = np.mean(changed[..., 0] & changed[..., 1])  # as of independent channels
        assert both == pytest.approx(amount**2, abs=5 * amount / np.sqrt(changed[..., 0].size))


@each_name
def test_a_result_depends_on_its_own_image_and_key_alone(name, shape):
    images = pictures(shape)
    keys = split_keys(images)
    result = run(name, images, 5, keys)
    assert result.dtype == np.uint8
    assert result.shape == images.shape
    assert all((r != i).any() for r, i in zip(result, images, strict=True))
    chosen = np.array([3, 1, 1, 7, 0, 0, 2, 6])
    np.testing.assert_array_equal(run(name, images[chosen], 5, keys[chosen]), result[chosen])
    with_other_keys = run(name, images, 5, split_keys(images, seed=1))
    assert (with_other_keys != result).any() == (name in NOISE)


@pytest.mark.parametrize("name", names(3))
def test_numpy_arrays_are_corrupted_outside_jit_as_inside(name):
    shape = (8, 8, 3 if name not in names(1) else 1)
    images = pictures(shape)
    result = corrupt(name, split_keys(images), images, parameters(name, 5, shape))
    difference = abs(np.asarray(result).astype(int) - run(name, images, 5))
    assert difference.max() <= 1  # compiled as a whole, float32 rounds differently
    assert np.mean(difference) < 0.01


@each_shape
def test_parameters_have_the_same_shapes_for_all_severities(shape):
    for name in names(shape[-1]):
        first, *others = (parameters(name, severity, shape) for severity in SEVERITIES)
        assert all(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in first)
        for other in others:
            assert [(a.shape, a.dtype) for a in other] == [(a.shape, a.dtype) for a in first]


def test_saturation_is_for_colour_images():
    assert names(3) == tuple(CORRUPTIONS)
    assert set(names(3)) - set(names(1)) == {"saturate"}


def test_errors_name_the_value_and_what_is_allowed():
    images = np.zeros((1, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="one of gaussian_noise, .*, got 'snow'"):
        parameters("snow", 1, GREY)
    with pytest.raises(ValueError, match="one of gaussian_noise, .*, got 'snow'"):
        corrupt("snow", split_keys(images), images, ())
    for severity in (0, 6):
        with pytest.raises(ValueError, match=rf"one of \(1, 2, 3, 4, 5\), got {severity}"):
            parameters("contrast", severity, GREY)
    with pytest.raises(ValueError, match="1-channel images must be one of .*, got 'saturate'"):
        corrupt("saturate", split_keys(images), images, parameters("saturate", 1, COLOUR))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        names(4)
    with pytest.raises(TypeError, match="must be uint8, got float32"):
        corrupt("contrast", split_keys(images), images.astype(np.float32), (np.array(1.0),))
