"""Images of any size: their two views, against Pillow and torchvision's rule written out."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from sdd_jax import config as base
from sdd_jax import data
from sdd_jax.data import stored
from sdd_jax.errors import InputError

SIZES = [(40, 30), (30, 41), (33, 33), (90, 20), (16, 64)]


def picture(width, height, channels=3):
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / (3 + c)) * np.cos(y / (5 - c)) for c in range(channels)]
    return np.stack(waves, -1).astype(np.uint8)


def file(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


FILES = [file(picture(*size)) for size in SIZES]


def images(size=14):
    return stored.StoredImages(FILES, size, "dataset made, train")


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
def test_boxes_are_torchvisions_given_the_same_random_numbers(size):
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(200):
        assert stored.random_box(ours, *size) == torchvision_box(theirs, *size)


def test_boxes_lie_in_the_image_and_keep_to_the_areas_and_ratios():
    rng = np.random.default_rng(0)
    left, top, w, h = np.array([stored.random_box(rng, 500, 375) for _ in range(4000)]).T
    assert (left.min(), top.min()) == (0, 0)
    assert ((left + w).max(), (top + h).max()) == (500, 375)
    share, ratio = w * h / (500 * 375), w / h
    assert 0.078 < share.min() < 0.09
    assert 0.97 < share.max() <= 1
    assert 0.74 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.35
    # Before boxes that do not fit are drawn again the share is uniform: 0.54. Those are large ones.
    assert 0.4 < share.mean() < 0.54
    assert abs(np.log(ratio).mean()) < 0.05


def test_the_training_view_is_the_box_resized_by_pillow():
    for place, size in enumerate(SIZES):
        left, top, w, h = torchvision_box(np.random.default_rng(place), *size)
        crop = Image.fromarray(picture(*size)[top : top + h, left : left + w])
        expected = np.asarray(crop.resize((14, 14), Image.Resampling.BILINEAR))
        found = images().random_view(place, np.random.default_rng(place))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", SIZES)
def test_the_test_view_is_the_middle_of_the_resized_image(size):
    width, height = size
    short = min(width, height)  # becomes 14 * 256 / 224 = 16; the long side keeps the ratio
    width, height = (16 if n == short else int(16 * n / short) for n in (width, height))
    left, top = round((width - 14) / 2), round((height - 14) / 2)
    whole = Image.fromarray(picture(*size)).resize((width, height), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((left, top, left + 14, top + 14)))
    np.testing.assert_array_equal(np.asarray(images())[SIZES.index(size)], expected)


def test_short_sides_are_256_of_224():
    assert [round(size * stored.RESIZED) for size in (224, 32, 64)] == [256, 37, 73]


def test_an_array_that_decodes_when_it_is_looked_at(monkeypatch):
    decoded = []
    central = stored.central_view
    monkeypatch.setattr(stored, "central_view", lambda *a: decoded.append(a[0].size) or central(*a))
    whole = images()
    part = whole[1:4][np.array([2, 0])]
    assert (whole.shape, part.shape, len(part)) == ((5, 14, 14, 3), (2, 14, 14, 3), 2)
    assert part.dtype == np.uint8
    assert not decoded
    two = np.asarray(part)
    assert sorted(decoded) == sorted([SIZES[3], SIZES[1]])
    np.testing.assert_array_equal(two, np.asarray(whole)[[3, 1]])
    np.testing.assert_array_equal(part[0], two[0])
    assert np.asarray(whole[5:]).shape == (0, 14, 14, 3)


@pytest.mark.parametrize("kind", ["L", "RGBA", "CMYK", "P"])
def test_every_kind_of_image_becomes_rgb(kind):
    image = Image.fromarray(picture(20, 20)).convert(kind)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    view = np.asarray(stored.StoredImages([buffer.getvalue()], 14, "made"))
    expected = image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(view[0], np.asarray(expected)[1:15, 1:15])


def test_images_in_memory_are_resized_too():
    grey = np.stack([picture(20, 24, 1)] * 2)
    view = np.asarray(stored.StoredImages(grey, 14, "made"))
    assert view.shape == (2, 14, 14, 3)
    np.testing.assert_array_equal(view[..., 0], view[..., 2])


def test_a_damaged_image_is_named():
    files = [*FILES[:3], file(picture(40, 40), "JPEG")[:200], b"", *FILES[3:]]
    broken = stored.StoredImages(files, 14, "dataset made, train")
    for view in (
        lambda: np.asarray(broken[3:4]),
        lambda: broken[2:].random_view(1, np.random.default_rng(0)),
    ):
        with pytest.raises(
            InputError, match="dataset made, train: image 3 cannot be decoded: .*Error"
        ) as error:
            view()
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="image 4 cannot be decoded"):
        np.asarray(broken[4:])


def options(**changes):
    config = base.default().dataset
    config.update({"name": "digits", "image_size": 14, "mean": (0.5,) * 3, "std": (0.2,) * 3})
    config.update(changes)
    return config


def test_a_validation_split_is_cut_without_decoding(monkeypatch):
    monkeypatch.setattr(stored.StoredImages, "__array__", lambda *_: pytest.fail("decoded"))
    dataset = data.load(options(validation=0.2))
    whole = data.load(options())
    assert dataset.image_shape == (14, 14, 3)
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert len(train) + len(validation) == len(whole.splits["train"])
    monkeypatch.undo()
    plain = data.load(options(image_size=0, mean=(), std=(), validation=0.2))
    np.testing.assert_array_equal(validation.labels, plain.splits["validation"].labels)
    expected = stored.StoredImages(plain.splits["validation"].images[:5], 14, "")
    np.testing.assert_array_equal(np.asarray(validation.images[:5]), np.asarray(expected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mean": ()},
            "config.dataset.mean: must be 3 numbers where config.dataset.image_size is set",
        ),
        ({"std": (0.2,)}, "config.dataset.std: must be 3 numbers where"),
        ({"std": (0.2, 0.2, 0.0)}, "config.dataset.std: must be greater than 0"),
        ({"image_size": -1}, "config.dataset.image_size: must be 0 or more, got -1"),
    ],
)
def test_unusable_options_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        data.load(options(**changes))


def test_another_set_is_read_in_the_same_size():
    other = data.load_other("photos", options())
    assert other.image_shape == (14, 14, 3)
    plain = data.load_other("photos", options(image_size=0))
    assert plain.image_shape == (32, 32, 3)
