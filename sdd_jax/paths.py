"""Paths that a user gives: a home folder is expanded, and ``gs://`` is a bucket."""

import importlib.util
import os
import pathlib
import re

from sdd_jax.buckets import BucketPath
from sdd_jax.errors import InputError, require
from sdd_jax.extras import pip_command

Path = pathlib.Path | BucketPath


def is_remote(path: str | os.PathLike) -> bool:
    """True for ``SCHEME://...``, such as gs://, s3:// and file://."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)) is not None


def given_path(path: str | os.PathLike, *, field: str, below: Path | None = None) -> Path:
    """The path, in a bucket if it begins with ``gs://``; else with ``~`` expanded.

    Args:
      path: path of a file or folder.
      field: the input that it comes from, for messages.
      below: the folder that a relative path begins at; None: the current one.

    Raises:
      InputError: another kind of remote path, or the extra "gcs" is not installed.
    """
    if not os.fspath(path).startswith("gs://"):
        require(
            not is_remote(path),
            field,
            os.fspath(path),
            "on a local or mounted disk, or gs://BUCKET/...",
        )
        local = pathlib.Path(os.path.expanduser(path))
        return local if below is None or local.is_absolute() else below / local
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"{os.fspath(path)} needs: {pip_command('gcs')}", field=field)
    require(os.fspath(path) != "gs://", field, os.fspath(path), "gs://BUCKET/...")
    return BucketPath(path)


def cache_folder(path: str = "") -> pathlib.Path:
    """The folder of caches; ``$XDG_CACHE_HOME/sdd_jax`` or ``~/.cache/sdd_jax`` for an empty path.

    Raises:
      InputError: the path is remote.
    """
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "sdd_jax")
    return local_path(path or default, field="cache_dir")


def is_file(path: Path) -> bool:
    """True for a file; False also for a name that no file can have."""
    return path.is_file() if isinstance(path, BucketPath) else os.path.isfile(path)


def local_path(path: str | os.PathLike, *, field: str) -> pathlib.Path:
    """The path, with ``~`` expanded, of what must be on a disk.

    Args:
      path: path of a file or folder.
      field: the input that it comes from, for messages.

    Raises:
      InputError: the path is remote. As a local path it would name a folder such as ``gs:``.
    """
    require(not is_remote(path), field, os.fspath(path), "on a local or mounted disk")
    return pathlib.Path(os.path.expanduser(path))
