"""The folder of a run: the record of its config, its log and its lock.

A workdir may come from someone else. What is read from it is data: the Python files that its config
names are executed by :func:`load_imports` only.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from sdd_jax import hosts, plugins
from sdd_jax.buckets import BucketPath
from sdd_jax.errors import InputError, WriteError, require, within
from sdd_jax.paths import Path, given_path
from sdd_jax.runs import imports, leases
from sdd_jax.runs.files import locked, write_text

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = "lock"
PACKAGES = ("sdd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextlib.contextmanager
def open_workdir(path: str) -> Iterator[Path]:
    """Creates the folder if necessary and locks it for this run.

    Raises:
      InputError: the folder is not writable, another process trains in it, or the hosts of this run do
        not share it.
    """
    with contextlib.ExitStack() as stack:
        with hosts.together():
            workdir = _created(path)
            if hosts.first():
                stack.enter_context(_lock(workdir))
        _require_shared(workdir)
        yield workdir


def _created(path: str) -> Path:
    workdir = given_path(path, field="--workdir").absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        reason = getattr(error, "strerror", None) or error
        if isinstance(workdir, BucketPath) and isinstance(error, FileNotFoundError):
            reason = "no such bucket"
        raise InputError(f"must be writable, got {path!r} ({reason})", field="--workdir") from error
    return workdir


@contextlib.contextmanager
def _lock(workdir: Path) -> Iterator[None]:
    """Holds the lock of the workdir."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(workdir / LOCK_FILE, wait=False))
        except BlockingIOError as error:
            owner = f": {error}" if error.errno is None else ""  # known of a lease
            raise InputError(
                f"must not be in use, another process trains in {workdir}{owner}", field="--workdir"
            ) from error
        yield


def _require_shared(workdir: Path) -> None:
    """Requires that all hosts see a file of the first one."""
    if jax.process_count() == 1:
        return
    mark = workdir / f".shared-{hosts.gather(uuid.uuid4().hex)[0]}"
    with hosts.together():
        if hosts.first():
            mark.write_bytes(b"")
    try:
        with hosts.together():
            shared = mark.exists()
            require(shared, "--workdir", str(workdir), "one folder that all hosts of the run share")
    finally:
        if hosts.first():
            mark.unlink()


class SameRun:
    """Notices that the folder of a run has been moved, removed or taken over while it trains.

    The run is recognised by its record. (Some network file systems give a folder a new inode.) In a
    bucket its lease can pass to another process, if this one was held up for longer than a lease lasts.

    Args:
      workdir: folder of the run, with its record.
    """

    def __init__(self, workdir: Path):
        self._workdir, self._record = workdir, _content(workdir / CONFIG_FILE)
        self._owner = self._lease_owner()

    def check(self) -> None:
        """Raises a WriteError if the folder holds another record, or none, or has another owner."""
        if self._lease_owner() != self._owner:
            raise WriteError(
                f"{self._workdir} was taken over by another process, or its lock was removed; this run "
                "could not renew it in time"
            )
        if _content(self._workdir / CONFIG_FILE) != self._record:
            raise WriteError(
                f"{self._workdir} was moved or removed while the run trained in it; if it was moved, "
                "--workdir=ITS_NEW_PATH resumes it"
            )

    def _lease_owner(self) -> str | None:
        lock = self._workdir / LOCK_FILE
        return leases.owner(lock) if isinstance(lock, BucketPath) else None


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_config(workdir: Path, config: ConfigDict, facts: Mapping[str, Any]) -> None:
    """Writes ``config.json``: the config and facts, the versions, the commit and the devices of the run.

    The Python files that the config imports are copied into the folder first.

    Args:
      workdir: folder of the run.
      config: the complete config.
      facts: sections that a resumed run must agree with, see :func:`sdd_jax.config.record`.
    """
    devices = jax.devices()
    record = {
        "config": config.to_dict(),
        **facts,
        "imports": imports.keep(workdir, config),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "commit": source_commit(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
    write_text(workdir / CONFIG_FILE, json.dumps(record, indent=2) + "\n")


def read_record(workdir: Path, *, field: str = "--workdir") -> dict[str, Any]:
    """Reads ``config.json``; its section ``config`` is a :class:`ConfigDict`.

    The files in ``config.imports`` are the copies that the run holds, where it holds copies.

    Args:
      workdir: folder of the run.
      field: the input that names the folder, for messages.

    Raises:
      InputError: there is no record, or it cannot be read; or a copy is missing or another file.
    """
    path = workdir / CONFIG_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record |= {"config": ConfigDict(record["config"])}
        if record.get("imports"):
            record["config"].imports = imports.copies(workdir, record, field=field)
        return record
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"must hold a run, there is no {path}", field=field) from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}", field=field) from error


def replace_duration(workdir: Path, duration: str) -> None:
    """Replaces ``config.duration`` in the record of a run; all else stays as it was written."""
    path = workdir / CONFIG_FILE
    record = json.loads(path.read_text(encoding="utf-8"))
    record["config"]["duration"] = duration
    write_text(path, json.dumps(record, indent=2) + "\n")


def read_config(workdir: Path, *, field: str = "--workdir") -> ConfigDict:
    """Reads the config of the run in a workdir, as it was recorded.

    Args:
      workdir: folder of the run.
      field: the input that names the folder, for messages.

    Raises:
      InputError: as :func:`read_record`; or the config imports a Python file or module that has not been
        loaded: to build the run's network would execute it, see :func:`load_imports`.
    """
    config = read_record(workdir, field=field)["config"]
    if unknown := plugins.not_loaded(imports.names(config)):
        raise InputError(
            f"{workdir} imports {imports.described(unknown)}, which would be executed; allow it with "
            "--trust_imports if you trust the author",
            field=field,
        )
    return config


def load_imports(workdir: Path, *, field: str = "--workdir") -> None:
    """Executes the Python files that the config of a run and those of its teachers import.

    Args:
      workdir: folder of a run whose author you trust.
      field: the input that names the folder, for messages.

    Raises:
      InputError: as :func:`read_record`; or a file is not there, or raises.
    """
    seen: set[str] = set()
    remaining = [workdir]
    while remaining:
        workdir = remaining.pop()
        if str(workdir) in seen:
            continue
        seen.add(str(workdir))
        config = read_record(workdir, field=field)["config"]
        with within(field):
            plugins.load(imports.names(config))
        remaining += teacher_workdirs(config.get("teacher") or "")


def teacher_workdirs(teacher: str) -> list[Path]:
    """The folders of the field ``teacher`` of a config, "RUN" or "RUN,RUN,..."; none if it is empty.

    Raises:
      InputError: a folder that is named twice, or an empty name between commas.
    """
    names = [name.strip() for name in teacher.split(",")] if teacher else []
    distinct = all(names) and len(set(names)) == len(names)
    require(distinct, "config.teacher", teacher, "different workdirs, separated by commas")
    return [given_path(name, field="config.teacher") for name in names]


def differing(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    *,
    ignored: Callable[[str], bool] = lambda field: False,
    where: tuple[str, str] = ("now", "in the workdir"),
) -> list[str]:
    """Differences between two records: "SECTION.FIELD: A now, B in the workdir".

    Args:
      ours: ``{section: values}`` now; values may be nested.
      theirs: the recorded sections.
      ignored: whether a field, as in "SECTION.FIELD", may differ.
      where: what the messages call the two.
    """
    a, b = _flat(ours), _flat(theirs)
    return [
        f"{field}: {a.get(field)!r} {where[0]}, {b.get(field)!r} {where[1]}"
        for field in sorted(a.keys() | b.keys())
        if a.get(field) != b.get(field) and not ignored(field)
    ]


def _flat(section: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in section.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """Reads the lines of ``metrics.jsonl``; truncated and damaged lines are skipped."""
    path = workdir / METRICS_FILE
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
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
