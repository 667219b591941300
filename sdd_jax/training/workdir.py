"""The folder of a run: what was asked for, and what came of it."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax
from ml_collections import ConfigDict

from sdd_jax.config import complete, differences
from sdd_jax.errors import InputError

PACKAGES = ("sdd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def open_workdir(path: str, config: ConfigDict) -> pathlib.Path:
    """Makes the folder, or checks that the run in it has the same config.

    Raises:
      InputError: it cannot be written to, or it holds a run with another config.
    """
    workdir = pathlib.Path(os.path.expanduser(path)).absolute()
    record = workdir / "config.json"
    if os.path.isfile(record):
        different = differences(config, complete(read_config(workdir)))
        if different:
            raise InputError(
                f"--workdir: {workdir} holds a run with another config ({'; '.join(different)}); "
                "choose another workdir, or remove it to start over"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # a name may be one that no file can have
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--workdir: must be writable, got {path!r} ({reason})") from error
    if not record.is_file() and jax.process_index() == 0:
        partial = workdir / "config.json.partial"
        partial.write_text(json.dumps(_record(config), indent=2) + "\n")
        partial.rename(record)
    return workdir


def read_config(workdir: pathlib.Path, *, field: str = "--workdir") -> ConfigDict:
    """The config of the run in a workdir.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    record = workdir / "config.json"
    try:
        return ConfigDict(json.loads(record.read_text())["config"])
    except FileNotFoundError:
        raise InputError(f"{field}: must hold a run, there is no {record}") from None
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{field}: {record} cannot be read: {error}") from error


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
