"""Embedded images and npz files. TensorFlow Datasets have a file of their own."""

import io

import numpy as np
import pytest

from sdd_jax import data
from sdd_jax.errors import InputError


def test_digits_are_scikit_learns_each_in_one_split():
    from sklearn.datasets import load_digits

    dataset = data.load(name="digits")
    assert [len(split) for split in dataset.splits.values()] == [1437, 360]
    images = np.concatenate([split.images for split in dataset.splits.values()])
    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert images.dtype == np.uint8
    assert sorted(map(bytes, images)) == sorted(map(bytes, expected))


def test_photos_are_tiles_of_the_two_photographs_each_in_one_split():
    from sklearn.datasets import load_sample_images

    dataset = data.load(name="photos")
    assert dataset.image_shape == (32, 32, 3)
    tiles = [*map(bytes, dataset.splits["train"].images)]
    assert len(tiles) == 260
    tiles += map(bytes, dataset.splits["test"].images)
    assert len(set(tiles)) == len(tiles) == 520
    first, second = load_sample_images().images
    assert {first[32:64, 64:96].tobytes(), second[:32, :32].tobytes()} <= set(tiles)
    assert {*dataset.splits["test"].labels} == {0, 1}


def test_grey_npz_images_get_a_channel_axis(npz):
    train, test = np.ones((20, 6, 5), np.uint8), np.ones((7, 6, 5), np.uint8)
    dataset = data.load(name=npz(train_images=train, test_images=test))
    assert dataset.image_shape == (6, 5, 1)
    assert dataset.num_classes == 4


def test_an_npz_path_is_relative_to_data_dir(npz, tmp_path):
    whole = data.load(name=npz())
    dataset = data.load(name="npz:arrays.npz", data_dir=str(tmp_path))
    np.testing.assert_array_equal(dataset.splits["test"].images, whole.splits["test"].images)


def test_an_npz_file_must_hold_the_arrays_without_pickles(npz):
    with pytest.raises(InputError, match="^name: .* must hold .*; it lacks train_images"):
        data.load(name=npz(train_images=None))
    with pytest.raises(InputError, match="^name: .* is not a readable npz file"):
        data.load(name=npz(train_labels=np.array([object()] * 20)))


def saved(save, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


COMPRESSED = saved(np.savez_compressed, train_images=np.arange(1000))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        COMPRESSED[:300],
        COMPRESSED[:80] + bytes(20) + COMPRESSED[100:],
        saved(np.save, arr=np.arange(3)),  # an array without an archive
    ],
)
def test_files_that_are_not_readable_npz_are_refused(tmp_path, content):
    (tmp_path / "arrays.npz").write_bytes(content)
    with pytest.raises(InputError, match="^name: .*arrays.npz' is not a readable npz file"):
        data.load(name=f"npz:{tmp_path / 'arrays.npz'}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("npz:/nowhere.npz", "there is no file '/nowhere.npz'"),
        ("nope", "must be digits, photos, npz:PATH or a data set known to tfds, got 'nope'"),
        ("x" * 5000, "must be digits, photos, .*xxx"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(InputError, match=f"^name: {message}"):
        data.load(name=name)
