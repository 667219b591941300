"""The copies that a run keeps of the Python files that it imports, and that stand for them later.

The record of a run has a section ``imports``: ``{path of the original: {"copy": ..., "sha256": ...}}``.
A checksum detects damage and exchange, not an author who computed it anew.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sdd_jax import plugins
from sdd_jax.errors import InputError, writing
from sdd_jax.paths import Path, given_path, is_file
from sdd_jax.runs.files import write_bytes

FOLDER = "imports"
_COPY = re.compile(rf"{FOLDER}/(\d+/)?[^/\\\0]+\.py")  # no path out of the run


def names(config: ConfigDict) -> tuple[str, ...]:
    """The entries of ``config.imports`` that are text; others are refused by its validation."""
    listed = config.get("imports")
    return (
        tuple(x for x in listed if isinstance(x, str)) if isinstance(listed, tuple | list) else ()
    )


def keep(workdir: Path, config: ConfigDict) -> dict[str, dict[str, str]]:
    """Copies the files that a config imports to ``imports/NAME.py``, or ``imports/N/NAME.py``.

    A copy is what this process executed, also where the file has been edited since.

    Returns:
      The section ``imports`` of the record.

    Raises:
      InputError: the folder of the copies is a link, perhaps to files of others.
      WriteError: a copy cannot be written.
    """
    section: dict[str, dict[str, str]] = {}
    for number, path in enumerate(name for name in names(config) if name.endswith(".py")):
        content, name = plugins.source(path), os.path.basename(path)
        taken = {kept["copy"] for kept in section.values()}
        copy = f"{FOLDER}/{name}"
        if copy in taken:
            copy = f"{FOLDER}/{number}/{name}"
        target = workdir / copy
        for folder in {workdir / FOLDER, target.parent}:
            if folder.is_symlink():
                raise InputError(f"{folder} is a link; remove it", field="--workdir")
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, content)
        section[path] = {"copy": copy, "sha256": plugins.digest(content)}
    return section


def copies(workdir: Path, record: Mapping[str, Any], *, field: str) -> tuple[str, ...]:
    """The imports of a run with the paths of its copies in place of their originals.

    A run of an earlier version has no copies; its imports stay as they are.

    Args:
      workdir: folder of the run.
      record: its record.
      field: the input that names the folder, for messages.

    Raises:
      InputError: a copy is not there, or is not the file that was recorded.
    """
    section = record.get("imports", {})
    return tuple(
        _intact(workdir.absolute(), section[name], field=field) if name in section else name
        for name in names(record["config"])
    )


def _intact(workdir: Path, kept: Mapping[str, str], *, field: str) -> str:
    copy, sha256 = kept["copy"], kept["sha256"]
    if not _COPY.fullmatch(copy):
        raise ValueError(f"{copy!r} is not in {FOLDER}/")
    path = str(workdir / copy)
    try:
        actual = f"SHA-256 {plugins.digest(plugins.source(path))}"
    except InputError:
        actual = "no such file"
    if actual != f"SHA-256 {sha256}":
        raise InputError(
            f"{path} must be the file that the run was trained with, SHA-256 {sha256}, got {actual}; "
            "put it back",
            field=field,
        )
    return path


def described(modules: Iterable[str]) -> str:
    """The modules that would be executed, files with their SHA-256."""
    return " and ".join(map(_described, modules))


def _described(name: str) -> str:
    try:
        return f"{name}, SHA-256 {plugins.digest(plugins.source(name))}"
    except InputError:  # a module, or a file that is not there
        return name


def same(ours: str, theirs: str) -> bool:
    """True for one module, and for two files with the same content."""
    if ours == theirs or not (ours.endswith(".py") and theirs.endswith(".py")):
        return ours == theirs
    try:
        return plugins.source(ours) == plugins.source(theirs)
    except InputError:
        return False


def gone(ours: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """``{name: copy}`` of the files that are not there, each with its copy in a run.

    Args:
      ours: the imports of a command.
      theirs: the imports of the run, from :func:`copies`.
    """
    return {
        name: copy
        for name, copy in zip(ours, theirs, strict=False)
        if name.endswith(".py")
        and os.path.basename(name) == os.path.basename(copy)
        and plugins.not_loaded([name])
        and not is_file(given_path(name, field="config.imports"))
        and is_file(given_path(copy, field="--workdir"))
    }
