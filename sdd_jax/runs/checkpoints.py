"""Checkpoints: a thin layer over Orbax's CheckpointManager.

States are saved as host arrays and restored by the path of each array, so they restore on any number of
devices. A checksum of every array is saved with them: arrays that Orbax can read but that differ from
the saved ones count as damaged.
"""

import contextlib
import dataclasses
import logging
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from sdd_jax.errors import InputError, WriteError
from sdd_jax.runs.workdir import read_metrics

_logger = logging.getLogger(__name__)
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

    def __init__(self, workdir: pathlib.Path, *, keep: int = 3, read_only: bool = False):
        self._directory = (workdir / "checkpoints").absolute()
        self._damaged = (workdir / "damaged").absolute()
        self._read_only = read_only
        self._accuracies: dict[int, float] = {}
        with _writing(self._directory):
            if not read_only:  # if this path is a file, Orbax fails only at the first save
                self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    create=not read_only,
                    read_only=read_only,
                    cleanup_tmp_directories=not read_only,
                    # Synchronous: a kill during a background save would also lose the steps taken
                    # meanwhile, and errors of background threads end in tracebacks.
                    enable_async_checkpointing=False,
                    preservation_policy=_LatestAndBest(keep, self.best_step),
                ),
                item_names=("state", "record"),
            )
        logged = {line["step"]: line.get("validation/accuracy") for line in read_metrics(workdir)}
        for step in self._manager.all_steps():
            try:
                accuracy = self._record(step)["validation_accuracy"]
            except Exception:  # damaged; restore reports it
                continue
            # A stopped run saves before its last evaluation, which is logged on resume.
            self.note_accuracy(step, logged.get(step) if accuracy is None else accuracy)

    def best_step(self) -> int | None:
        """The step with the highest validation accuracy, the latest of equals; None if none is known."""
        ranked = [(accuracy, step) for step, accuracy in self._accuracies.items()]
        return max(ranked)[1] if ranked else None

    def note_accuracy(self, step: int, accuracy: float | None) -> None:
        """Records the validation accuracy of a step, if it is known."""
        if accuracy is not None:
            self._accuracies[step] = accuracy

    def save(self, step: int, state: Any, *, validation_accuracy: float | None = None) -> None:
        """Saves ``state`` and returns when it is on disk; an existing step is left as it is.

        Raises:
          WriteError: the checkpoint cannot be written; earlier checkpoints are intact.
        """
        if step in self._manager.all_steps():
            return
        state = jax.device_get(state)
        record = {
            "checksums": {jax.tree_util.keystr(path): _checksum(x) for path, x in _leaves(state)},
            "validation_accuracy": validation_accuracy,
        }
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
          The state, or None if there is no checkpoint. If the latest checkpoint is damaged, it is moved
          to the folder ``damaged`` with a warning, and the one before is restored.

        Raises:
          InputError: there are checkpoints, but not this one, or none of them can be read.
        """
        return self._first_readable(lambda step: _fill(like, self._arrays(step)), which)

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
                part: _fill(tree, saved, f"{name.get(part, part)}/") for part, tree in like.items()
            }

        return self._first_readable(read, which)

    def close(self) -> None:
        """Releases Orbax's resources."""
        with contextlib.suppress(WriteError), _writing(self._directory):  # reported by save
            self._manager.close()

    def _first_readable(self, read: Callable[[int], Any], which: str) -> Any | None:
        steps = sorted(self._manager.all_steps())
        if not steps:
            return None
        if which != "latest":
            step = self.best_step() if which == "best" else int(which) if which.isdigit() else None
            if step not in steps:
                raise InputError(
                    f"must be latest, best (after training with a validation split) or one of "
                    f"{', '.join(map(str, steps))}, got {which!r}",
                    field="--checkpoint",
                )
            steps = [step]
        for step in reversed(steps):
            try:
                return read(step)
            except Exception as error:  # readers of damaged files raise anything
                if which == "latest" and self._overtaken(steps[-1]):
                    return self._first_readable(read, which)
                reason = str(error).partition("\n")[0][:200]
                _logger.warning(
                    "checkpoint %s/%d is damaged (%s: %s); falling back to the one before",
                    self._directory, step, type(error).__name__, reason,
                )  # fmt: skip
                if not self._read_only:
                    self._set_aside(step)
        raise InputError(f"{self._directory}: no checkpoint can be read, of steps {steps}")

    def _overtaken(self, step: int) -> bool:
        """True if the run, still training, has saved newer checkpoints and deleted older ones."""
        if not self._read_only:
            return False
        self._manager.reload()
        return (self._manager.latest_step() or 0) > step

    def _arrays(self, step: int) -> dict[str, np.ndarray]:
        """The saved arrays by path, compared with their checksums."""
        checksums = self._record(step)["checksums"]
        tree = self._read(step, state=ocp.args.StandardRestore())["state"]
        arrays = {_path(keys): np.asarray(x) for keys, x in _leaves(tree)}
        if {path: _checksum(x) for path, x in arrays.items()} != {
            _path(name): value for name, value in checksums.items()
        }:
            raise ValueError("the arrays are not those that were saved")
        return arrays

    def _record(self, step: int) -> dict[str, Any]:
        return self._read(step, record=ocp.args.JsonRestore())["record"]

    def _read(self, step: int, **items: Any) -> Any:
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


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _path(keys: Any) -> str:
    """``opt_state/0/trace/...``, for attributes of a state and for keys of restored dicts."""
    text = keys if isinstance(keys, str) else jax.tree_util.keystr(keys)
    return "/".join(re.findall(r"[^.\[\]']+", text))


def _checksum(array: Any) -> int:
    """CRC-32 of the array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _fill(like: Any, saved: dict[str, np.ndarray], prefix: str = "") -> Any:
    """The tree ``like`` with the saved arrays whose paths begin with ``prefix``.

    Raises:
      ValueError: the paths, shapes or dtypes differ.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    paths = [prefix + _path(keys) for keys, _ in leaves]
    if not any(_OPTIMIZED_NETWORK.match(path) for path in saved):
        # Version 0.1: without an auxiliary network, the optimizer saw the network's parameters alone.
        paths = [_OPTIMIZED_NETWORK.sub(r"\1/", path) for path in paths]
    if {path for path in saved if path.startswith(prefix)} != set(paths) or any(
        (saved[path].shape, saved[path].dtype) != (leaf.shape, leaf.dtype)
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    ):
        raise ValueError("the arrays are not those of this network")
    return jax.tree.unflatten(structure, [saved[path] for path in paths])


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Converts the errors that Orbax raises while it writes ``path`` to a :class:`WriteError`."""
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore raises ValueError with a long message
        reason = getattr(error, "strerror", None) or re.sub(r" *\[[^]]*\]", "", str(error))
        raise WriteError(f"{path} cannot be written: {reason.rpartition(': ')[2]}") from error
