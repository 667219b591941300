"""Embedded images and npz files. TensorFlow Datasets have a file of their own."""

import io
import os
import zipfile

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


def arrays(**replaced):
    """A small data set whose pixels do not compress."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
    images, labels = {"train_images": pixels, "test_images": pixels[:5]}, np.arange(12) % 3
    return images | {"train_labels": labels, "test_labels": labels[:5]} | replaced


def with_member(name, content, kind=zipfile.ZIP_STORED):
    """An npz file with other contents of one member."""
    file = io.BytesIO(saved(np.savez, **{k: v for k, v in arrays().items() if k != name}))
    with zipfile.ZipFile(file, "a", kind) as archive:
        archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(shape, content=bytes(60), dtype="|u1"):
    """An npy file whose header states any shape and type."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


COMPRESSED = saved(np.savez_compressed, **arrays())
UNREADABLE = {
    "empty": b"",
    "cut": COMPRESSED[:300],
    "overwritten": COMPRESSED[:80] + bytes(20) + COMPRESSED[100:],
    "an array without an archive": saved(np.save, arr=np.arange(3)),
    "such an array beyond memory": npy((2**60, 1)),
    "2**60 elements": with_member("train_images", npy((2**60, 1))),
    "2**60 elements, compressed": with_member("train_labels", npy((2**60,)), zipfile.ZIP_DEFLATED),
    "2**40 elements": with_member("train_images", npy((2**10, 2**10, 2**10, 2**10))),
    "elements missing": with_member("train_images", npy((9, 3, 3))),
    "elements left over": with_member("train_images", npy((5, 3, 3))),
    "no tuple": with_member("train_images", npy("(1,")),
    "negative": with_member("train_images", npy((-4, -15))),
    "objects": with_member("train_images", npy((1,), b"\x80\x04N.....", "|O")),
    "a future version": with_member("train_images", b"\x93NUMPY\x09\x00" + npy((60,))[8:]),
    "an empty member": with_member("test_labels", b""),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_files_that_are_not_readable_npz_are_refused(tmp_path, content):
    (tmp_path / "arrays.npz").write_bytes(content)
    with pytest.raises(InputError, match="^name: .*arrays.npz' is not a readable npz file: ."):
        data.load(name=f"npz:{tmp_path / 'arrays.npz'}")


def test_arrays_beyond_memory_are_refused_before_they_are_read(tmp_path, npz, monkeypatch):
    name = npz()
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("read"))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2, "SC_PAGE_SIZE": 1000}.get)
    with pytest.raises(InputError, match="its arrays have .* more than the 2000 of this machine"):
        data.load(name=name)


def damaged(content, rng):
    """The content with one to three bytes changed, removed or added, or cut."""
    kind, start = rng.integers(4), int(rng.integers(len(content)))
    if kind == 3:
        return content[:start]
    stop, added = start + int(rng.integers(1, 4)), rng.bytes(rng.integers(1, 4))
    return content[:start] + (b"", added, added)[kind] + content[(stop, start, stop)[kind] :]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [200, pytest.param(3000, marks=pytest.mark.faults)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_to_a_file_is_one_line_or_leaves_valid_arrays(tmp_path, save, count):
    rng, content = np.random.default_rng(count), saved(save, **arrays())
    path, messages = tmp_path / "arrays.npz", []
    for _ in range(count):
        path.write_bytes(damaged(content, rng))
        try:
            data.load(name=f"npz:{path}")
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > count / 2
    assert not [message for message in messages if len(message.splitlines()) != 1]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": "npz:s3://bucket/arrays.npz"}, "name"),
        ({"name": "npz:arrays.npz", "data_dir": "s3://bucket/data"}, "data_dir"),
        ({"name": "cifar10", "data_dir": "file:///data"}, "data_dir"),
        ({"name": "cifar10", "cache_dir": "gs://bucket/cache"}, "cache_dir"),
    ],
)
def test_remote_paths_are_refused(options, field):
    with pytest.raises(InputError, match=f"^{field}: must be on a local or mounted disk,? .*got '"):
        data.load(**options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("npz:/nowhere.npz", "there is no file '/nowhere.npz'"),
        ("npz:" + "x" * 5000, "there is no file 'xxx"),
        (
            "nope",
            "must be digits, photos, scenes, npz:PATH, coco:PATH, hf:NAME or a data set known to tfds, "
            "got 'nope'",
        ),
        ("x" * 5000, "must be digits, photos, .*xxx"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(InputError, match=f"^name: {message}"):
        data.load(name=name)
