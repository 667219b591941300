"""Checkpoints: a thin layer over Orbax.

States are saved as host arrays and restored by the path of each array, so they restore on any number of
devices. A checksum of every array is saved with them: arrays that Orbax can read but that differ from
the saved ones count as damaged. Files that the system cannot read, and intact arrays of another network,
do not.
"""

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import logging
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from sdd_jax import hosts
from sdd_jax.buckets import BucketPath, failing_as_on_disk
from sdd_jax.errors import InputError, WriteError, writing
from sdd_jax.paths import Path
from sdd_jax.runs.workdir import read_metrics
from sdd_jax.tasks import selecting

_logger = logging.getLogger(__name__)
# A file is not there, which is damage. Orbax sets no error number, and may mean anything.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, None)
_COMMITTED = "commit_success.txt"  # Orbax writes it last, in a bucket
_OPTIMIZED_NETWORK = re.compile(r"(opt_state/.*?)/params/")


class Checkpoints:
    """The checkpoints of a workdir: the latest few, and the best on the validation split.

    Args:
      workdir: folder of the run; checkpoints are in its folder ``checkpoints``.
      keep: number of latest checkpoints to keep.
      read_only: never write or clean up; for evaluation, even while the run is training.

    Raises:
      WriteError: the folder cannot be created.
    """

    def __init__(self, workdir: Path, *, keep: int = 3, read_only: bool = False):
        self._workdir = workdir.absolute()
        self._directory = self._workdir / "checkpoints"
        self._keep, self._read_only = keep, read_only
        self._accuracies: dict[int, float | None] = {}
        if not read_only:
            # Orbax would fail at the first save only, if this path is a file.
            with writing(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Writes and deletes. Reading goes by path: a scan of Orbax's fails beside a run that saves."""
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                # Synchronous: a kill during a background save would also lose the steps taken
                # meanwhile, and errors of background threads end in tracebacks.
                enable_async_checkpointing=False,
                preservation_policy=_LatestAndBest(self._keep, self.best_step),
            ),
            item_names=("state", "record"),
        )

    def steps(self) -> list[int]:
        """The steps of the checkpoints in increasing order, without unfinished ones.

        On a disk an unfinished one has a longer name; in a bucket it lacks Orbax's mark.

        Raises:
          InputError: the folder cannot be read.
        """
        try:
            if isinstance(self._directory, BucketPath):
                names = [mark.parent.name for mark in self._directory.glob(f"*/{_COMMITTED}")]
            else:
                names = _names(self._directory)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self._directory} cannot be read: {reason}") from error
        return sorted({int(name) for name in names if _is_number(name)})

    def best_step(self) -> int | None:
        """The step with the highest validation accuracy, the latest of equals; None if none is known.

        Where the task has a metric of its own, such as mIoU, that stands for the accuracy.

        Raises:
          InputError: a record cannot be read at the moment.
        """
        if unknown := set(self.steps()) - self._accuracies.keys():
            logged = {
                x["step"]: x.get(f"validation/{selecting(x, 'validation')}")
                for x in read_metrics(self._workdir)
            }
            for step in unknown:
                accuracy = self._recorded_accuracy(step)
                # A stopped run saves before its last evaluation, which is logged on resume.
                self.note_accuracy(step, logged.get(step) if accuracy is None else accuracy)
        ranked = [
            (accuracy, step) for step, accuracy in self._accuracies.items() if accuracy is not None
        ]
        return max(ranked)[1] if ranked else None

    def note_accuracy(self, step: int, accuracy: float | None) -> None:
        """Records the validation accuracy of a step, None if it is not known."""
        self._accuracies[step] = accuracy

    def save(self, step: int, state: Any, *, validation_accuracy: float | None = None) -> None:
        """Saves ``state`` and returns when it is on disk; an existing step is left as it is.

        Raises:
          WriteError: the checkpoint cannot be written; earlier checkpoints are intact.
        """
        if step in self.steps():
            return
        state = jax.device_get(state)
        record = {
            "checksums": {jax.tree_util.keystr(path): _checksum(x) for path, x in _leaves(state)},
            "validation_accuracy": validation_accuracy,
        }
        self.best_step()  # before this step, whose files are not there yet
        self.note_accuracy(step, validation_accuracy)
        items = {"state": ocp.args.StandardSave(state), "record": ocp.args.JsonSave(record)}
        with _writing(self._directory / str(step)):
            self._manager.save(step, args=ocp.args.Composite(**items))
            self._manager.wait_until_finished()

    def restore(self, like: Any, *, which: str = "latest") -> Any | None:
        """Restores a state as host arrays.

        Args:
          like: a state of the same structure, shapes and dtypes; may be abstract.
          which: "latest", "best" (on the validation split) or a step.

        Returns:
          The state, or None if there is no checkpoint. If the latest checkpoint is damaged, the one
          before is restored with a warning, and the damaged one is moved to the folder ``damaged``.

        Raises:
          InputError: there are checkpoints, but not this one, or all of them are damaged; the files
            cannot be read at the moment; or the checkpoint is of another network. Nothing is moved.
        """
        return self._first_readable(
            lambda step: self._filled(like, step, self._arrays(step)), which
        )

    def restore_variables(
        self, like: dict[str, Any], *, which: str = "latest"
    ) -> tuple[int, dict[str, Any]] | None:
        """Restores the step and the variables to evaluate, whatever else the checkpoint holds.

        Args:
          like: ``{"params": ..., "batch_stats": ...}``, may be abstract. Parameters are taken from the
            exponential moving average if the run keeps one.
          which: as in :meth:`restore`; damaged checkpoints are skipped in the same way.

        Returns:
          The step and the variables as host arrays, or None if there is no checkpoint.

        Raises:
          InputError: as :meth:`restore`.
        """

        def read(step):
            saved = self._arrays(step)
            averaged = any(path.startswith("ema/") for path in saved)
            name = {"params": "ema"} if averaged else {}
            return step, {
                part: self._filled(tree, step, saved, f"{name.get(part, part)}/")
                for part, tree in like.items()
            }

        return self._first_readable(read, which)

    def close(self) -> None:
        """Releases Orbax's resources."""
        if "_manager" in self.__dict__:
            with contextlib.suppress(WriteError), _writing(self._directory):  # reported by save
                self._manager.close()

    # ---------------------------------------------------------------------------------- reading

    def _first_readable(self, read: Callable[[int], Any], which: str) -> Any | None:
        steps = self.steps()
        if not steps:
            self._require_nothing_damaged()
            return None
        damaged = []
        for step in self._candidates(steps, which):
            try:
                result = read(step)
            except (InputError, MemoryError):
                raise
            except Exception as error:  # readers of damaged files raise anything
                if self._read_only and self.steps() != steps:
                    # The run, still training, has saved a newer checkpoint and deleted this one.
                    return self._first_readable(read, which)
                self._require_readable_files(step, error)
                reason = str(error).partition("\n")[0][:200]
                _logger.warning(
                    "checkpoint %s/%d is damaged (%s: %s); falling back to the one before",
                    self._directory, step, type(error).__name__, reason,
                )  # fmt: skip
                damaged.append(step)
            else:
                if not self._read_only:
                    self._set_aside(damaged)
                return result
        raise InputError(
            f"{self._directory}: no checkpoint can be read, of steps {steps}; put back a copy of one, "
            "or choose another workdir"
        )

    def _candidates(self, steps: list[int], which: str) -> list[int]:
        """The steps to try, in this order."""
        if which == "latest":
            return steps[::-1]
        step = self.best_step() if which == "best" else int(which) if _is_number(which) else None
        if step is None or step not in steps:
            raise InputError(
                f"must be latest, best (after training with a validation split) or one of "
                f"{', '.join(map(str, steps))}, got {which!r}",
                field="--checkpoint",
            )
        return [step]

    def _require_nothing_damaged(self) -> None:
        """Raises an InputError if the folder ``damaged`` holds all that is left of a run."""
        damaged = self._workdir / "damaged"
        if _names(damaged):
            raise InputError(
                f"{self._workdir} has no checkpoint but those in {damaged}; put back a copy of one, or "
                "choose another workdir"
            )

    def _require_readable_files(self, step: int, error: Exception) -> None:
        """Raises an InputError if the system cannot read the files: that says nothing about them."""
        try:
            if isinstance(error, OSError) and error.errno not in _ABSENT:
                raise error
            for path in _files(self._directory / str(step)):
                with path.open("rb") as file:
                    while file.read(2**20):
                        pass
        except OSError as failure:
            if failure.errno not in _ABSENT:
                raise InputError(
                    f"checkpoint {self._directory}/{step} cannot be read at the moment "
                    f"({failure.strerror or failure}); it stays where it is"
                ) from failure

    def _recorded_accuracy(self, step: int) -> float | None:
        try:
            return self._record(step)["validation_accuracy"]
        except Exception as error:  # damaged; restore reports it
            self._require_readable_files(step, error)
            return None

    def _record(self, step: int) -> dict[str, Any]:
        path = self._directory / str(step) / "record" / "metadata"
        return json.loads(path.read_text(encoding="utf-8"))

    def _arrays(self, step: int) -> dict[str, np.ndarray]:
        """The saved arrays by path, compared with their checksums."""
        checksums = self._record(step)["checksums"]
        process = jax.process_index()
        # By default Orbax makes all processes wait for each other, who may read different checkpoints.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=process,
            active_processes={process},
            barrier_sync_key_prefix=f"process_{process}",
        )
        checkpointer = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )
        tree = checkpointer.restore(
            self._directory / str(step) / "state", args=ocp.args.StandardRestore()
        )
        arrays = {_path(keys): np.asarray(x) for keys, x in _leaves(tree)}
        if {path: _checksum(x) for path, x in arrays.items()} != {
            _path(name): value for name, value in checksums.items()
        }:
            raise ValueError("the arrays are not those that were saved")
        return arrays

    def _filled(self, like: Any, step: int, saved: dict[str, np.ndarray], prefix: str = "") -> Any:
        """The tree ``like`` with the saved arrays whose paths begin with ``prefix``.

        Raises:
          InputError: the paths, shapes or dtypes differ.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(like)
        paths = [prefix + _path(keys) for keys, _ in leaves]
        if not any(_OPTIMIZED_NETWORK.match(path) for path in saved):
            # Version 0.1: without an auxiliary network, the optimizer saw the parameters alone.
            paths = [_OPTIMIZED_NETWORK.sub(r"\1/", path) for path in paths]
        ours = {path: _kind(leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)}
        theirs = {path: _kind(x) for path, x in saved.items() if path.startswith(prefix)}
        if ours != theirs:
            path = min(path for path, _ in ours.items() ^ theirs.items())
            raise InputError(
                f"checkpoint {self._directory}/{step} is of another network: {path} is "
                f"{theirs.get(path, 'absent')} there and {ours.get(path, 'absent')} by this config"
            )
        return jax.tree.unflatten(structure, [saved[path] for path in paths])

    def _set_aside(self, damaged: list[int]) -> None:
        """Moves checkpoints to the folder ``damaged``, so that their steps can be saved again."""
        for step in damaged:
            self._accuracies.pop(step, None)
            if hosts.first():
                folder = self._workdir / "damaged"
                with writing(folder):
                    folder.mkdir(exist_ok=True)
                    taken = _names(folder)
                    number = next(n for n in itertools.count() if f"{step}-{n}" not in taken)
                    (self._directory / str(step)).rename(folder / f"{step}-{number}")
        if "_manager" in self.__dict__:
            self._manager.reload()


@dataclasses.dataclass
class _LatestAndBest(PreservationPolicy):
    """Keeps the latest N and the best. (Orbax's own ranking fails on a damaged metrics file.)"""

    latest: int
    best_step: Callable[[], int | None]

    def should_preserve(self, checkpoints, *, context):
        first = len(checkpoints) - self.latest
        return [i >= first or c.step == self.best_step() for i, c in enumerate(checkpoints)]


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _path(keys: Any) -> str:
    """``opt_state/0/trace/...``, for attributes of a state and for keys of restored dicts."""
    text = keys if isinstance(keys, str) else jax.tree_util.keystr(keys)
    return "/".join(re.findall(r"[^.\[\]']+", text))


def _checksum(array: Any) -> int:
    """CRC-32 of the array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _kind(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]+", text) is not None


def _names(folder: Path) -> list[str]:
    """The names in a folder; none if it is not there."""
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder."""
    if isinstance(folder, BucketPath):
        yield from folder.objects()
        return
    for parent, _, names in os.walk(folder, onerror=_raise):
        yield from (pathlib.Path(parent, name) for name in names)


def _raise(error: OSError) -> None:
    raise error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Converts the errors that Orbax raises while it writes ``path`` to a :class:`WriteError`."""
    try:
        with failing_as_on_disk() if isinstance(path, BucketPath) else contextlib.nullcontext():
            yield
    except (OSError, ValueError) as error:  # TensorStore raises ValueError with a long message
        if lost := hosts.lost(error):
            raise lost from error
        reason = getattr(error, "strerror", None) or re.sub(r" *\[[^]]*\]", "", str(error))
        raise WriteError(f"{path} cannot be written: {reason.rpartition(': ')[2]}") from error
