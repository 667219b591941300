"""The training run: from a config and a workdir to a checkpoint and its evaluation."""

import contextlib
import pathlib
import signal
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sdd_jax.errors import Failure, writing
from sdd_jax.evaluation import Evaluation
from sdd_jax.experiment import Experiment, load_experiment
from sdd_jax.parallel import replicate
from sdd_jax.training.checkpoints import Checkpoints
from sdd_jax.training.metrics_log import MetricsLog
from sdd_jax.training.state import TrainState
from sdd_jax.training.step import compile_training
from sdd_jax.training.workdir import open_workdir, read_metrics


class NonFiniteLossError(Failure, FloatingPointError):
    """The loss, or a parameter, is not a finite number any more; the message has the step."""


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM or Ctrl-C) and has saved its state."""


def train_and_evaluate(config: ConfigDict, workdir: str) -> dict[str, float]:
    """Trains as ``config`` says, or goes on where the run in ``workdir`` stopped.

    The rule for resuming, in order: (1) no checkpoint: start at step 0; (2) restore the latest one that
    is intact, whatever the number of devices it was written on; (3) drop the logged lines after it;
    (4) if it is the last step, report and return. A resumed run ends with the same parameters, bit for
    bit, as an uninterrupted one.

    Args:
      config: see ``sdd_jax.config.default``.
      workdir: folder of the run; made if need be.

    Returns:
      The last evaluation, ``{"eval/accuracy": ..., ...}``.

    Raises:
      InputError: config or workdir cannot be used; nothing has been compiled.
      NonFiniteLossError: the loss or a parameter is not finite; the last good checkpoint is kept.
      WriteError: the disk is full, or something else keeps the run from writing; checkpoints are kept.
      Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    experiment = load_experiment(config)
    with open_workdir(workdir, experiment.config) as folder:
        return _train(experiment, folder)


def _train(experiment: Experiment, folder: pathlib.Path) -> dict[str, float]:
    config, dataset, engine = experiment.config, experiment.dataset, experiment.engine
    total = experiment.total_steps

    # ------------------------------------------------------------------ state, new or resumed
    checkpoints = Checkpoints(folder, keep=config.keep_checkpoints)
    restored = checkpoints.restore(experiment.abstract_state)
    start = 0 if restored is None else int(restored.step)
    recorded = _recorded(folder, start)
    if start >= total and "eval/accuracy" in recorded:
        result = _evaluation(recorded)
        _say_finished(folder, start, result)
        return result
    state = replicate(experiment.create_state() if restored is None else restored)
    log = MetricsLog(folder, start=start, total=total, steps_per_epoch=engine.steps_per_epoch)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    sizes = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    log.say(
        f"{config.model.name}, {parameters:,} parameters; {dataset.name}: {sizes} images, "
        f"{dataset.num_classes} classes; {jax.device_count()} {jax.devices()[0].platform} device(s); "
        + (f"resuming after step {start}" if start else f"{total} steps")
    )

    # ---------------------------------------------------------------------- compiled functions
    train_call = compile_training(experiment)
    resident, constants = replicate((engine.resident, experiment.objective.constants))
    references = {f"train/{name}": value for name, value in experiment.references().items()}

    # ------------------------------------------------------------------------------------ loop
    interval = _Interval(start, config.batch_size)
    with contextlib.ExitStack() as stack:
        for part in (engine, log, checkpoints):
            stack.callback(part.close)
        stop_signal = stack.enter_context(_StopSignal())

        def evaluate(step: int, values: dict[str, float]) -> bool:
            """Adds the evaluations due at the step that are not there; whether all of them are now."""
            try:
                for split, prefix in _evaluations(experiment, step).items():
                    if f"{prefix}/accuracy" not in values:
                        on = Evaluation(experiment, state.variables, split, stop_signal.check)
                        summary = on.summary()
                        _check_loss(summary["nll"], f"the loss on {split}", f"after step {step}")
                        values |= {f"{prefix}/{name}": v for name, v in summary.items()}
            except _StopAsked:
                return False
            return True

        step, stopping = start, False
        if start:  # the run may have been stopped before it came to the evaluations of this step
            values = dict(recorded)
            stopping = not evaluate(start, values)
            if added := {name: v for name, v in values.items() if name not in recorded}:
                log.write(start, added)
                checkpoints.note_accuracy(start, values.get("validation/accuracy"))
        while step < total and not stopping:
            until = _next_call(experiment, step)
            state, metrics = train_call(state, engine.inputs(step, until), resident, constants)
            interval.add(metrics, until - step)
            step = until
            stopping = stop_signal.received()
            saving = _due(step, experiment.checkpoint_every, total) or stopping
            logging = step // experiment.log_every > interval.start // experiment.log_every
            evaluating = bool(_evaluations(experiment, step))
            if saving or logging or evaluating:
                values = interval.finish() | references
                values["train/learning_rate"] = float(experiment.schedule(step - 1))
                if saving or evaluating:
                    _check_finite(state, step)
                # Who asks a run to stop may not wait for long: it is evaluated when it resumes.
                stopping = stopping or not evaluate(step, values)
                log.write(step, values)
                if saving or stopping:
                    accuracy = values.get("validation/accuracy")
                    checkpoints.save(step, state, validation_accuracy=accuracy)
                interval.resume_clock()
        if stopping:
            raise Interrupted(
                f"stopped after step {step}, which is saved; the same command resumes"
            )
    result = _evaluation(values)
    _say_finished(folder, total, result)
    return result


def _say_finished(folder: pathlib.Path, step: int, result: dict[str, float]) -> None:
    with writing("standard output"):
        print(
            f"{folder} is finished: step {step}, eval/accuracy {result['eval/accuracy']:.4f}",
            flush=True,
        )


def _due(step: int, every: int, total: int) -> bool:
    return step % every == 0 or step == total


def _evaluations(experiment: Experiment, step: int) -> dict[str, str]:
    """The splits to evaluate at a step, and what their figures are called in the log."""
    evaluating, saving = (
        _due(step, every, experiment.total_steps)
        for every in (experiment.eval_every, experiment.checkpoint_every)
    )
    due = {"validation": "validation", "test": "eval"} if evaluating else {}
    due |= {"validation": "validation"} if saving else {}
    return {split: due[split] for split in due if split in experiment.dataset.splits}


def _recorded(folder: pathlib.Path, step: int) -> dict[str, float]:
    """The log's line of a step, or nothing."""
    lines = [line for line in read_metrics(folder) if line["step"] == step]
    return lines[-1] if lines else {}


def _evaluation(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("eval/")}


def _check_finite(state: TrainState, step: int) -> None:
    """A step's loss is that of the values before it: what the step made of them may be no numbers.

    Raises:
      NonFiniteLossError: the state is not one to go on from.
    """
    for path, array in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        if not np.all(np.isfinite(array)):
            raise NonFiniteLossError(
                f"{jax.tree_util.keystr(path)} is not finite after step {step}; "
                "the last good checkpoint is kept"
            )


def _check_loss(loss: float, what: str, when: str) -> None:
    if not np.isfinite(loss):
        raise NonFiniteLossError(f"{what} is {loss} {when}; the last good checkpoint is kept")


def _next_call(experiment: Experiment, step: int) -> int:
    """The step at which the call that starts at ``step`` ends.

    Evaluations, checkpoints and the end bound a call. The grid of calls in between is fixed by the
    config, not by where a run resumed, so a resumed run makes the same calls as an uninterrupted one.
    """
    periods = (experiment.eval_every, experiment.checkpoint_every)
    first = max(step // period * period for period in periods)
    last = min(experiment.total_steps, *((step // period + 1) * period for period in periods))
    grid = first + ((step - first) // experiment.steps_per_call + 1) * experiment.steps_per_call
    return min(grid, last)


class _Interval:
    """The steps between two lines of the log: their mean metrics, and images per second.

    The clock stands still during evaluation and saving, and starts after the first call, which compiles.
    """

    def __init__(self, start: int, batch_size: int):
        self.start, self._end = start, start
        self._batch_size = batch_size
        self._pending: list[dict[str, jax.Array]] = []
        self._clock: float | None = None
        self._timed_from = start

    def add(self, metrics: dict[str, jax.Array], steps: int) -> None:
        self._pending.append(metrics)
        self._end += steps
        if self._clock is None:
            jax.block_until_ready(metrics)
            self._clock, self._timed_from = time.perf_counter(), self._end

    def finish(self) -> dict[str, float]:
        """The means since the last line.

        Raises:
          NonFiniteLossError: a loss was not finite.
        """
        fetched = jax.device_get(self._pending)
        by_step = {name: np.concatenate([m[name] for m in fetched]) for name in fetched[0]}
        elapsed = time.perf_counter() - self._clock
        bad = np.flatnonzero(~np.isfinite(by_step["loss"]))
        if bad.size:
            step = self.start + bad[0] + 1
            _check_loss(by_step["loss"][bad[0]], "the loss", f"at step {step}")
        values = {
            f"train/{name}": float(np.mean(v, dtype=np.float64)) for name, v in by_step.items()
        }
        if self._end > self._timed_from:
            images = (self._end - self._timed_from) * self._batch_size
            values["images_per_second"] = images / elapsed
        self.start, self._pending = self._end, []
        return values

    def resume_clock(self) -> None:
        self._clock, self._timed_from = time.perf_counter(), self._end


class _StopAsked(Exception):
    """Somebody wants the run to stop, while it evaluates."""


class _StopSignal:
    """Notes SIGTERM and the first Ctrl-C; several processes agree on the moment at which to stop."""

    def __enter__(self):
        self._received = False
        self._asked = 0
        self._previous = {}
        if jax.process_count() == 1:  # otherwise JAX's own service watches for SIGTERM
            for number in (signal.SIGTERM, signal.SIGINT):
                try:
                    self._previous[number] = signal.signal(number, self._note)
                except ValueError:  # not the main thread: whoever owns that one decides
                    break
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def received(self) -> bool:
        """Whether to stop now; all processes ask the same number of times."""
        if jax.process_count() > 1 and not self._received:
            self._asked += 1
            self._received = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._received

    def check(self) -> None:
        """Raises ``_StopAsked`` if it is time to stop."""
        if self.received():
            raise _StopAsked

    def _note(self, number, frame):
        self._received = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends it at once
