"""The folder of a run: what was asked for, and what came of it."""

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
from typing import Any

import jax
from ml_collections import ConfigDict

from sdd_jax.config import complete, differences
from sdd_jax.errors import InputError, writing

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second run out of a workdir
    fcntl = None

PACKAGES = ("sdd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_workdir(path: str, config: ConfigDict) -> Iterator[pathlib.Path]:
    """Makes the folder, or checks that the run in it has the same config, and holds it for this run.

    Raises:
      InputError: it cannot be written to, it holds a run with another config, or another process trains
        in it.
    """
    workdir = pathlib.Path(os.path.expanduser(path)).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # a name may be one that no file can have
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--workdir: must be writable, got {path!r} ({reason})") from error
    with _lock(workdir):
        _same_or_new(workdir, config)
        yield workdir


def _same_or_new(workdir: pathlib.Path, config: ConfigDict) -> None:
    record = workdir / "config.json"
    if not os.path.lexists(record):
        if jax.process_index() == 0:
            write_text(record, json.dumps(_record(config), indent=2) + "\n")
        return
    different = differences(config, complete(read_config(workdir)))
    if different:
        raise InputError(
            f"--workdir: {workdir} holds a run with another config ({'; '.join(different)}); "
            "choose another workdir, or remove it to start over"
        )


@contextlib.contextmanager
def _lock(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps every other run out of the workdir; of the hosts of one run, the first one holds it.

    The kernel frees the lock however the process ends, so none is ever left behind.
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
                    f"--workdir: must not be in use, another process trains in {workdir}"
                ) from error
            _logger.warning(
                "%s cannot be locked (%s): nothing keeps a second run out", workdir, error.strerror
            )
        yield


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file as a whole: whoever reads it sees what was there before, or all of ``text``.

    Raises:
      WriteError: it cannot be written; what was there before still is.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


def read_config(workdir: pathlib.Path, *, field: str = "--workdir") -> ConfigDict:
    """The config of the run in a workdir.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    record = workdir / "config.json"
    try:
        return ConfigDict(json.loads(record.read_text(encoding="utf-8"))["config"])
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{field}: must hold a run, there is no {record}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{field}: {record} cannot be read: {error}") from error


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``; one that was cut off in the middle, or is damaged, is left out."""
    path = workdir / "metrics.jsonl"
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


def _record(config: ConfigDict) -> dict[str, Any]:
    devices = jax.devices()
    return {
        "config": config.to_dict(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "commit": _commit(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def _commit() -> str | None:
    """The commit of the source, with a + if it was changed since; None outside a repository."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        run = [
            subprocess.run(git + command, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return run[0] + ("+" if run[1] else "")
