"""The training program: from a config and a workdir to a trained, evaluated network."""

import contextlib
import dataclasses
import itertools
import logging
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sdd_jax import config as configs
from sdd_jax import hosts
from sdd_jax.data.lazy_images import UndecodableImageError
from sdd_jax.devices import AXIS, replicate
from sdd_jax.errors import Failure, InputError, require, writing
from sdd_jax.evaluation import Evaluator
from sdd_jax.experiment import Experiment, load_experiment
from sdd_jax.paths import Path, given_path
from sdd_jax.prng import example_keys
from sdd_jax.runs import (
    Checkpoints,
    MetricsLog,
    SameRun,
    differing,
    load_imports,
    open_workdir,
    read_metrics,
    teacher_workdirs,
    writers,
)
from sdd_jax.tasks import selecting
from sdd_jax.training import durations
from sdd_jax.training.state import TrainState
from sdd_jax.training.step import compile_train_call, train_step

# Calls dispatched at a time. XLA blocks a device that has 32 programs in flight; with several CPU
# devices on a busy machine, that can keep one device from a collective that the others wait in.
MAX_CALLS_IN_FLIGHT = 8

_logger = logging.getLogger(__name__)


class NonFiniteLossError(Failure, FloatingPointError):
    """The loss or a parameter is not finite; the message names the step and the last checkpoint."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C stopped the run after its state was saved.

    Attributes:
      signal: the signal.
    """

    def __init__(self, message: str = "", number: int = signal.SIGTERM):
        super().__init__(message)
        self.signal = number


def train_and_evaluate(
    config: ConfigDict, workdir: str, *, trust_imports: bool = False
) -> dict[str, float]:
    """Trains a network, or resumes the run in ``workdir``.

    The rule for resuming, in order:

    0. If the config has a longer duration than the run, record it, provided that no step already
       trained would have been another one.
    1. Without a checkpoint, start at step 0.
    2. Restore the latest intact checkpoint, whatever the number of devices it was written on.
    3. Drop the log lines after it.
    4. If it is at the last step and has been evaluated, report and return.

    A resumed run ends with the same parameters, bit for bit, as an uninterrupted one, a longer one with
    those of a run of its duration from the start.

    Args:
      config: see :func:`sdd_jax.config.default`.
      workdir: folder of the run; created if necessary.
      trust_imports: execute the Python files that the config of the teacher imports, and the run's copy
        of a file of ``config.imports`` that is no longer there.

    Returns:
      The last evaluation, ``{"eval/accuracy": ..., ...}``.

    Raises:
      InputError: config or workdir cannot be used; nothing has been compiled.
      NonFiniteLossError: the loss or a parameter is not finite; the last good checkpoint is kept.
      WriteError: the run cannot write, for example on a full disk; checkpoints are kept.
      Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    with hosts.together():
        # Refuses a remote folder before the data are loaded.
        given = given_path(workdir, field="--workdir")
        config = configs.with_kept_imports(config, given, trusted=trust_imports)
        if trust_imports:
            for teacher in teacher_workdirs(config.teacher):
                load_imports(teacher, field="config.teacher")
        experiment = load_experiment(config)
        writers.installed(experiment.config.log_to)
        facts = experiment.facts()
    _require_same_run({"config": experiment.config.to_dict(), **facts})
    with open_workdir(workdir) as folder:
        with hosts.together():
            if hosts.first():
                longer = partial(check_longer, experiment, folder)
                configs.record(folder, experiment.config, facts, check_longer=longer)
        try:
            return _train(experiment, folder)
        except NonFiniteLossError as error:
            steps = Checkpoints(folder, read_only=True).steps()
            kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint yet"
            raise NonFiniteLossError(f"{error}; {kept}") from None


def _require_same_run(ours: dict[str, Any]) -> None:
    """Requires that all hosts have the same config and facts; the data may lie in different places."""
    everyone = hosts.gather(ours)
    for i, theirs in enumerate(everyone):
        different = differing(
            everyone[0],
            theirs,
            ignored=lambda field: field in ("config.dataset.data_dir", "config.dataset.cache_dir"),
            where=("on process 0", f"on process {i}"),
        )
        if different:
            raise InputError(f"all processes must train the same run; {'; '.join(different)}")


def check_longer(experiment: Experiment, folder: Path, former: str) -> None:
    """Requires that the steps of a run of the duration ``former`` are the first of this experiment.

    Raises:
      InputError: this run is shorter, or a step already trained would have been another one.
    """
    engine, config = experiment.engine, experiment.config
    total = durations.steps("config.duration", former, engine.steps_per_epoch)
    require(
        experiment.total_steps >= total,
        "config.duration",
        config.duration,
        f"at least {former}, the duration of the run in {folder}",
    )
    trained = max(Checkpoints(folder, read_only=True).steps(), default=0)
    if reason := _changed_by_duration(experiment, total, trained):
        raise InputError(
            f"{config.duration} instead of {former} would change {reason}; start a new run in another "
            "workdir",
            field="config.duration",
        )
    periods = (experiment.eval_every, experiment.checkpoint_every)
    since = trained - max(trained // n * n for n in periods)
    if experiment.total_steps > total and since % experiment.steps_per_call:
        _logger.warning(
            "config.duration: a run of %s from the start has no end of a dispatch at step %d, where "
            "this one goes on; the two may differ by rounding",
            config.duration,
            trained,
        )


def _changed_by_duration(experiment: Experiment, former: int, trained: int) -> str:
    """What a run of ``former`` steps has another of in its first ``trained`` steps; empty: nothing."""
    if trained == 0 or former == experiment.total_steps:
        return ""
    config, steps = experiment.config, jnp.arange(trained)
    ours, theirs = (
        np.asarray(jax.jit(jax.vmap(experiment.schedule_of(total)))(steps))
        for total in (experiment.total_steps, former)
    )
    if not np.array_equal(ours, theirs):
        return f"the learning rate of steps already trained (schedule {config.schedule.name!r})"
    # The optimizer is that of this experiment in both programs: only the loss can differ.
    if len(_programs(experiment, (experiment.total_steps, former), trained)) > 1:
        parts = f"objective {config.objective.name!r}"
        if config.sd_dropout.weight and config.sd_dropout.ramp:
            parts += f", sd_dropout.ramp {config.sd_dropout.ramp}"
        return f"the loss of steps already trained ({parts})"
    return ""


def _programs(experiment: Experiment, totals: Sequence[int], step: int) -> set[str]:
    """The different programs of a training step in runs of these numbers of steps."""
    engine, programs = experiment.engine, set()
    try:
        inputs, constants = engine.inputs(step, step + 1), experiment.constants()
        for total in totals:
            call: Any = compile_run(dataclasses.replace(experiment, total_steps=total))
            lowered = call.lower(experiment.abstract_state, inputs, engine.resident, constants)
            programs.add(lowered.as_text())
    finally:
        engine.close()
    return programs


def _train(experiment: Experiment, folder: Path) -> dict[str, float]:
    config, dataset, engine = experiment.config, experiment.setup.dataset, experiment.engine
    total = experiment.total_steps

    # ------------------------------------------------------------------- state, new or resumed
    checkpoints = Checkpoints(folder, keep=config.keep_checkpoints)
    restored = _restore_latest(checkpoints, experiment.abstract_state)
    start = 0 if restored is None else int(restored.step)
    recorded = hosts.gather(_logged_line(folder, start))[0]
    if start >= total and "eval/accuracy" in recorded:
        return _finish(folder, start, recorded)
    state = replicate(experiment.create_state() if restored is None else restored)
    log = MetricsLog(
        folder,
        start=start,
        total=total,
        steps_per_epoch=engine.steps_per_epoch,
        writers=writers.installed(config.log_to),
        config=config.to_dict(),
    )
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    sizes = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    log.say(
        f"{config.model.name}, {parameters:,} parameters; {dataset.name}: {sizes} "
        f"{dataset.inputs.name}, {dataset.num_classes} classes; "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s); "
        + (f"resuming after step {start}" if start else f"{total} steps")
    )

    # -------------------------------------------------------------------- compiled training step
    train_call = compile_run(experiment)
    resident, constants = replicate((engine.resident, experiment.constants()))

    # ------------------------------------------------------------------------------------ loop
    interval, run = _Interval(start, config.batch_size), SameRun(folder)
    with contextlib.ExitStack() as stack:
        for part in (engine, log, checkpoints):
            stack.callback(part.close)
        stop = stack.enter_context(_StopSignal())
        is_image = dataset.inputs.name == "images"
        if not start and is_image and config.log_to and hosts.first():
            log.image(0, "training images", augmented_images(experiment))

        def evaluate(step: int, values: dict[str, float]) -> bool:
            """Adds the evaluations due at ``step`` that are missing; False if a stop came first."""
            try:
                for split, prefix in _evaluations(experiment, step).items():
                    if f"{prefix}/accuracy" not in values:
                        variables = replicate(state.variables)
                        evaluator = Evaluator(experiment.setup, variables, split, stop.check)
                        summary = evaluator.summary()
                        _check_loss(summary["nll"], f"the loss on {split}", f"after step {step}")
                        values |= {f"{prefix}/{name}": value for name, value in summary.items()}
            except _StopRequested:
                return False
            return True

        step, stopping, values = start, False, dict(recorded)
        if start:  # the run may have stopped before the evaluations of this step
            stopping = not evaluate(start, values)
            if added := {name: v for name, v in values.items() if name not in recorded}:
                log.write(start, added)
                metric = selecting(values, "validation")
                checkpoints.note_accuracy(start, values.get(f"validation/{metric}"))
        while step < total and not stopping:
            until = call_end(experiment, step)
            state, metrics = train_call(state, engine.inputs(step, until), resident, constants)
            interval.add(metrics, until - step)
            step = until
            log.advance(step)
            stopping = stop.received()
            saving = _due(step, experiment.checkpoint_every, total) or stopping
            logging = step // experiment.log_every > interval.start // experiment.log_every
            evaluating = bool(_evaluations(experiment, step))
            if saving or logging or evaluating:
                skipped = engine.skipped(interval.start, step)
                values = interval.finish() | ({"train/skipped": skipped} if skipped else {})
                values["train/learning_rate"] = float(np.asarray(experiment.schedule(step - 1)))
                if saving or evaluating:
                    _check_finite(state, step)
                # When stopping, skip the evaluation; it runs on resume.
                stopping = stopping or not evaluate(step, values)
                run.check()
                log.write(step, values)
                if saving or stopping:
                    log.flush()  # a resumed run begins after the lines of its checkpoint
                    accuracy = values.get(f"validation/{selecting(values, 'validation')}")
                    checkpoints.save(step, state, validation_accuracy=accuracy)
                    run.check()  # Orbax would create the folder again
                interval.resume_clock()
        if stopping:
            raise Interrupted(
                f"stopped after step {step}, which is saved; the same command resumes", stop.signal
            )
    return _finish(folder, total, values)


def _restore_latest(checkpoints: Checkpoints, like: TrainState) -> TrainState | None:
    """The latest intact checkpoint; one host finds it, and sets damaged ones aside."""
    with hosts.together():
        restored = checkpoints.restore(like) if hosts.first() else None
    step = hosts.gather(None if restored is None else int(restored.step))[0]
    with hosts.together():
        if step is not None and not hosts.first():
            restored = checkpoints.restore(like, which=str(step))
    return restored


def augmented_images(experiment: Experiment, count: int = 64, columns: int = 8) -> np.ndarray:
    """The first training images as the network sees them, in a grid, uint8 ``[H, W, C]``.

    A damaged image is black; training reports it when it comes to it.
    """
    dataset, images = experiment.setup.dataset, experiment.examples.images
    raw = np.zeros((min(count, len(images)), *dataset.image_shape), np.uint8)
    for i in range(len(raw)):
        with contextlib.suppress(UndecodableImageError):
            raw[i] = images[i]
    position = jnp.arange(len(raw))
    keys = example_keys(experiment.config.seed, "logged images", jnp.int32(0), position)
    prepared = np.asarray(jax.jit(experiment.prepare)(keys, raw))
    pixels = np.clip(np.rint(255 * (prepared * dataset.std + dataset.mean)), 0, 255)
    _, height, width, channels = pixels.shape
    rows = -(-len(pixels) // columns)
    grid = np.zeros((rows * columns, height, width, channels), np.uint8)
    grid[: len(pixels)] = pixels
    grid = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def compile_run(experiment: Experiment) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the compiled steps of a run, see :func:`sdd_jax.training.step.compile_train_call`."""
    step = partial(
        train_step,
        model=experiment.setup.model,
        objective=experiment.objective,
        optimizer=experiment.optimizer,
        prepare=experiment.prepare,
        task=experiment.setup.dataset.task,
        seed=experiment.config.seed,
        steps_per_epoch=experiment.engine.steps_per_epoch,
        total_steps=experiment.total_steps,
        accumulate=experiment.config.accumulate,
        axis_name=AXIS,
    )
    return compile_train_call(step, experiment.engine.gather, experiment.config.parallel)


def _finish(folder: Path, step: int, values: dict[str, float]) -> dict[str, float]:
    """Reports the end of the run; returns its last evaluation."""
    metric = f"eval/{selecting(values, 'eval')}"
    with writing("standard output"):
        print(
            f"{folder} is finished: step {step}, {metric} {values[metric]:.4f}",
            flush=True,
        )
    return {name: value for name, value in values.items() if name.startswith("eval/")}


# -------------------------------------------------------------- evaluations and checkpoints due


def _due(step: int, every: int, total: int) -> bool:
    return step % every == 0 or step == total


def _evaluations(experiment: Experiment, step: int) -> dict[str, str]:
    """The splits to evaluate at a step, and the prefixes of their metrics."""
    evaluating, saving = (
        _due(step, every, experiment.total_steps)
        for every in (experiment.eval_every, experiment.checkpoint_every)
    )
    due = {"validation": "validation", "test": "eval"} if evaluating else {}
    due |= {"validation": "validation"} if saving else {}
    return {split: due[split] for split in due if split in experiment.setup.dataset.splits}


def call_end(experiment: Experiment, step: int) -> int:
    """The step at which the call that starts at ``step`` ends.

    Evaluations, checkpoints and the end bound a call. The grid of calls in between is a function of the
    config, not of where a run resumed, so a resumed run makes the same calls as an uninterrupted one.
    """
    periods = (experiment.eval_every, experiment.checkpoint_every)
    first = max(step // period * period for period in periods)
    last = min(experiment.total_steps, *((step // period + 1) * period for period in periods))
    grid = first + ((step - first) // experiment.steps_per_call + 1) * experiment.steps_per_call
    return min(grid, last)


def _logged_line(folder: Path, step: int) -> dict[str, Any]:
    """The last log line of a step; empty if there is none."""
    lines = [line for line in read_metrics(folder) if line["step"] == step]
    return lines[-1] if lines else {}


# -------------------------------------------------------------------------------- finite numbers


def _check_finite(state: TrainState, step: int) -> None:
    """Checks the whole state.

    The loss is computed before the update, so the new parameters can be non-finite even when the loss is
    finite.

    Raises:
      NonFiniteLossError: an array of the state is not finite.
    """
    for path, array in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        if not np.all(np.isfinite(array)):
            raise NonFiniteLossError(
                f"{jax.tree_util.keystr(path)} is not finite after step {step}"
            )


def _check_loss(loss: float, name: str, when: str) -> None:
    if not np.isfinite(loss):
        raise NonFiniteLossError(f"{name} is {loss} {when}")


class _Interval:
    """Mean metrics and images per second of the steps between two log lines.

    The clock stops during evaluation and saving, and starts after the first call, which compiles.
    """

    def __init__(self, start: int, batch_size: int):
        self.start, self._end = start, start
        self._batch_size = batch_size
        self._pending: list[dict[str, jax.Array]] = []
        self._clock = 0.0
        self._started = False
        self._timed_from = start

    def add(self, metrics: dict[str, jax.Array], steps: int) -> None:
        """Adds the metrics ``[steps]`` of one call."""
        self._pending.append(metrics)
        self._end += steps
        if not self._started:
            jax.block_until_ready(metrics)
            self.resume_clock()
        if len(self._pending) >= MAX_CALLS_IN_FLIGHT:
            jax.block_until_ready(self._pending[-MAX_CALLS_IN_FLIGHT])

    def finish(self) -> dict[str, float]:
        """Returns the means since the last line, and starts the next interval.

        Raises:
          NonFiniteLossError: a loss is not finite.
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
        """Starts the clock at the last step that was added."""
        self._started = True
        self._clock, self._timed_from = time.perf_counter(), self._end


# ------------------------------------------------------------------------------------- stopping


class _StopRequested(Exception):
    """A stop was requested during an evaluation."""


# Of all runs of this process: JAX stops at a poll later than all before.
_polls = itertools.count(1)


class _StopSignal:
    """Handles SIGTERM and the first Ctrl-C; several processes agree on the step at which to stop."""

    def __enter__(self):
        self._received, self.signal = False, signal.SIGTERM
        self._previous = {}
        if jax.process_count() == 1:  # otherwise JAX's preemption service handles SIGTERM
            for number in (signal.SIGTERM, signal.SIGINT):
                try:
                    self._previous[number] = signal.signal(number, self._handle)
                except ValueError:  # outside the main thread, the caller handles signals
                    break
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def received(self) -> bool:
        """True if the run should stop now; every process must call it equally often."""
        if jax.process_count() > 1 and not self._received:
            self._received = multihost_utils.reached_preemption_sync_point(next(_polls))
        return self._received

    def check(self) -> None:
        """Raises ``_StopRequested`` if the run should stop now."""
        if self.received():
            raise _StopRequested

    def _handle(self, number, frame):
        self._received, self.signal = True, number
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
