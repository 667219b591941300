"""Where a run's figures go: metrics.jsonl, TensorBoard and the terminal."""

import json
import os
import pathlib
import sys

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricsLog:
    """Writes one object per line to ``metrics.jsonl``, scalars to TensorBoard, and reports progress.

    On a terminal progress is a bar, otherwise plain lines. Only the first process writes.

    Args:
      workdir: the run's folder.
      start: the step from which the run goes on; later lines of an interrupted run are dropped.
      total: the run's last step.
      steps_per_epoch: for the field ``epoch``.
    """

    def __init__(self, workdir: pathlib.Path, *, start: int, total: int, steps_per_epoch: int):
        self._total, self._steps_per_epoch = total, steps_per_epoch
        self._first_process = jax.process_index() == 0
        self._bar = tqdm(
            total=total, initial=start, unit="step", dynamic_ncols=True,
            disable=not (self._first_process and sys.stderr.isatty()),
        )  # fmt: skip
        if self._first_process:
            path = workdir / "metrics.jsonl"
            kept = [line for line in read_metrics(workdir) if line["step"] <= start]
            partial = workdir / "metrics.jsonl.partial"
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(partial, path)
            self._file = path.open("a")
            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records the figures of a step."""
        if not self._first_process:
            return
        line = {"step": step, "epoch": round(step / self._steps_per_epoch, 4)} | values
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix_str(
            f"loss {values['train/loss']:.4g}" if "train/loss" in values else ""
        )
        if self._bar.disable or any(name in values for name in ("eval/nll", "validation/nll")):
            self.say(f"step {step}/{self._total}  epoch {line['epoch']:g}  {_brief(values)}")

    def say(self, message: str) -> None:
        """A line for the person who watches."""
        if self._first_process:
            self._bar.write(message, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.close()
        if self._first_process:
            self._file.close()
            self._tensorboard.close()


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


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``; a last line that was cut off in the middle is left out."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    complete = []
    for line in lines:
        try:
            complete.append(json.loads(line))
        except ValueError:
            break
    return complete
