"""Shared functions of the benchmarks: timing in turns, a training step to time, the result file.

The speed of a machine varies, by up to a half from minute to minute. The two sides of a ratio therefore
run in turns, in one process (or in two, of which one is idle). The ratio is taken within each round; its
median over the rounds is reported, with the quartiles.
"""

import argparse
import json
import os
import pathlib
import platform
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("sdd_jax", "jax", "jaxlib", "libtpu", "flax", "torch")


def parser(doc: str, **defaults: Any) -> argparse.ArgumentParser:
    """Creates a command line with the options that all benchmarks share.

    Args:
      doc: docstring of the benchmark's module.
      **defaults: the benchmark's own options, numbers or strings, by name.
    """
    result = argparse.ArgumentParser(description=doc.partition("\n")[0])
    for name, default in defaults.items():
        result.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    result.add_argument("--machine", default=machine(), help="description of the machine")
    result.add_argument(
        "--output", type=pathlib.Path, help="result file; default benchmarks/results/NAME-*.json"
    )
    return result


def seconds(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Times one call, until its results are computed."""
    import jax

    start = clock()
    jax.block_until_ready(function())
    return clock() - start


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs all sides in every round, and discards a first round, in which they compile.

    Args:
      sides: functions that run once and return their seconds.
      rounds: number of rounds, at least 1.

    Returns:
      For each side, its seconds in each round.
    """
    timings: dict[str, list[float]] = {name: [] for name in sides}
    for is_measured in [False, *[True] * rounds]:
        for name, side in sides.items():
            elapsed = side()
            if is_measured:
                timings[name].append(elapsed)
    return timings


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of ``numerator / denominator``, taken within each round."""
    return summary([a / b for a, b in zip(numerator, denominator, strict=True)])


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles."""
    if len(values) > 1:
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
    else:
        quartiles = [values[0]] * 3
    low, median, high = (float(f"{x:.4g}") for x in quartiles)
    return {"median": median, "quartiles": [low, high], "rounds": len(values)}


def write(args: argparse.Namespace, name: str, command: str, what: str, **results: Any) -> None:
    """Writes the result file, with the machine, the versions and the commit.

    Args:
      args: the parsed command line.
      name: name of the file, unless the command line names another.
      command: command that repeats the benchmark.
      what: description of the measurement.
      **results: the figures.
    """
    from sdd_jax.runs.workdir import source_commit

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    head = {"what": what, "command": command, "machine": args.machine, "versions": versions}
    head["commit"] = source_commit()
    output = args.output or RESULTS / f"{name}.json"
    output.write_text(json.dumps(head | results, indent=2) + "\n")
    print(f"written to {output}")


def machine() -> str:
    """Describes the device.

    JAX runs in a separate process for this: in this one it would hold the TPU, or the GPU memory, that
    the processes started by a benchmark need.
    """
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)"
    process = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    platform_name, _, kind = process.stdout.splitlines()[-1].partition(" ")
    return kind if platform_name != "cpu" else f"{cores()} CPU cores"


def cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def random_images(
    path: pathlib.Path, *, train: int = 1024, size: int = 32, classes: int = 100
) -> str:
    """Writes an npz file of random images; returns its name as a data set."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", train), ("test", classes)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, size, size, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number) % classes
    np.savez(path, **arrays)
    return f"npz:{path}"


def load_card(card: str) -> Any:
    """Loads the config of a recipe card, e.g. ``configs/cifar100_resnet18.py:ce``."""
    path, _, argument = card.partition(":")
    module = runpy.run_path(str(ROOT / path))
    return module["get_config"](*filter(None, [argument]))


def run_config(
    data: str, model: str, *, batch: int, sd_dropout: float = 0.0, **options: Any
) -> Any:
    """Creates the config of a run to time: cross-entropy, one step per dispatch, no augmentation.

    Args:
      data: name of the data set.
      model: name of the network.
      batch: global batch size.
      sd_dropout: weight of SD-Dropout.
      **options: options of the network.
    """
    from sdd_jax import config as configs
    from sdd_jax.models import models

    config = configs.default()
    config.dataset.name = data
    config.model = models.options(model, **options)
    config.sd_dropout.weight = sd_dropout
    config.batch_size = batch
    config.steps_per_call = 1
    return config


def training_step(config: Any, engine: Any = None) -> Callable[[], float]:
    """Compiles the training call of a run.

    Args:
      config: config of the run, including ``steps_per_call``.
      engine: supplies the batches in place of the run's own engine.

    Returns:
      A function that makes the next call and returns its seconds.
    """
    from sdd_jax.devices import replicate
    from sdd_jax.experiment import load_experiment
    from sdd_jax.train import compile_run

    experiment = load_experiment(config)
    train_call, engine = compile_run(experiment), engine or experiment.engine
    state = replicate(experiment.create_state())
    resident, constants = replicate((engine.resident, experiment.constants()))
    step = 0

    def call() -> float:
        nonlocal state, step
        start = time.perf_counter()
        inputs = engine.inputs(step, step + experiment.steps_per_call)
        state, metrics = train_call(state, inputs, resident, constants)
        # Fetching the loss waits for the step.
        assert np.all(np.isfinite(np.asarray(metrics["loss"]))), "the loss is not finite"
        step += experiment.steps_per_call
        return time.perf_counter() - start

    return call
