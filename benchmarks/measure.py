"""What the benchmarks share: sides that take turns, a training step to time, and the result file.

Machines are noisy: the speed of one may change by a half from minute to minute. So both sides of a
ratio run in turns in one process (or in two, each waiting for the other), the ratio is taken within each
round, and the median of the rounds is reported, with the quartiles.
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
PACKAGES = ("sdd_jax", "jax", "jaxlib", "flax", "torch")


def parser(doc: str, **defaults: Any) -> argparse.ArgumentParser:
    """A command line with what every benchmark can be told.

    Args:
      doc: of the benchmark's module.
      **defaults: the benchmark's own numbers (or texts), by name.
    """
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    for name, default in defaults.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    made.add_argument("--machine", default=machine(), help="in words")
    made.add_argument(
        "--output", type=pathlib.Path, help="by default benchmarks/results/NAME-*.json"
    )
    return made


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes, until its results are there."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each side says it took, round by round, after one round that does not count.

    Args:
      sides: each runs once and returns its seconds.
      rounds: at least 1.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for counts in [False, *[True] * rounds]:
        for name, side in sides.items():
            of_round = side()
            if counts:
                taken[name].append(of_round)
    return taken


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """``over / under``, round by round: median and quartiles."""
    return _spread([a / b for a, b in zip(over, under, strict=True)])


def summary(taken: Sequence[float]) -> dict[str, float]:
    """Seconds: median and quartiles."""
    return _spread(list(taken))


def _spread(values: list[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
    rounded = [float(f"{x:.4g}") for x in quartiles]
    return {"median": rounded[1], "quartiles": [rounded[0], rounded[2]], "rounds": len(values)}


def write(given: argparse.Namespace, name: str, command: str, what: str, **found: Any) -> None:
    """Writes the result file, with machine and versions.

    Args:
      given: the parsed command line.
      name: of the file, where the command line does not say.
      command: that repeats the benchmark.
      what: was measured, in words.
      **found: the figures.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    head = {"what": what, "command": command, "machine": given.machine, "versions": versions}
    output = given.output or RESULTS / f"{name}.json"
    output.write_text(json.dumps(head | found, indent=2) + "\n")
    print(f"written to {output}")


def machine() -> str:
    """The device in words.

    It is asked for in a process of its own: one that has looked at a TPU, or holds a GPU's memory, keeps
    it from the processes that a benchmark starts.
    """
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)"
    asked = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    platform_name, _, kind = asked.stdout.splitlines()[-1].partition(" ")
    return kind if platform_name != "cpu" else f"{cores()} CPU cores"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def random_images(
    path: pathlib.Path, *, train: int = 1024, size: int = 32, classes: int = 100
) -> str:
    """Writes an npz of random images; returns its name as a data set."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", train), ("test", classes)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, size, size, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number) % classes
    np.savez(path, **arrays)
    return f"npz:{path}"


def load_card(card: str) -> Any:
    """The config of a recipe card, ``configs/cifar100_resnet18.py:ce``."""
    path, _, argument = card.partition(":")
    module = runpy.run_path(str(ROOT / path))
    return module["get_config"](*filter(None, [argument]))


def run_config(
    data: str, model: str, *, batch: int, sd_dropout: float = 0.0, **options: Any
) -> Any:
    """The config of a run to time: cross-entropy, one step a dispatch, images as they are.

    Args:
      data: name of the data set.
      model: name of the network.
      batch: images in a step.
      sd_dropout: weight of the term.
      **options: of the network.
    """
    from sdd_jax import config as base
    from sdd_jax.models import models

    made = base.default()
    made.dataset.name = data
    made.model = models.options(model, **options)
    made.sd_dropout.weight = sd_dropout
    made.batch_size = batch
    made.steps_per_call = 1
    return made


def training_step(config: Any, engine: Any = None) -> Callable[[], float]:
    """Compiles a run's training call; the function makes the next one and returns its seconds.

    Args:
      config: of the run, ``steps_per_call`` included.
      engine: makes the batches, in place of the run's own.
    """
    from sdd_jax.experiment import load_experiment
    from sdd_jax.parallel import replicate
    from sdd_jax.training.step import compile_training

    experiment = load_experiment(config)
    call, engine = compile_training(experiment), engine or experiment.engine
    state = replicate(experiment.create_state())
    resident, constants = replicate((engine.resident, experiment.objective.constants))
    done = 0

    def step() -> float:
        nonlocal state, done
        start = time.perf_counter()
        inputs = engine.inputs(done, done + experiment.steps_per_call)
        state, metrics = call(state, inputs, resident, constants)
        assert np.all(np.isfinite(np.asarray(metrics["loss"])))  # waits
        done += experiment.steps_per_call
        return time.perf_counter() - start

    return step
