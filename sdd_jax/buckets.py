"""Paths in a bucket of Google Cloud Storage, with the methods of :class:`pathlib.Path`.

A bucket holds whole objects: no folders, no links, no rename, no append, no locks. A folder is there as
long as an object has its name as a prefix.
"""

import contextlib
import functools
import logging
import pathlib
import posixpath
import types
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any


@functools.cache
def storage() -> Any:
    """The file system of gcsfs."""
    import fsspec.config

    # A listing that is kept would not show what other hosts, and Orbax, have written.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    # What fails is raised; gcsfs logs it too, with its traceback.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    return fsspec.filesystem("gcs")


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    """What the libraries that reach a bucket raise beside an ``OSError``."""
    import aiohttp
    import gcsfs.retry
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return aiohttp.ClientError, gcsfs.retry.HttpError, GoogleAPIError, GoogleAuthError


class BucketError(OSError):
    """A bucket cannot be reached, or refuses."""


@contextlib.contextmanager
def failing_as_on_disk() -> Iterator[None]:
    """Raises a :class:`BucketError` for whatever goes wrong between here and the bucket."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _errors()):
            raise
        raise BucketError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def _in_bucket(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with failing_as_on_disk():
            return method(self, *args, **kwargs)

    return wrapped


def _status(info: Mapping[str, Any]) -> types.SimpleNamespace:
    seconds = info["mtime"].timestamp()
    return types.SimpleNamespace(
        st_size=info["size"], st_mtime=seconds, st_mtime_ns=int(seconds * 1e9)
    )


class BucketPath(pathlib.PurePosixPath):
    """A path ``gs://BUCKET/...``.

    What fails raises an ``OSError``, as on a disk: a ``FileNotFoundError`` or :class:`BucketError`.

    (Those of etils.epath, which Orbax uses, raise the errors of the libraries below.)
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> "BucketPath":
        """The path itself."""
        return self

    @_in_bucket
    def exists(self) -> bool:
        """True for an object, and for a prefix of objects."""
        return storage().exists(str(self))

    @_in_bucket
    def is_dir(self) -> bool:
        """True for a prefix of objects."""
        return storage().isdir(str(self))

    @_in_bucket
    def is_file(self) -> bool:
        """True for an object."""
        return storage().isfile(str(self))

    def is_symlink(self) -> bool:
        """False: a bucket has no links."""
        return False

    @_in_bucket
    def iterdir(self) -> Iterator["BucketPath"]:
        """The objects and folders in this folder."""
        names = [posixpath.basename(p) for p in storage().ls(str(self), detail=False)]
        return iter([self / name for name in names if name])

    @_in_bucket
    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """The objects that match."""
        found = storage().glob(f"{self}/{pattern}")
        return iter([BucketPath(f"gs://{path}") for path in found])

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: the first object of a folder makes it."""

    @_in_bucket
    def open(self, mode: str = "rb", **kwargs: Any) -> IO[bytes]:
        """Opens an object to read its bytes."""
        if mode != "rb":
            raise ValueError(f"mode must be 'rb', got {mode!r}")
        return storage().open(str(self), mode)

    @_in_bucket
    def read_bytes(self) -> bytes:
        """The content of an object."""
        return storage().cat_file(str(self))

    def read_text(self, encoding: str | None = None) -> str:
        """The content of an object as UTF-8 text."""
        return self.read_bytes().decode(encoding or "utf-8")

    @_in_bucket
    def write_bytes(self, data: bytes, *, new: bool = False) -> int:
        """Writes an object: a reader sees the old content or all of the new one.

        Args:
          data: the content.
          new: there must be no such object, whoever else writes at the same time.

        Raises:
          FileExistsError: there is such an object, with ``new``.
        """
        storage().pipe_file(str(self), data, mode="create" if new else "overwrite")
        return len(data)

    @_in_bucket
    def rename(self, target: "BucketPath") -> "BucketPath":
        """Copies the object or the objects of the folder, and then deletes them here."""
        storage().mv(str(self), str(target), recursive=True)
        return target

    @_in_bucket
    def objects(self) -> dict["BucketPath", types.SimpleNamespace]:
        """The objects below this folder, each with what :meth:`stat` says of it."""
        found = storage().find(str(self), detail=True)
        return {BucketPath(f"gs://{path}"): _status(info) for path, info in found.items()}

    @_in_bucket
    def stat(self) -> types.SimpleNamespace:
        """Size and time of an object, in the fields ``st_size``, ``st_mtime`` and ``st_mtime_ns``."""
        return _status(storage().info(str(self)))

    @_in_bucket
    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes an object."""
        with contextlib.suppress(*[FileNotFoundError] * missing_ok):
            storage().rm_file(str(self))
