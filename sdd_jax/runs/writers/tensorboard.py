"""TensorBoard: scalars, images, and the config as text and hyperparameters."""

import json
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sdd_jax.buckets import BucketPath
from sdd_jax.errors import InputError, writing
from sdd_jax.paths import Path
from sdd_jax.runs.files import GrowingObject
from sdd_jax.runs.writers import FIELD, Writer, writers


@writers.register("tensorboard")
class TensorBoard(Writer):
    """An event file in ``WORKDIR/tensorboard``, written synchronously so that errors are raised here.

    An evaluation writes to ``WORKDIR/tensorboard/eval``, which TensorBoard shows as a run of its own: of
    several files in one folder it may follow the newest only.
    """

    package = "tensorboardX"

    def __init__(self, workdir: Path, *, start: int | None, config: Mapping[str, Any]):
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._summary, self._event = summary, Event
        folder = workdir / "tensorboard"
        if start is None:
            if folder.is_symlink() or (folder / "eval").is_symlink():  # perhaps not of this user
                raise InputError(f"{folder} or its folder eval is a link", field=FIELD)
            self._open(folder / "eval", str(time.time_ns()))
            return
        purge_step = start + 1 if start else 0
        self._open(folder, str(purge_step))
        # Hides the events that an interrupted run wrote for these steps.
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        if not start:
            text = json.dumps(config, indent=2)
            self._write(step=0, summary=summary.text("config", f"```json\n{text}\n```"))
            # In this file: SummaryWriter.add_hparams would create a run of its own.
            for part in summary.hparams(dict(_flat(config)), dict.fromkeys(_METRICS)):
                self._write(step=0, summary=part)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one event with all values."""
        summary = self._summary.Summary()
        for item in values.items():
            summary.value.extend(self._summary.scalar(*item).value)
        self._write(step=step, summary=summary)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a PNG."""
        self._write(step=step, summary=self._summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Writes the object of a bucket; a file has been written."""
        if self._object is not None:
            self._object.flush()

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._writer.close()
        self.flush()
        if self._local is not None:
            self._local.cleanup()

    def _open(self, folder: Path, suffix: str) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._local = tempfile.TemporaryDirectory() if isinstance(folder, BucketPath) else None
        place = pathlib.Path(self._local.name) if self._local else folder
        self._path = place / "events"  # tensorboardX appends time, host and suffix
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._path), f".{suffix}")
        self._object = None
        if isinstance(folder, BucketPath):
            (file,) = place.iterdir()
            self._object = GrowingObject(folder / file.name, file.read_bytes)

    def _write(self, **event: Any) -> None:
        with writing(self._path):
            self._writer.write_event(self._event(wall_time=time.time(), **event))
            self._writer.flush()
        if self._object is not None:
            self._object.grown()


_METRICS = ("eval/accuracy", "eval/nll", "eval/ece", "validation/accuracy", "train/loss")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float]]:
    """Fields by path; values other than numbers and text as text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float) else str(value)
