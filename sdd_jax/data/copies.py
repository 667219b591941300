"""Copies on this machine's disk of folders in a bucket, for readers that need files."""

import hashlib
import json
import pathlib
import shutil
import tempfile

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
    try:
        objects = folder.objects()
        if not objects:
            raise InputError(f"there is no folder {str(folder)!r}", field=field)
        listing = [(str(path), x.st_size, x.st_mtime_ns) for path, x in objects.items()]
        digest = hashlib.sha256(json.dumps(sorted(listing)).encode()).hexdigest()[:16]
        copy = cache_folder(cache_dir) / "buckets" / digest / folder.name
        if not copy.is_dir():
            with writing(copy):
                _copy(folder, list(objects), copy)
    except BucketError as error:
        raise InputError(f"{folder} cannot be read: {error}", field=field) from error
    return copy


def _copy(folder: BucketPath, objects: list[BucketPath], copy: pathlib.Path) -> None:
    """Copies to a temporary folder and renames it, so that a copy is whole."""
    root = copy.parent.parent
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=root) as partial:
        for path in objects:
            file = pathlib.Path(partial, folder.name, path.relative_to(folder))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(path.read_bytes())
        try:
            shutil.move(partial, copy.parent)
        except OSError:
            if not copy.is_dir():  # else another process has copied the same
                raise
