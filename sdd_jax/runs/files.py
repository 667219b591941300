"""Files that are replaced atomically, and locks, on a disk and in a bucket.

Links are replaced, or refused, but not followed.
"""

import contextlib
import errno
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator

from sdd_jax.buckets import BucketPath
from sdd_jax.errors import writing
from sdd_jax.paths import Path
from sdd_jax.runs.leases import leased

try:
    import fcntl
except ImportError:  # Windows has no flock: a second process is not kept away there
    fcntl = None

INTERVAL = 30.0  # seconds between two writes of an object in place of a file that grows
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial")  # names of files that are being written

_logger = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Replaces a file by UTF-8 text, see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file atomically: a reader sees the old content or all of the new one.

    On a disk the new content is written to a new file beside it. A link is replaced; its target stays as
    it is.

    Raises:
      WriteError: the file cannot be written; the old content is still there.
    """
    if isinstance(path, BucketPath):
        with writing(path):
            path.write_bytes(content)
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with writing(path):
        try:
            with open(partial, "xb", opener=_not_following) as file:
                file.write(content)
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


class GrowingObject:
    """An object of a bucket in place of a file that grows: written whole, but not each time.

    Args:
      path: the object.
      content: returns its content now.
    """

    def __init__(self, path: BucketPath, content: Callable[[], bytes]):
        self._path, self._content = path, content
        self._pending, self._written = True, -math.inf

    def grown(self) -> None:
        """Writes the object, unless it was written in the last half minute.

        Raises:
          WriteError: it cannot be written.
        """
        self._pending = True
        if time.monotonic() - self._written >= INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending.

        Raises:
          WriteError: it cannot be written; it is then not pending any more.
        """
        if self._pending:
            self._pending = False
            write_bytes(self._path, self._content())
            self._written = time.monotonic()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock, and removes what killed writers left beside it.

    The kernel releases the lock when the process ends, however it ends. A file system without locks is
    used with a warning. In a bucket, the lock is a lease, see :func:`sdd_jax.runs.leases.leased`.

    Args:
      path: the lock file, created if necessary, in the folder that it stands for.
      wait: whether to wait for another process that holds the lock.

    Raises:
      BlockingIOError: another process holds the lock, without ``wait``.
      WriteError: the lock file cannot be opened, or is a link.
    """
    if isinstance(path, BucketPath):
        with leased(path, wait=wait):
            yield
        return
    with contextlib.ExitStack() as stack:
        with writing(path):
            file = stack.enter_context(open(path, "a", opener=_not_following))
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_partial_files(path.parent)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BlockingIOError(error.errno, error.strerror) from error
            _logger.warning(
                "%s cannot be locked (%s): a second process would not be kept away",
                path.parent,
                error.strerror,
            )
        yield


def _remove_partial_files(folder: Path) -> None:
    for partial in folder.iterdir():
        if _PARTIAL.fullmatch(partial.name):
            with writing(partial):
                partial.unlink(missing_ok=True)


def _not_following(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
