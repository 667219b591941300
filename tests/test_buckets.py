"""Paths in a bucket: what they do equals what pathlib does on a disk."""

import pathlib

import pytest

from sdd_jax import buckets
from sdd_jax.buckets import BucketError, BucketPath
from sdd_jax.errors import InputError
from sdd_jax.paths import given_path, is_file


def test_parts_of_a_path_are_those_of_pathlib(tmp_path):
    path = BucketPath("gs://name/a/b.txt")
    assert (str(path), path.name, path.stem) == ("gs://name/a/b.txt", "b.txt", "b")
    assert (str(path.parent / "c"), str(path.with_name("d"))) == ("gs://name/a/c", "gs://name/a/d")
    assert path.absolute() == path == BucketPath("gs://name", "a") / "b.txt"
    assert type(path.parent) is type(path / "x") is BucketPath


def everything(folder):
    """What each method says of a small folder."""
    (folder / "a").mkdir(parents=True, exist_ok=True)
    (folder / "a" / "one.txt").write_bytes(b"1")
    (folder / "a" / "two.npy").write_bytes(b"zwei\n")
    (folder / "a" / "one.txt").write_bytes(b"uno")
    said = {
        "folder": [(folder / "a").exists(), (folder / "a").is_dir(), is_file(folder / "a")],
        "file": [
            f(folder / "a" / "one.txt") for f in (type(folder).exists, type(folder).is_dir, is_file)
        ],
        "none": [f(folder / "none") for f in (type(folder).exists, type(folder).is_dir, is_file)],
        "names": sorted(p.name for p in (folder / "a").iterdir()),
        "glob": [str(p.relative_to(folder)) for p in folder.glob("*/*.npy")],
        "text": (folder / "a" / "two.npy").read_text(encoding="utf-8"),
        "size": (folder / "a" / "one.txt").stat().st_size,
    }
    with (folder / "a" / "one.txt").open("rb") as file:
        said["read"] = [file.read(1), file.read()]
    (folder / "a" / "one.txt").rename(folder / "a" / "three")
    said["renamed"] = sorted(p.name for p in (folder / "a").iterdir())
    (folder / "a").rename(folder / "b")
    said["renamed folder"] = sorted(p.name for p in (folder / "b").iterdir())
    for path in (folder / "b").iterdir():
        path.unlink()
    (folder / "b" / "none").unlink(missing_ok=True)
    for method in ("read_bytes", "unlink"):
        with pytest.raises(FileNotFoundError):
            getattr(folder / "none", method)()
    return said


def test_methods_say_what_those_of_pathlib_say(bucket, tmp_path):
    assert everything(given_path(bucket[0], field="f")) == everything(tmp_path)


def test_a_new_object_is_written_by_one_of_two(bucket):
    path = given_path(bucket[0], field="f") / "lock"
    path.write_bytes(b"first", new=True)
    with pytest.raises(FileExistsError):
        path.write_bytes(b"second", new=True)
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("path", ["s3://b/r", "file:///tmp/run", "gs:/b/r", "gs://"])
def test_other_remote_paths_are_refused(path):
    with pytest.raises(InputError, match=f"--workdir: must be .*gs://BUCKET/..., got '{path}'"):
        given_path(path, field="--workdir")


def test_without_gcsfs_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--workdir: gs://b/r needs: pip install .*\[gcs\]"):
        given_path("gs://b/r", field="--workdir")


def test_a_relative_path_begins_at_the_given_folder(tmp_path):
    below = BucketPath("gs://b/data")
    assert given_path("x.npz", field="f", below=below) == BucketPath("gs://b/data/x.npz")
    assert given_path(tmp_path, field="f", below=below) == tmp_path
    assert given_path("gs://c/x", field="f", below=tmp_path) == BucketPath("gs://c/x")
    assert given_path("x", field="f", below=pathlib.Path("y")) == pathlib.Path("y/x")


def test_errors_of_the_libraries_below_are_bucket_errors():
    import aiohttp
    from google.auth.exceptions import DefaultCredentialsError

    for error in (aiohttp.ServerDisconnectedError(), DefaultCredentialsError("none\nfound")):
        with pytest.raises(BucketError) as raised, buckets.failing_as_on_disk():
            raise error
        assert type(error).__name__ in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(KeyError), buckets.failing_as_on_disk():
        raise KeyError
