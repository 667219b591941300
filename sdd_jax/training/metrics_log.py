"""Where a run's figures go: metrics.jsonl, TensorBoard and the terminal."""

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
from sdd_jax.training.workdir import read_metrics, write_text


class MetricsLog:
    """Writes one object per line to ``metrics.jsonl``, scalars to TensorBoard, and reports progress.

    On a terminal progress is a bar, otherwise plain lines. Only the first process writes.

    Args:
      workdir: the run's folder.
      start: the step from which the run goes on; later lines of an interrupted run are dropped.
      total: the run's last step.
      steps_per_epoch: for the field ``epoch``.

    Raises:
      WriteError: also by every method; a file or the terminal cannot be written to.
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
        """Records the figures of a step, in one line with what is recorded of it already."""
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
        """A line for the person who watches."""
        if self._first_process:
            with writing("standard output"):
                self._bar.write(message, file=sys.stdout)
                sys.stdout.flush()

    def close(self) -> None:
        """Ends the bar and the file of events."""
        self._bar.close()
        if self._first_process:
            self._events.close()

    def _rewrite(self, lines: list[dict[str, float]]) -> None:
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._last_step = lines[-1]["step"] if lines else None


class _Events:
    """A file of TensorBoard events, written at once: what fails, fails here and not in a thread."""

    def __init__(self, folder: pathlib.Path, *, purge_step: int):
        self._path = folder / "events"  # and time, host and first step
        with writing(folder):
            folder.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(self._path), f".{purge_step}")
        # What an interrupted run has written of these steps is hidden: they will be trained again.
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
    """What a person wants to see pass by; the rest is in the file."""
    shown = {name.removeprefix("train/"): value for name, value in values.items()}
    speed = shown.pop("images_per_second", None)
    for hidden in [
        n
        for n in shown
        if n in ("learning_rate", "entropy")
        or (n.count("/") and not n.startswith(("eval/", "validation/")))
    ]:
        del shown[hidden]
    text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return text + (f"  {speed:,.0f} images/s" if speed else "")
