"""Corruptions against Pillow, scipy, colorsys and the statistics of their noise."""

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
compiled = jax.jit(corrupt, static_argnums=0)


def keys_of(images, seed=0):
    return jax.random.split(jax.random.key(seed), len(images))


def run(name, images, severity, keys=None):
    keys = keys_of(images) if keys is None else keys
    return np.asarray(compiled(name, keys, images, parameters(name, severity, images.shape[1:])))


def pictures(shape, number=8):
    """Half of them smooth, half white noise; some elements are black or white."""
    x = np.random.default_rng(0).standard_normal((number, *shape))
    x[::2] = scipy.ndimage.gaussian_filter(x[::2], (0, 2, 2, 0.5), mode="nearest")
    x /= x.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(128 + 80 * x, 0, 255).astype(np.uint8)


def constant(level, number=16):
    return np.full((number, 32, 32, 3), level, np.uint8)


def assert_cut_off(levels, expected):
    """Whole numbers below those expected by less than one, but for the error of float32."""
    below = np.clip(expected, 0, 255) - levels
    assert below.min() > -0.01
    assert below.max() < 1.01


def to_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


@pytest.mark.skipif(not features.check_feature("libjpeg_turbo"), reason="another JPEG library")
@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (20, 12, 3), (33, 47, 3), (13, 30, 1)])
def test_jpeg_is_what_pillow_writes_and_reads(shape):
    def by_pillow(image, quality):
        file = io.BytesIO()
        to_pillow(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).reshape(shape)

    images = pictures(shape, 24)
    for severity, quality in zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True):
        expected = np.stack([by_pillow(image, quality) for image in images])
        np.testing.assert_array_equal(run("jpeg_compression", images, severity), expected)


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (20, 12, 3), (33, 47, 3)])
def test_pixelate_is_pillow_s_box_filter(shape):
    def by_pillow(image, scale):
        height, width, _ = shape
        small = to_pillow(image).resize(
            (int(width * scale), int(height * scale)), Image.Resampling.BOX
        )
        return np.asarray(small.resize((width, height), Image.Resampling.BOX)).reshape(shape)

    images = pictures(shape)
    for severity, scale in zip(SEVERITIES, (0.95, 0.9, 0.85, 0.75, 0.65), strict=True):
        expected = np.stack([by_pillow(image, scale) for image in images])
        np.testing.assert_array_equal(run("pixelate", images, severity), expected)


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (20, 12, 3)])
def test_gaussian_blur_is_scipy_s(shape):
    images = pictures(shape)
    for severity, std in zip(SEVERITIES, (0.4, 0.6, 0.7, 0.8, 1), strict=True):
        expected = scipy.ndimage.gaussian_filter(
            images.astype(float), (0, std, std, 0), mode="nearest", truncate=4
        )
        assert_cut_off(run("gaussian_blur", images, severity), expected)


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (20, 12, 3)])
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
        assert_cut_off(run("defocus_blur", images, severity), expected)


def colours():
    """Random colours, greys from black to white, and pure colours: ``[2, 16, 16, 3]``."""
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    images[1, :8] = np.arange(0, 256, 2).reshape(8, 16, 1)
    images[1, 8] = 255 * (np.arange(48).reshape(16, 3) % 2)
    images[1, 9] = [[0, 0, v] for v in range(16)]
    return images


def by_colorsys(images, change):
    pixels = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel)))
        for pixel in images.reshape(-1, 3) / 255
    ]
    return 255 * np.reshape(pixels, images.shape)


def test_brightness_adds_to_the_value_of_hsv():
    images = colours()
    for severity, amount in zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True):
        expected = by_colorsys(images, lambda h, s, v, c=amount: (h, s, min(v + c, 1)))
        assert_cut_off(run("brightness", images, severity), expected)


def test_brightness_of_a_grey_image_adds_to_each_level():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert_cut_off(run("brightness", images, 2), images + 0.1 * 255)


def test_saturate_changes_the_saturation_of_hsv():
    images = colours()
    settings = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
    for severity, (a, b) in zip(SEVERITIES, settings, strict=True):
        expected = by_colorsys(images, lambda h, s, v, a=a, b=b: (h, min(s * a + b, 1), v))
        assert_cut_off(run("saturate", images, severity), expected)


def test_contrast_shrinks_each_channel_towards_its_mean():
    images = pictures((20, 12, 3))
    mean = images.mean(axis=(1, 2), keepdims=True)
    for severity, factor in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        assert_cut_off(run("contrast", images, severity), factor * images + (1 - factor) * mean)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "contrast", "pixelate"])
def test_what_is_even_keeps_its_level(name):
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
    images = constant(10)
    result = run("shot_noise", images, 5)
    count = np.arange(50)
    expected = scipy.stats.poisson.pmf(count, 50 * 10 / 255)
    frequency = np.array([np.mean(result == int(255 * n / 50 + 1e-9)) for n in count])
    assert frequency.sum() == pytest.approx(1)
    error = np.sqrt(expected / result.size)
    assert np.all(abs(frequency - expected) < 5 * error + 1e-4)


def test_photons_of_a_black_image_are_none_and_of_a_white_one_at_most_white():
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


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for shape in ((8, 8, 1), (20, 12, 3)) for name in names(shape[-1])],
)
def test_an_image_s_result_depends_on_itself_and_its_key_alone(name, shape):
    images = pictures(shape, 4)
    keys = keys_of(images)
    whole = run(name, images, 5, keys)
    assert whole.dtype == np.uint8
    assert whole.shape == images.shape
    assert all((w != i).any() for w, i in zip(whole, images, strict=True))
    part = run(name, images[[3, 1]], 5, keys[np.array([3, 1])])
    np.testing.assert_array_equal(part, whole[[3, 1]])
    other = run(name, images, 5, keys_of(images, seed=1))
    assert (other != whole).any() == (name in NOISE)


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (20, 12, 3)])
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
        parameters("snow", 1, (8, 8, 1))
    with pytest.raises(ValueError, match="one of gaussian_noise, .*, got 'snow'"):
        corrupt("snow", keys_of(images), images, ())
    for severity in (0, 6):
        with pytest.raises(ValueError, match=rf"one of \(1, 2, 3, 4, 5\), got {severity}"):
            parameters("contrast", severity, (8, 8, 1))
    with pytest.raises(ValueError, match="1-channel images must be one of .*, got 'saturate'"):
        corrupt("saturate", keys_of(images), images, parameters("saturate", 1, (8, 8, 3)))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        names(4)
    with pytest.raises(TypeError, match="must be uint8, got float32"):
        corrupt("contrast", keys_of(images), images.astype(np.float32), (np.float32(1),))
