"""Data sets: what is read, what is cached, and what bad input gets."""

import pathlib

import numpy as np
import pytest

from sdd_jax import config as base
from sdd_jax import data
from sdd_jax.errors import InputError


def options(**changes):
    config = base.default().dataset
    config.update(changes)
    return config


def write_npz(path: pathlib.Path, **changes) -> str:
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8),
        "train_labels": np.arange(20) % 4,
        "test_images": rng.integers(0, 256, (7, 6, 5, 3), dtype=np.uint8),
        "test_labels": np.arange(7) % 4,
    } | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return f"npz:{path}"


def test_digits_are_scikit_learns_with_every_image_in_one_split():
    from sklearn.datasets import load_digits

    dataset = data.load(options(name="digits"))
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 1437, "test": 360}
    images = np.concatenate([s.images for s in dataset.splits.values()])
    expected = load_digits().images
    assert images.dtype == np.uint8
    assert sorted(map(bytes, images)) == sorted(
        np.round(i * 255 / 16).astype(np.uint8).tobytes() for i in expected
    )


def test_validation_split_is_stratified_disjoint_and_independent_of_the_seed():
    whole = data.load(options(name="digits"))
    cut = data.load(options(name="digits", validation=0.2))
    train, validation = cut.splits["train"], cut.splits["validation"]
    assert len(train) + len(validation) == len(whole.splits["train"])
    counts = np.bincount(whole.splits["train"].labels)
    np.testing.assert_array_equal(np.bincount(validation.labels), np.round(0.2 * counts))
    both = sorted(map(bytes, np.concatenate([train.images, validation.images])))
    assert both == sorted(map(bytes, whole.splits["train"].images))
    np.testing.assert_array_equal(cut.splits["test"].images, whole.splits["test"].images)


def test_a_few_examples_of_each_class_are_the_same_with_and_without_validation():
    few = data.load(options(name="digits", examples_per_class=7))
    cut = data.load(options(name="digits", examples_per_class=7, validation=0.2))
    train = few.splits["train"]
    np.testing.assert_array_equal(np.bincount(train.labels), [7] * 10)
    assert set(few.splits) == {"train", "test"}
    np.testing.assert_array_equal(cut.splits["train"].images, train.images)
    whole = data.load(options(name="digits", validation=0.2)).splits
    for split in ("validation", "test"):
        np.testing.assert_array_equal(cut.splits[split].images, whole[split].images)
    members = set(map(bytes, whole["train"].images))
    assert all(bytes(image) in members for image in train.images)


def test_normalisation_constants_come_from_the_training_images_or_the_config(tmp_path):
    name = write_npz(tmp_path / "a.npz")
    dataset = data.load(options(name=name))
    pixels = dataset.splits["train"].images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-5)
    given = data.load(options(name=name, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)))
    np.testing.assert_allclose(given.mean, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(given.std, [1, 2, 3])


def test_npz_grey_images_get_a_channel_axis(tmp_path):
    name = write_npz(
        tmp_path / "a.npz",
        train_images=np.zeros((20, 6, 5), np.uint8),
        test_images=np.zeros((7, 6, 5), np.uint8),
    )
    dataset = data.load(options(name=name))
    assert dataset.image_shape == (6, 5, 1)
    assert dataset.num_classes == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, r"it lacks train_images"),
        ({"train_images": np.zeros((20, 6), np.uint8)}, r"train: images: must be \[N, H, W, C\]"),
        ({"test_images": np.zeros((7, 6, 5, 3), np.float32)}, r"test: images: .*uint8.*float32"),
        ({"test_images": np.zeros((7, 8, 5, 3), np.uint8)}, r"one size, got \(6, 5, 3\)"),
        ({"train_images": np.zeros((20, 6, 5, 2), np.uint8)}, r"of 1 or 3 channels"),
        ({"train_labels": np.arange(20) / 2}, r"train: labels: must be integers"),
        ({"train_labels": np.arange(19) % 4}, r"train: labels: must be 20"),
        ({"test_labels": np.arange(7)}, r"test: labels: must be in \[0, 4\), got 6"),
        ({"train_labels": np.arange(20) % 4 - 1}, r"train: labels: must be in \[0, 3\), got -1"),
        (
            {"test_images": np.zeros((0, 6, 5, 3), np.uint8), "test_labels": np.zeros(0, int)},
            r"test: images: must be at least one image",
        ),
        ({"train_labels": np.array([object()] * 20)}, r"not a readable npz file"),
    ],
)
def test_npz_with_unusable_arrays_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        data.load(options(name=write_npz(tmp_path / "a.npz", **changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "npz:/nowhere.npz"}, "there is no file '/nowhere.npz'"),
        (
            {"name": "no_such_set"},
            "config.dataset.name: must be digits, photos, npz:PATH or .*no_such_set",
        ),
        ({"validation": 1.0}, r"config.dataset.validation: must be in \[0, 1\), got 1.0"),
        ({"validation": 1e-6}, "leaves both splits an image"),
        ({"examples_per_class": -1}, "examples_per_class: must be 0 or more, got -1"),
        (
            {"examples_per_class": 120, "validation": 0.2},
            "examples_per_class: must be at most 113, the images of class 0 in train, got 120",
        ),
        (
            {"num_classes": 3},
            r"train: labels: must be in \[0, 3\), by config.dataset.num_classes, got 9",
        ),
        ({"num_classes": -1}, "config.dataset.num_classes: must be 0 or more, got -1"),
        ({"name": "x" * 5000}, "config.dataset.name: must be digits, .*xxx"),
        ({"mean": (0.1, 0.2)}, "config.dataset.mean: must be empty or 1 numbers"),
        ({"std": (0.0,)}, "config.dataset.std: must be greater than 0"),
    ],
)
def test_unusable_options_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        data.load(options(**changes))


def test_damaged_npz_is_refused(tmp_path):
    name = write_npz(tmp_path / "a.npz")
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="not a readable npz file"):
        data.load(options(name=name))


def test_photos_are_pieces_of_the_two_photographs_each_in_one_split():
    from sklearn.datasets import load_sample_images

    dataset = data.load(options(name="photos"))
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 260, "test": 260}
    assert dataset.image_shape == (32, 32, 3)
    pieces = {s.images[i].tobytes() for s in dataset.splits.values() for i in range(260)}
    assert len(pieces) == 520
    first, second = load_sample_images().images
    assert first[32:64, 64:96].tobytes() in pieces
    assert second[:32, :32].tobytes() in pieces
    assert {*dataset.splits["test"].labels} == {0, 1}
