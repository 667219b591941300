"""Paths that a user gives: a home folder is expanded, a remote path is refused."""

import os
import pathlib
import re

from sdd_jax.errors import require


def is_remote(path: str | os.PathLike) -> bool:
    """True for ``SCHEME://...``, such as gs://, s3:// and file://."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)) is not None


def local_path(path: str | os.PathLike, *, field: str) -> pathlib.Path:
    """The path, with ``~`` expanded.

    Args:
      path: path of a file or folder.
      field: the input that it comes from, for messages.

    Raises:
      InputError: the path is remote. As a local path it would name a folder such as ``gs:``.
    """
    require(not is_remote(path), field, os.fspath(path), "on a local or mounted disk")
    return pathlib.Path(os.path.expanduser(path))
