"""Leases: the locks of a bucket, which has none.

A lease is an object that its owner writes anew while it lives. Whoever finds it watches it: if it
changes, its owner lives; if it does not for a while, its owner is gone, and the lease is taken over. No
clocks are compared.
"""

import contextlib
import datetime
import json
import logging
import os
import pathlib
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from sdd_jax.buckets import BucketPath
from sdd_jax.errors import writing

RENEWED = 10.0  # seconds between two writes of the owner
EXPIRED = 60.0  # seconds without a write, after which the owner is taken to be gone
WATCHED = 1.0  # seconds between two looks at the lease of another

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def leased(path: BucketPath, *, wait: bool) -> Iterator[None]:
    """Holds a lease.

    Of an owner that was killed on this machine it is taken over at once, of one on another machine after
    a minute. Should two processes take it over at the same moment, the one that wrote first finds by
    :func:`owner` that it is not its own.

    Args:
      path: the object.
      wait: whether to wait for another process that holds the lease.

    Raises:
      BlockingIOError: another process holds the lease, without ``wait``.
      WriteError: the bucket cannot be written.
    """
    me = {
        "owner": secrets.token_hex(8),
        "host": platform.node(),
        "process": os.getpid(),
        "machine": machine(),
    }
    while not _taken(path, me):
        with writing(path):
            living = _watched(path, until_gone=wait)
        if living:
            raise BlockingIOError(f"{path} is held by {living}")
    done = threading.Event()
    renewal = threading.Thread(target=_renew, args=(path, me, done), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        done.set()
        renewal.join()
        with writing(path):
            if owner(path) == me["owner"]:
                path.unlink(missing_ok=True)


def owner(path: BucketPath) -> str | None:
    """The mark of the process that holds the lease; None if there is no lease."""
    return _read(path).get("owner")


def _content(me: dict[str, Any]) -> bytes:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps(me | {"renewed": now}).encode()


def _read(path: BucketPath) -> dict[str, Any]:
    try:
        lease = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # gone, or damaged
        return {}
    return lease if isinstance(lease, dict) else {}


def _renew(path: BucketPath, me: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(RENEWED):
        try:
            if owner(path) != me["owner"]:
                return  # taken over, which the run finds by itself
            path.write_bytes(_content(me))
        except OSError as error:  # perhaps of the moment; the run itself fails if it lasts
            _logger.warning("the lease %s cannot be renewed: %s", path, error)


def _taken(path: BucketPath, me: dict[str, Any]) -> bool:
    """Takes the lease, unless another process holds it."""
    with writing(path):
        try:
            path.write_bytes(_content(me), new=True)
        except FileExistsError:
            return False
    return True


def _watched(path: BucketPath, *, until_gone: bool) -> str:
    """Watches a lease, and removes it if its owner is gone.

    Returns:
      The owner, if it lives, without ``until_gone``; else an empty text.
    """
    found = _read(path)
    name = f"process {found.get('process')} on {found.get('host')}"
    if found.get("machine") == machine() and not _lives(found.get("process")):
        path.unlink(missing_ok=True)
        return ""
    _logger.warning("%s is held by %s; waiting to see whether it lives", path, name)
    since = time.monotonic()
    while time.monotonic() - since < EXPIRED:
        time.sleep(WATCHED)
        if (now := _read(path)) != found:
            if not now:
                return ""
            if not until_gone:
                return name
            found, since = now, time.monotonic()
    _logger.warning("%s: %s is gone", path, name)
    path.unlink(missing_ok=True)
    return ""


def _lives(process: Any) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, TypeError, OverflowError):  # another user's, or damaged
        return True
    return True


def machine() -> str:
    """What two processes share that see each other's process numbers; unique where that is unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)  # equal to none
