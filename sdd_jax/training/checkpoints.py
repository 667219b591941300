"""Checkpoints: a thin layer over Orbax's CheckpointManager.

States are saved as host arrays, so they restore on any number of devices. A checksum of every array
lies beside it: what Orbax can read but is not what was written counts as damaged, too.
"""

import logging
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from sdd_jax.errors import InputError
_logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a workdir: the latest few, and the best on the validation split.

    Args:
      workdir: checkpoints are in its folder ``checkpoints``.
      keep: how many of the latest to keep.
      best: whether saves come with a validation accuracy, of which the best is kept, too.
      read_only: never write or clean up, for evaluation.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        keep: int = 3,
        best: bool = True,
        read_only: bool = False,
    ):
        self._directory = (workdir / "checkpoints").absolute()
        self._damaged = (workdir / "damaged").absolute()
        self._read_only = read_only
        policies = [LatestN(n=keep)]
        if best:
            policies.append(
                BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False)
            )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                best_fn=_accuracy if best else None,
                preservation_policy=AnyPreservationPolicy(policies),
            ),
            item_names=("state", "checksums"),
        )

    def save(self, step: int, state: Any, *, validation_accuracy: float | None = None) -> None:
        """Saves ``state`` in the background; a step that is there already is left as it is."""
        if step in self._manager.all_steps():
            return
        state = jax.device_get(state)
        metrics = None if validation_accuracy is None else {"accuracy": validation_accuracy}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), checksums=ocp.args.JsonSave(_checksums(state))
            ),
            metrics=metrics,
        )

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
        steps = sorted(self._manager.all_steps())
        if not steps:
            return None
        if which != "latest":
            step = self._best() if which == "best" else int(which) if which.isdigit() else None
            if step not in steps:
                there = ", ".join(map(str, steps))
                raise InputError(
                    f"--checkpoint: must be latest, best (after training with a validation split) "
                    f"or one of {there}, got {which!r}"
                )
            steps = [step]
        for step in reversed(steps):
            try:
                return self._restore(step, like)
            except Exception as error:  # whatever the file format's reader makes of damaged files
                reason = str(error).partition("\n")[0][:200]
                _logger.warning(
                    "checkpoint %s/%d is damaged (%s: %s); falling back to the one before",
                    self._directory, step, type(error).__name__, reason,
                )  # fmt: skip
                if not self._read_only:
                    self._set_aside(step)
        raise InputError(f"{self._directory}: no checkpoint can be read, of steps {steps}")

    def close(self) -> None:
        """Waits until all is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore(self, step: int, like: Any) -> Any:
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), checksums=ocp.args.JsonRestore()
            ),
        )
        state = jax.tree.map(np.asarray, restored["state"])
        if _checksums(state) != restored["checksums"]:
            raise ValueError("the arrays are not those that were saved")
        return state

    def _best(self) -> int | None:
        """The step with the highest validation accuracy, the later of equals."""
        ranked = [
            (_accuracy(metrics), step)
            for step in self._manager.all_steps()
            if (metrics := self._manager.metrics(step)) is not None
        ]
        return max(ranked)[1] if ranked else None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            number = len(list(self._damaged.iterdir()))
            (self._directory / str(step)).rename(self._damaged / f"{step}-{number}")
        self._manager.reload()


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy"]


def _checksums(state: Any) -> dict[str, int]:
    """CRC-32 of every array, by its path in the state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf).tobytes())
        for path, leaf in leaves
    }
