"""Folders of the cache: written whole, and copies of folders in a bucket for readers that need files."""

import contextlib
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Iterator

from sdd_jax.buckets import BucketError, BucketPath
from sdd_jax.errors import InputError, writing
from sdd_jax.paths import Path, cache_folder


def on_disk(folder: Path, *, field: str, cache_dir: str = "") -> pathlib.Path:
    """The folder, or its copy if it is in a bucket; a later call finds the copy.

    Args:
      folder: a folder; in a bucket, all objects below it are copied.
      field: the input that it comes from, for messages.
      cache_dir: see :func:`sdd_jax.paths.cache_folder`; copies are in its folder ``buckets``.

    Raises:
      InputError: there is no such folder in the bucket, or it cannot be read.
      WriteError: the copy cannot be written.
    """
    if not isinstance(folder, BucketPath):
        return folder
    cache = cache_folder(cache_dir) / "buckets"
    with writing(cache):
        try:
            return _copy(folder, cache, field)
        except BucketError as error:
            raise InputError(f"{folder} cannot be read: {error}", field=field) from error


def _copy(folder: BucketPath, cache: pathlib.Path, field: str) -> pathlib.Path:
    objects = folder.objects()
    if not objects:
        raise InputError(f"there is no folder {str(folder)!r}", field=field)
    listing = [(str(path), x.st_size, x.st_mtime_ns) for path, x in objects.items()]
    digest = hashlib.sha256(json.dumps(sorted(listing)).encode()).hexdigest()[:16]
    copy = cache / digest / folder.name
    if not copy.is_dir():
        with written_whole(copy) as partial:
            for path in objects:
                file = partial / path.relative_to(folder)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(path.read_bytes())
    return copy


@contextlib.contextmanager
def written_whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder to fill, which is then renamed: readers never see part of ``folder``.

    What another process has written there meanwhile stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder.parent) as temporary:
        partial = pathlib.Path(temporary, folder.name)
        partial.mkdir()
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
