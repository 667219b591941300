"""The folder of a run: its config record, its log and its lock."""

import contextlib
import errno
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from sdd_jax.errors import InputError, writing

try:
    import fcntl
except ImportError:  # Windows has no flock, so a second run is not refused there
    fcntl = None

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
PACKAGES = ("sdd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_workdir(path: str) -> Iterator[pathlib.Path]:
    """Creates the folder if necessary and locks it for this run.

    Raises:
      InputError: the folder is not writable, or another process trains in it.
    """
    workdir = pathlib.Path(os.path.expanduser(path)).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"must be writable, got {path!r} ({reason})", field="--workdir") from error
    with _lock(workdir):
        yield workdir


@contextlib.contextmanager
def _lock(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the lock of the workdir, on the first host of a run only.

    The kernel releases the lock when the process ends, however it ends.
    """
    if fcntl is None or jax.process_index() != 0:
        yield
        return
    path = workdir / "lock"
    with contextlib.ExitStack() as stack:
        with writing(path):
            file = stack.enter_context(path.open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(
                    f"must not be in use, another process trains in {workdir}", field="--workdir"
                ) from error
            _logger.warning(
                "%s cannot be locked (%s): a second run would not be refused",
                workdir,
                error.strerror,
            )
        yield


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file by UTF-8 text, see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file atomically: a reader sees the old content or all of the new one.

    Raises:
      WriteError: the file cannot be written; the old content is still there.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        partial.write_bytes(content)
        os.replace(partial, path)


def write_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes ``config.json``: the config, the versions, the commit and the devices of the run."""
    devices = jax.devices()
    record = {
        "config": config.to_dict(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "commit": source_commit(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
    write_text(workdir / CONFIG_FILE, json.dumps(record, indent=2) + "\n")


def read_config(workdir: pathlib.Path, *, field: str = "--workdir") -> ConfigDict:
    """Reads the config of the run in a workdir, as it was recorded.

    Args:
      workdir: folder of the run.
      field: the input that names the folder, for messages.

    Raises:
      InputError: there is no record, or it cannot be read.
    """
    path = workdir / CONFIG_FILE
    try:
        return ConfigDict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"must hold a run, there is no {path}", field=field) from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}", field=field) from error


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Reads the lines of ``metrics.jsonl``; truncated and damaged lines are skipped."""
    path = workdir / METRICS_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = []
    for line in text.split("\n"):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            lines.append(values)
    return lines


def source_commit() -> str | None:
    """The commit of the source, with a + if files have changed since; None outside a repository."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        head, changes = (
            subprocess.run(git + command, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")
