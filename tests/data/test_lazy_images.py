"""Images decoded on demand: their two views, against Pillow and torchvision's rule written out."""

import io
import math
import zlib

import numpy as np
import pytest
from PIL import Image

from sdd_jax.data import lazy_images
from sdd_jax.data.lazy_images import LazyImages, UndecodableImageError, central_view, random_box
from sdd_jax.errors import InputError

SIZES = [(40, 30), (30, 41), (33, 33), (90, 20), (16, 64)]  # width, height


def picture(width, height, channels=3):
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / (3 + c)) * np.cos(y / (5 - c)) for c in range(channels)]
    return np.stack(waves, -1).astype(np.uint8)


@pytest.fixture
def files(encoded):
    return [encoded(picture(*size)).getvalue() for size in SIZES]


@pytest.fixture
def images(files):
    return LazyImages(files, 14, "dataset birds, train")


def torchvision_box(rng, width, height):
    """RandomResizedCrop.get_params: left, top, width, height."""
    area = height * width
    log_ratio = np.log([3 / 4, 4 / 3])
    for _ in range(10):
        target_area = area * rng.uniform(0.08, 1.0)
        aspect_ratio = np.exp(rng.uniform(log_ratio[0], log_ratio[1]))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            i = rng.integers(0, height - h + 1)
            j = rng.integers(0, width - w + 1)
            return j, i, w, h
    in_ratio = float(width) / float(height)
    if in_ratio < 3 / 4:
        w = width
        h = round(w / (3 / 4))
    elif in_ratio > 4 / 3:
        h = height
        w = round(h * (4 / 3))
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize("size", [*SIZES, (500, 375), (1000, 9), (1, 1)])
def test_boxes_are_torchvisions_for_the_same_random_numbers(size):
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(200):
        assert random_box(ours, *size) == torchvision_box(theirs, *size)


def test_boxes_lie_in_the_image_and_have_the_allowed_areas_and_ratios():
    rng = np.random.default_rng(0)
    left, top, w, h = np.array([random_box(rng, 500, 375) for _ in range(4000)]).T
    assert (left.min(), top.min()) == (0, 0)
    assert ((left + w).max(), (top + h).max()) == (500, 375)
    area, ratio = w * h / (500 * 375), w / h
    assert 0.078 < area.min() < 0.09
    assert 0.97 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.35
    # The mean is below that of the uniform distribution, 0.54: boxes that do not fit are large.
    assert 0.4 < area.mean() < 0.54
    assert abs(np.log(ratio).mean()) < 0.05


def test_the_training_view_is_the_resized_box(images):
    for i, size in enumerate(SIZES):
        left, top, w, h = torchvision_box(np.random.default_rng(i), *size)
        crop = Image.fromarray(picture(*size)[top : top + h, left : left + w])
        expected = np.asarray(crop.resize((14, 14), Image.Resampling.BILINEAR))
        view, _ = images.random_view(i, np.random.default_rng(i))
        np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize("size", SIZES)
def test_the_evaluation_view_is_the_centre_of_the_resized_image(images, size):
    width, height = size
    short = min(width, height)  # becomes 14 * 256 / 224 = 16; the long side keeps the ratio
    width, height = (16 if n == short else int(16 * n / short) for n in (width, height))
    left, top = round((width - 14) / 2), round((height - 14) / 2)
    whole = Image.fromarray(picture(*size)).resize((width, height), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((left, top, left + 14, top + 14)))
    np.testing.assert_array_equal(np.asarray(images)[SIZES.index(size)], expected)


@pytest.mark.parametrize(("size", "short"), [(224, 256), (32, 37), (64, 73)])
def test_an_image_with_a_short_side_of_256_of_224_is_cropped_only(size, short):
    image = picture(short + 10, short)
    left, top = round((short + 10 - size) / 2), round((short - size) / 2)
    view = central_view(Image.fromarray(image), size)
    np.testing.assert_array_equal(view, image[top : top + size, left : left + size])


def test_images_are_decoded_when_they_are_read(images, monkeypatch):
    decoded = []

    def recorded(image, size, **options):
        decoded.append(image.size)
        return central_view(image, size, **options)

    monkeypatch.setattr(lazy_images, "central_view", recorded)
    part = images[1:4][np.array([2, 0])]
    assert (images.shape, part.shape, len(part)) == ((5, 14, 14, 3), (2, 14, 14, 3), 2)
    assert (part.dtype, part.ndim) == (np.uint8, 4)
    assert not decoded
    views = np.asarray(part)
    assert sorted(decoded) == sorted([SIZES[3], SIZES[1]])
    np.testing.assert_array_equal(views, np.asarray(images)[[3, 1]])
    np.testing.assert_array_equal(part[0], views[0])
    assert np.asarray(part, np.float32).dtype == np.float32
    assert np.asarray(images[5:]).shape == (0, 14, 14, 3)


@pytest.mark.parametrize("kind", ["L", "RGBA", "CMYK", "P"])
def test_every_kind_of_image_becomes_rgb(kind):
    image, file = Image.fromarray(picture(20, 20)).convert(kind), io.BytesIO()
    image.save(file, "TIFF")
    view = LazyImages([file.getvalue()], 14, "")[0]
    expected = image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(view, np.asarray(expected)[1:15, 1:15])


def test_arrays_are_resized_too():
    grey = np.stack([picture(20, 24, 1)] * 2)
    views = np.asarray(LazyImages(grey, 14, ""))
    colour = np.asarray(LazyImages(np.repeat(grey, 3, axis=-1), 14, ""))
    np.testing.assert_array_equal(views, colour)


def test_a_damaged_image_is_named(files, encoded):
    truncated = encoded(picture(40, 40), "JPEG").getvalue()[:200]
    images = LazyImages([*files[:3], truncated, b""], 14, "dataset birds, train")
    for read in (
        lambda: np.asarray(images[3:4]),
        lambda: images[2:].random_view(1, np.random.default_rng(0)),
    ):
        with pytest.raises(
            InputError, match="^dataset birds, train: image 3 cannot be decoded: .*Error"
        ):
            read()
    with pytest.raises(InputError, match="image 4 cannot be decoded"):
        np.asarray(images[4:])


def test_the_checksum_is_of_the_stored_bytes_of_at_most_64_images(files):
    many = [bytes([i % 256]) * 3 for i in range(1000)]  # never decoded: these are no images
    images = LazyImages(many, 14, "")
    sample = many[::16]
    assert len(sample) == 63
    assert images.checksum() == zlib.crc32(b"".join(sample))
    assert images[::2].checksum() == zlib.crc32(b"".join(many[::2][::8]))
    assert LazyImages(files, 14, "").checksum() == LazyImages(files, 99, "other").checksum()
    arrays = [picture(8, 9), picture(7, 9, 1)]
    assert LazyImages(arrays, 14, "").checksum() == zlib.crc32(b"".join(map(bytes, arrays)))


class Failing(list):
    """Image files, one of which cannot be read."""

    def __init__(self, files, error):
        super().__init__(files)
        self._error = error

    def __getitem__(self, index):
        if index == 1:
            raise self._error
        return super().__getitem__(index)


def test_damage_is_told_from_failures_that_may_pass(files):
    damaged, unplugged = (
        LazyImages(Failing(files, error), 14, "birds")
        for error in (RuntimeError("hash mismatch"), OSError("timed out"))
    )
    with pytest.raises(UndecodableImageError, match="birds: image 1 cannot .*: hash mismatch"):
        np.asarray(damaged)
    assert damaged.checksum() == zlib.crc32(b"".join([files[0], *files[2:]]))
    for read in (LazyImages.checksum, np.asarray):
        with pytest.raises(InputError, match="birds: image 1 cannot .*: timed out") as raised:
            read(unplugged)
        assert raised.type is InputError
