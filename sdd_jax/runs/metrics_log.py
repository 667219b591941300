"""The log of a run: metrics.jsonl, TensorBoard events and the terminal."""

import json
import pathlib
import sys
import time

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar
from tqdm import tqdm

from sdd_jax.errors import writing
from sdd_jax.runs.files import write_text
from sdd_jax.runs.workdir import read_metrics


class MetricsLog:
    """Writes one object per line to ``metrics.jsonl``, scalars to TensorBoard, and reports progress.

    Progress is a bar on a terminal and plain lines elsewhere. Only the first process writes.

    Args:
      workdir: the run's folder.
      start: the step at which the run resumes; later lines of the interrupted run are dropped.
      total: the run's last step.
      steps_per_epoch: number of steps per epoch, for the field ``epoch``.

    Raises:
      WriteError: a file or the terminal cannot be written; also raised by every method.
    """

    def __init__(self, workdir: pathlib.Path, *, start: int, total: int, steps_per_epoch: int):
        self._total, self._steps_per_epoch = total, steps_per_epoch
        self._first_process = jax.process_index() == 0
        self._bar = tqdm(
            total=total, initial=start, unit="step", dynamic_ncols=True,
            disable=not (self._first_process and sys.stderr.isatty()),
        )  # fmt: skip
        if self._first_process:
            self._path = workdir / "metrics.jsonl"
            self._rewrite([line for line in read_metrics(workdir) if line["step"] <= start])
            self._events = _Events(workdir / "tensorboard", purge_step=start + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records the metrics of a step; a second call for the same step adds to its line."""
        if not self._first_process:
            return
        line = {"step": step, "epoch": round(step / self._steps_per_epoch, 4)} | values
        if step == self._last_step:
            *before, last = read_metrics(self._path.parent)
            self._rewrite([*before, last | line])
        else:
            with writing(self._path), self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._last_step = step
        self._events.write(step, values)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix_str(
            f"loss {values['train/loss']:.4g}" if "train/loss" in values else ""
        )
        if self._bar.disable or any(name in values for name in ("eval/nll", "validation/nll")):
            self.say(f"step {step}/{self._total}  epoch {line['epoch']:g}  {_brief(values)}")

    def say(self, message: str) -> None:
        """Prints a line above the progress bar."""
        if self._first_process:
            with writing("standard output"):
                self._bar.write(message, file=sys.stdout)
                sys.stdout.flush()

    def close(self) -> None:
        """Closes the bar and the event file."""
        self._bar.close()
        if self._first_process:
            self._events.close()

    def _rewrite(self, lines: list[dict[str, float]]) -> None:
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._last_step = lines[-1]["step"] if lines else None


class _Events:
    """A TensorBoard event file, written synchronously so that errors are raised here."""

    def __init__(self, folder: pathlib.Path, *, purge_step: int):
        self._path = folder / "events"  # tensorboardX appends time, host and suffix
        with writing(folder):
            folder.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(self._path), f".{purge_step}")
        # Hides the events that an interrupted run wrote for these steps.
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [value for item in values.items() for value in scalar(*item).value]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        with writing(self._path):
            self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(self._path):
            self._writer.write_event(event)
            self._writer.flush()


def _brief(values: dict[str, float]) -> str:
    """Short progress line for the terminal."""
    shown = {name.removeprefix("train/"): value for name, value in values.items()}
    speed = shown.pop("images_per_second", None)
    text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items() if not _is_detail(name))
    return text + (f"  {speed:,.0f} images/s" if speed else "")


def _is_detail(name: str) -> bool:
    nested = "/" in name and not name.startswith(("eval/", "validation/"))
    return nested or name in ("learning_rate", "entropy")
