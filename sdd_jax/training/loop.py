"""The training run: from a config and a workdir to a checkpoint and its evaluation."""

import pathlib
import signal
import time
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sdd_jax.evaluation import Evaluation
from sdd_jax.experiment import Experiment, load_experiment
from sdd_jax.parallel import AXIS, replicate
from sdd_jax.training.checkpoints import Checkpoints
from sdd_jax.training.metrics_log import MetricsLog, read_metrics
from sdd_jax.training.state import TrainState
from sdd_jax.training.step import compile_train_call, train_step
from sdd_jax.training.workdir import open_workdir


class NonFiniteLossError(FloatingPointError):
    """The loss is not a finite number any more; the message has the step."""


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
      NonFiniteLossError: the loss is not finite; the last good checkpoint is kept.
      Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    # -------------------------------------------------------------- experiment and workdir
    experiment = load_experiment(config)
    config = experiment.config
    folder = open_workdir(workdir, config)
    dataset, engine, total = experiment.dataset, experiment.engine, experiment.total_steps

    # ------------------------------------------------------------------ state, new or resumed
    checkpoints = Checkpoints(folder, keep=config.keep_checkpoints)
    restored = checkpoints.restore(experiment.abstract_state)
    start = 0 if restored is None else int(restored.step)
    result = _recorded_evaluation(folder, start)
    if start >= total and result:
        print(f"{folder} is finished: step {start}, eval/accuracy {result['eval/accuracy']:.4f}")
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
    step_fn = partial(
        train_step,
        model=experiment.model,
        objective=experiment.objective,
        optimizer=experiment.optimizer,
        prepare=experiment.prepare,
        seed=config.seed,
        steps_per_epoch=engine.steps_per_epoch,
        total_steps=total,
        axis_name=AXIS,
    )
    train_call = compile_train_call(step_fn, engine.gather)
    resident, constants = replicate((engine.resident, experiment.objective.constants))
    references = {f"train/{name}": value for name, value in experiment.references().items()}

    def evaluate(split: str, prefix: str) -> dict[str, float]:
        summary = Evaluation(experiment, state.variables, split).summary()
        if not np.isfinite(summary["nll"]):
            raise NonFiniteLossError(
                f"the loss on {split} is {summary['nll']} after step {step}; "
                "the last good checkpoint is kept"
            )
        return {f"{prefix}/{name}": value for name, value in summary.items()}

    # ------------------------------------------------------------------------------------ loop
    interval = _Interval(start, config.batch_size)
    with _StopSignal() as stop_signal:
        try:
            step = start
            if start and _due(start, experiment.eval_every, total) and not result:
                result = evaluate("test", "eval")  # the run was stopped before it came to that
                log.write(start, result)
            while step < total:
                until = _next_call(experiment, step)
                state, metrics = train_call(state, engine.inputs(step, until), resident, constants)
                interval.add(metrics, until - step)
                step = until
                stopping = stop_signal.received(step)
                # Who asks a run to stop may not wait for long: it is evaluated when it resumes.
                evaluating = _due(step, experiment.eval_every, total) and not stopping
                saving = _due(step, experiment.checkpoint_every, total) or stopping
                logging = step // experiment.log_every > interval.start // experiment.log_every
                if evaluating or saving or logging:
                    values = interval.finish() | references
                    values["train/learning_rate"] = float(experiment.schedule(step - 1))
                    if (evaluating or saving) and not stopping and "validation" in dataset.splits:
                        values |= evaluate("validation", "validation")
                    if evaluating:
                        result = evaluate("test", "eval")
                        values |= result
                    log.write(step, values)
                    if saving:
                        _check_finite(state, step)
                        checkpoints.save(
                            step, state, validation_accuracy=values.get("validation/accuracy")
                        )
                    interval.resume_clock()
                if stopping:
                    raise Interrupted(
                        f"stopped after step {step}, which is saved; the same command resumes"
                    )
        finally:
            checkpoints.close()
            log.close()
            engine.close()
    print(f"{folder} is finished: step {total}, eval/accuracy {result['eval/accuracy']:.4f}")
    return result


def _due(step: int, every: int, total: int) -> bool:
    return step % every == 0 or step == total


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


def _recorded_evaluation(folder: pathlib.Path, step: int) -> dict[str, float]:
    """The evaluation at ``step`` that the log holds, or nothing."""
    for line in read_metrics(folder):
        if line["step"] == step and "eval/accuracy" in line:
            return {name: value for name, value in line.items() if name.startswith("eval/")}
    return {}


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
            raise NonFiniteLossError(
                f"the loss is {by_step['loss'][bad[0]]} at step {self.start + bad[0] + 1}; "
                "the last good checkpoint is kept"
            )
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


class _StopSignal:
    """Notes SIGTERM and the first Ctrl-C; several processes agree on the step at which to stop."""

    def __enter__(self):
        self._received = False
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

    def received(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def _note(self, number, frame):
        self._received = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends it at once
