"""Files that are replaced atomically, and locks. Links are replaced, or refused, but not followed."""

import contextlib
import errno
import logging
import os
import pathlib
import re
import secrets
from collections.abc import Iterator

from sdd_jax.errors import writing

try:
    import fcntl
except ImportError:  # Windows has no flock: a second process is not kept away there
    fcntl = None

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial")  # names of files that are being written

_logger = logging.getLogger(__name__)


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file by UTF-8 text, see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file atomically: a reader sees the old content or all of the new one.

    The new content is written to a new file beside it. A link is replaced; its target stays as it is.

    Raises:
      WriteError: the file cannot be written; the old content is still there.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with writing(path):
        try:
            with open(partial, "xb", opener=_not_following) as file:
                file.write(content)
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def locked(path: pathlib.Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock, and removes what killed writers left beside it.

    The kernel releases the lock when the process ends, however it ends. A file system without locks is
    used with a warning.

    Args:
      path: the lock file, created if necessary, in the folder that it stands for.
      wait: whether to wait for another process that holds the lock.

    Raises:
      BlockingIOError: another process holds the lock, without ``wait``.
      WriteError: the lock file cannot be opened, or is a link.
    """
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


def _remove_partial_files(folder: pathlib.Path) -> None:
    for partial in folder.iterdir():
        if _PARTIAL.fullmatch(partial.name):
            with writing(partial):
                partial.unlink(missing_ok=True)


def _not_following(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
