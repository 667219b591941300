"""Checkpoints: a thin layer over Orbax's CheckpointManager.

States are saved as host arrays, so they restore on any number of devices. A checksum of every array
lies beside it: what Orbax can read but is not what was written counts as damaged, too. A checkpoint also
has an inventory of its files, so that Orbax need not look at damaged ones.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import re
import sys
import threading
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from sdd_jax.errors import InputError, WriteError
from sdd_jax.training.workdir import read_metrics, write_text

_logger = logging.getLogger(__name__)
_RECORD = ocp.args.JsonRestore()
_INVENTORY = "files.json"


class Checkpoints:
    """The checkpoints of a workdir: the latest few, and the best on the validation split.

    Args:
      workdir: checkpoints are in its folder ``checkpoints``.
      keep: how many of the latest to keep.
      read_only: never write or clean up, for evaluation, also beside a run that trains.

    Raises:
      WriteError: the folder cannot be made.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 3, read_only: bool = False):
        self._directory = (workdir / "checkpoints").absolute()
        self._damaged = (workdir / "damaged").absolute()
        self._read_only = read_only
        self._accuracies: dict[int, float] = {}
        with _writing(self._directory):
            if not read_only:  # Orbax notices at the first checkpoint that this is a file
                self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    create=not read_only,
                    read_only=read_only,
                    cleanup_tmp_directories=not read_only,
                    preservation_policy=_LatestAndBest(keep, self.best_step),
                ),
                item_names=("state", "record"),
            )
        logged = {line["step"]: line.get("validation/accuracy") for line in read_metrics(workdir)}
        for step in self._manager.all_steps():
            try:
                accuracy = self._read_record(step)["validation_accuracy"]
            except Exception:  # damaged, which restore will find and say
                continue
            # A run that was asked to stop saves first, and evaluates when it resumes.
            self.note_accuracy(step, logged.get(step) if accuracy is None else accuracy)

    def best_step(self) -> int | None:
        """The step with the highest validation accuracy, the later of equals; None without any."""
        ranked = [(accuracy, step) for step, accuracy in self._accuracies.items()]
        return max(ranked)[1] if ranked else None

    def note_accuracy(self, step: int, accuracy: float | None) -> None:
        """Says how good a step is on the validation split, if that is known."""
        if accuracy is not None:
            self._accuracies[step] = accuracy

    def save(self, step: int, state: Any, *, validation_accuracy: float | None = None) -> None:
        """Saves ``state``, and returns when it is safe; a step that is there already is left as it is.

        Whoever trains on while this goes on in the background loses, when killed, these steps, too.

        Raises:
          WriteError: it cannot be written; the checkpoints before it still are there.
        """
        if step in self._manager.all_steps():
            return
        state = jax.device_get(state)
        record = {"checksums": _checksums(state), "validation_accuracy": validation_accuracy}
        self.note_accuracy(step, validation_accuracy)
        items = {"state": ocp.args.StandardSave(state), "record": ocp.args.JsonSave(record)}
        with _writing(self._directory / str(step)):
            self._manager.save(step, args=ocp.args.Composite(**items))
            self._manager.wait_until_finished()
        if jax.process_index() == 0:
            folder = self._directory / str(step)
            write_text(folder / _INVENTORY, json.dumps(_digests(folder), indent=1) + "\n")

    def restore(self, like: Any, *, which: str = "latest") -> Any | None:
        """Restores a state as host arrays.

        Args:
          like: a state of the same structure, shapes and dtypes (abstract will do).
          which: "latest", "best" (on the validation split) or a step.

        Returns:
          The state, or None if there is no checkpoint at all. A damaged latest checkpoint is set aside
          in the folder ``damaged``, with a warning, and the one before is taken.

        Raises:
          InputError: there are checkpoints, but not this one or none that can be read.
        """
        return self._first_readable(lambda step: self._restore(step, like), which)

    def restore_variables(
        self, like: dict[str, Any], *, which: str = "latest"
    ) -> tuple[int, dict[str, Any]] | None:
        """Restores the step and the network's variables alone, whatever else the run has kept.

        Args:
          like: ``{"params": ..., "batch_stats": ...}``, abstract will do.
          which: as in :meth:`restore`; what is damaged is passed over in the same way.

        Returns:
          The step and the variables as host arrays, or None if there is no checkpoint at all.

        Raises:
          InputError: as :meth:`restore`.
        """
        return self._first_readable(lambda step: (step, self._variables(step, like)), which)

    def _first_readable(self, read: Callable[[int], Any], which: str) -> Any | None:
        steps = sorted(self._manager.all_steps())
        if not steps:
            return None
        if which != "latest":
            step = self.best_step() if which == "best" else int(which) if which.isdigit() else None
            if step not in steps:
                there = ", ".join(map(str, steps))
                raise InputError(
                    f"--checkpoint: must be latest, best (after training with a validation split) "
                    f"or one of {there}, got {which!r}"
                )
            steps = [step]
        for step in reversed(steps):
            try:
                return read(step)
            except Exception as error:  # whatever the file format's reader makes of damaged files
                if self._outrun(steps[-1]) and which == "latest":
                    return self._first_readable(read, which)
                reason = str(error).partition("\n")[0][:200]
                _logger.warning(
                    "checkpoint %s/%d is damaged (%s: %s); falling back to the one before",
                    self._directory, step, type(error).__name__, reason,
                )  # fmt: skip
                if not self._read_only:
                    self._set_aside(step)
        raise InputError(f"{self._directory}: no checkpoint can be read, of steps {steps}")

    def _outrun(self, step: int) -> bool:
        """Whether the run that trains here has newer checkpoints, for which it removes older ones."""
        if not self._read_only:
            return False
        self._manager.reload()
        return (self._manager.latest_step() or 0) > step

    def close(self) -> None:
        """Ends what Orbax has in the background."""
        with (
            contextlib.suppress(WriteError),
            _writing(self._directory),
        ):  # save has raised it already
            self._manager.close()

    def _restore(self, step: int, like: Any) -> Any:
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        items = self._restore_items(step, state=ocp.args.StandardRestore(target), record=_RECORD)
        state = jax.tree.map(np.asarray, items["state"])
        if _checksums(state) != items["record"]["checksums"]:
            raise ValueError("the arrays are not those that were saved")
        return state

    def _variables(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        items = self._restore_items(step, state=ocp.args.StandardRestore(), record=_RECORD)
        variables = {}
        for part, expected in like.items():
            found = dict(jax.tree_util.tree_leaves_with_path(items["state"].get(part) or {}))
            leaves, structure = jax.tree_util.tree_flatten_with_path(expected)
            arrays = [np.asarray(found.pop(path)) for path, _ in leaves]
            if found or [a.shape for a in arrays] != [leaf.shape for _, leaf in leaves]:
                raise ValueError("the arrays are not those of the network")
            for (path, _), array in zip(leaves, arrays, strict=True):
                name = f".{part}{jax.tree_util.keystr(path)}"
                if _checksum(array) != items["record"]["checksums"][name]:
                    raise ValueError("the arrays are not those that were saved")
            variables[part] = jax.tree.unflatten(structure, arrays)
        return variables

    def _read_record(self, step: int) -> dict[str, Any]:
        return self._restore_items(step, record=_RECORD)["record"]

    def _restore_items(self, step: int, **items: Any) -> Any:
        _check_files(self._directory / str(step), items)
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            number = len(list(self._damaged.iterdir()))
            (self._directory / str(step)).rename(self._damaged / f"{step}-{number}")
        self._accuracies.pop(step, None)
        self._manager.reload()


@dataclasses.dataclass
class _LatestAndBest(PreservationPolicy):
    """Keeps the latest N and the best. (Orbax's own ranking fails on a damaged metrics file.)"""

    latest: int
    best_step: Callable[[], int | None]

    def should_preserve(self, checkpoints, *, context):
        first = len(checkpoints) - self.latest
        return [i >= first or c.step == self.best_step() for i, c in enumerate(checkpoints)]


def _checksums(state: Any) -> dict[str, int]:
    """CRC-32 of every array, by its path in the state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): _checksum(leaf) for path, leaf in leaves}


def _checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint, by its path in it."""
    return {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(_INVENTORY)
    }


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(folder: pathlib.Path, items: Collection[str]) -> None:
    """Raises ``ValueError`` if a file of these items is not as the inventory says.

    A checkpoint has no inventory if the run was killed right after it was written; its arrays still have
    their checksums.
    """
    inventory = folder / _INVENTORY
    if not inventory.is_file():
        return
    for name, expected in json.loads(inventory.read_bytes()).items():
        item, _, within = name.partition("/")
        if (item in items or not within) and _digest(folder / name) != expected:
            raise ValueError(f"{name} is not the file that was written")


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Around Orbax's writing: what fails in its threads is raised here, as one ``WriteError``."""
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda _: None
    sys.unraisablehook = functools.partial(_unless_late, sys.unraisablehook)
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore's are ValueErrors, of many words
        hooks = hooks[0], sys.unraisablehook  # some writes still are to come to their end
        reason = getattr(error, "strerror", None) or re.sub(r" *\[[^]]*\]", "", str(error))
        raise WriteError(f"{path} cannot be written: {reason.rpartition(': ')[2]}") from error
    finally:
        threading.excepthook, sys.unraisablehook = hooks


def _unless_late(hook: Callable, unraisable: Any) -> None:
    """Leaves out the writes that end after one that failed has closed the event loop of all."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)
