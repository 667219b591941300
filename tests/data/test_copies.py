"""Data in a bucket: read there, or from a copy on this machine's disk."""

import pathlib

import numpy as np
import pytest

from sdd_jax import data
from sdd_jax.buckets import BucketError, BucketPath
from sdd_jax.data.copies import on_disk, written_whole
from sdd_jax.errors import InputError
from sdd_jax.paths import given_path


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        f"{split}_{kind}": array
        for split, count in (("train", 20), ("test", 10))
        for kind, array in (
            ("images", rng.integers(0, 256, (count, 8, 8, 1), np.uint8)),
            ("labels", np.arange(count) % 5),
        )
    }


def upload(folder, url):
    for path in folder.rglob("*"):
        if path.is_file():
            (given_path(url, field="f") / path.relative_to(folder)).write_bytes(path.read_bytes())


@pytest.mark.parametrize("below", [False, True])
def test_an_npz_file_is_read_in_the_bucket(bucket, tmp_path, arrays, below):
    np.savez(tmp_path / "arrays.npz", **arrays)
    np.save(tmp_path / "labels.npy", arrays["train_labels"][::-1])
    upload(tmp_path, bucket[0])
    options = {"data_dir": bucket[0]} if below else {}
    name, labels = ((x if below else f"{bucket[0]}/{x}") for x in ("arrays.npz", "labels.npy"))
    ours = data.load(name=f"npz:{name}", train_labels=labels, **options)
    theirs = data.load(name=f"npz:{tmp_path}/arrays.npz")
    for split in ("train", "test"):
        np.testing.assert_array_equal(ours.splits[split].images, theirs.splits[split].images)
    np.testing.assert_array_equal(ours.splits["train"].labels, theirs.splits["train"].labels[::-1])
    with pytest.raises(InputError, match=f"name: there is no file '{bucket[0]}/none.npz'"):
        data.load(name=f"npz:{bucket[0]}/none.npz")


def test_a_folder_is_copied_once_and_again_when_it_changes(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = given_path(bucket[0], field="f") / "folder"
    (folder / "a" / "one").write_bytes(b"1")
    (folder / "two").write_bytes(b"2")
    copy = on_disk(folder, field="f")
    assert (copy.name, copy.parent.parent) == ("folder", tmp_path / "sdd_jax" / "buckets")
    assert (copy / "a" / "one").read_bytes() == b"1"
    assert (copy / "two").read_bytes() == b"2"
    written = (copy / "two").stat().st_mtime_ns
    assert on_disk(folder, field="f") == copy
    assert (copy / "two").stat().st_mtime_ns == written
    (folder / "two").write_bytes(b"22")
    other = on_disk(folder, field="f", cache_dir=str(tmp_path / "other"))
    assert (other / "two").read_bytes() == b"22"
    assert tmp_path / "other" in other.parents
    assert on_disk(tmp_path, field="f") == tmp_path
    with pytest.raises(InputError, match="f: there is no folder 'gs://"):
        on_disk(folder / "none", field="f")
    (folder / "two").write_bytes(b"222")
    with monkeypatch.context() as patch:
        patch.setattr(
            BucketPath, "read_bytes", lambda self: (_ for _ in ()).throw(BucketError("away"))
        )
        with pytest.raises(InputError, match="f: gs://.*/folder cannot be read: away"):
            on_disk(folder, field="f")
    assert not list((tmp_path / "sdd_jax" / "buckets").glob("*/partial-*"))


def test_a_folder_that_another_process_has_written_meanwhile_stays(tmp_path):
    with written_whole(tmp_path / "folder") as partial:
        (partial / "file").write_text("ours")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_text("theirs")
    assert (tmp_path / "folder" / "file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_tfds_reads_a_folder_in_a_bucket(bucket, photographs, tmp_path):
    upload(pathlib.Path(photographs), bucket[0])
    size = {"image_size": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    options = {"name": "tiny_birds", "cache_dir": str(tmp_path), **size}
    ours = data.load(**options, data_dir=bucket[0])
    theirs = data.load(**options, data_dir=photographs)
    for split in ("train", "test"):
        np.testing.assert_array_equal(ours.splits[split].labels, theirs.splits[split].labels)
        np.testing.assert_array_equal(ours.splits[split].images[3], theirs.splits[split].images[3])
