"""The log of a run: metrics.jsonl, the terminal and the metric writers."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sdd_jax import hosts
from sdd_jax.buckets import BucketPath
from sdd_jax.errors import writing
from sdd_jax.paths import Path
from sdd_jax.runs.files import GrowingObject, write_bytes
from sdd_jax.runs.workdir import METRICS_FILE, read_metrics
from sdd_jax.runs.writers import Writer
from sdd_jax.tasks import figures

LIVE_LINE = "{percentage:3.0f}% {bar} {n}/{total} steps, {remaining} left{postfix}"
LOSS = {"train/loss": "loss {:.4g}"}
TRAINED = {"train/accuracy": "training accuracy {:.2%}"}
SPEED = {"images_per_second": "{:,.0f} images/s"}
LIVE = LOSS | {"train/accuracy": "accuracy {:.1%}"} | SPEED
EVALUATED = {"nll": "NLL {:.3g}", "ece": "ECE {:.1%}"}  # beside the figures of the task
SPLITS = {"validation": "validation", "eval": "test"}  # prefix of the metrics: name


class MetricsLog:
    """Writes one object per line to ``metrics.jsonl``, and reports progress.

    On a terminal, progress is a live line, and a line per evaluation. Elsewhere there is a line per
    evaluation, for the first metrics, and for each tenth of the run. Only the first process writes.

    Args:
      workdir: the run's folder.
      start: the step at which the run resumes; later lines of the interrupted run are dropped.
      total: the run's last step.
      steps_per_epoch: number of steps per epoch, for the field ``epoch``.
      writers: see :func:`sdd_jax.runs.writers.installed`; they are opened here.
      config: the run's config, for the writers.

    Raises:
      InputError: a writer cannot be used.
      WriteError: a file or the terminal cannot be written; also raised by every method.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start: int,
        total: int,
        steps_per_epoch: int,
        writers: Sequence[type[Writer]] = (),
        config: Mapping[str, Any] | None = None,
    ):
        self._total, self._steps_per_epoch = total, steps_per_epoch
        self._first_process = hosts.first()
        self._object: GrowingObject | None = None
        self._tenth: int | None = None  # of the run, at the last line on standard output
        self._writers: list[Writer] = []
        if self._first_process:
            self._path = workdir / METRICS_FILE
            self._lines = [line for line in read_metrics(workdir) if line["step"] <= start]
            if isinstance(self._path, BucketPath):
                self._object = GrowingObject(self._path, self._text)
            self._rewrite()
            for writer in writers:
                self._writers.append(writer(workdir, start=start, config=config or {}))
        self._bar = tqdm(
            total=total, initial=start, bar_format=LIVE_LINE, dynamic_ncols=True, leave=False,
            disable=not (self._first_process and sys.stderr.isatty()),
        )  # fmt: skip

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records the metrics of a step; a second call for the same step adds to its line."""
        if not self._first_process:
            return
        line = {"step": step, "epoch": round(step / self._steps_per_epoch, 4)} | values
        if self._lines and step == self._lines[-1]["step"]:
            self._lines[-1] |= line
            self._rewrite()
        else:
            self._lines.append(line)
            self._append(line)
        for writer in self._writers:
            writer.scalars(step, values)
        self.advance(step)
        self._bar.set_postfix_str(", ".join(_shown(LIVE, values)))
        accuracies = {metric: f"{label} {{:.2%}}" for metric, label in figures().items()}
        evaluated = [
            f"{name} {', '.join(_shown(accuracies | EVALUATED, values, prefix))}"
            for prefix, name in SPLITS.items()
            if f"{prefix}/accuracy" in values
        ]
        tenth = 10 * step // self._total
        if evaluated or (self._bar.disable and tenth != self._tenth):
            self._tenth = tenth
            parts = [f"step {step}/{self._total}", f"epoch {line['epoch']:g}"]
            parts += _shown(LOSS, values) + (evaluated or _shown(TRAINED, values))
            self.say("  ".join(parts + _shown(SPEED, values)))

    def advance(self, step: int) -> None:
        """Moves the live line to a step."""
        self._bar.update(step - self._bar.n)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Passes an image, uint8 ``[H, W, C]``, to the writers."""
        for writer in self._writers:
            writer.image(step, name, image)

    def say(self, message: str) -> None:
        """Prints a line above the live line."""
        if self._first_process:
            with writing("standard output"):
                self._bar.write(message, file=sys.stdout)
                sys.stdout.flush()

    def flush(self) -> None:
        """Writes what is pending; only in a bucket, which cannot append, there is anything."""
        for part in (*filter(None, [self._object]), *self._writers):
            part.flush()

    def close(self) -> None:
        """Removes the live line, writes what is pending and closes the writers."""
        self._bar.close()
        self.flush()
        for writer in self._writers:
            writer.close()

    def _text(self) -> bytes:
        return "".join(json.dumps(line) + "\n" for line in self._lines).encode()

    def _append(self, line: dict[str, float]) -> None:
        if self._object is not None:
            self._object.grown()
            return
        with writing(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _rewrite(self) -> None:
        if self._object is not None:
            self._object.grown()
        else:
            write_bytes(self._path, self._text())


def _shown(formats: Mapping[str, str], values: Mapping[str, float], prefix: str = "") -> list[str]:
    """The values that are there, as text."""
    by_name = {name: f"{prefix}/{name}" if prefix else name for name in formats}
    return [
        formats[name].format(values[key]).replace("%", " %")
        for name, key in by_name.items()
        if key in values
    ]
