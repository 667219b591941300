"""Trains and evaluates the embedded digits, and writes their result files and tables.

    python -m benchmarks.digits [--only digits]

This takes a few minutes. All runs start anew in a temporary folder, on one CPU device, so the results
depend only on the code and the processor.
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import measure, tables
from benchmarks.collect import collect, dump

CARDS = {"ce": "configs/digits.py:ce", "sd_dropout": "configs/digits.py"}


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs of a result file.

    Attributes:
      what: description.
      runs: arguments of ``train.py`` by the name of the run. TEACHER stands for the workdir of the run
        "teacher", which is trained first.
      checks: checks by the name of the run, for runs that are evaluated.
    """

    what: str
    runs: Mapping[str, tuple[str, ...]]
    checks: Mapping[str, str] = dataclasses.field(default_factory=dict)


STUDIES = {
    "digits": Study(
        what="The embedded digits (360 test images), MLP of 2 x 256, 60 epochs: cross-entropy and "
        "SD-Dropout of weight 0.1, five seeds, last epoch",
        runs={
            f"{row}-{seed}": (f"--config={card}", f"--config.seed={seed}")
            for seed in range(5)
            for row, card in CARDS.items()
        },
    ),
    "digits-evaluation": Study(
        what="The digits with a tenth of the training images for validation: cross-entropy and "
        "SD-Dropout of weight 0.1, one seed, every check",
        runs={
            f"{row}-0": (f"--config={card}", "--config.dataset.validation=0.1")
            for row, card in CARDS.items()
        },
        checks={f"{row}-0": "all" for row in CARDS},
    ),
    "distill-digits": Study(
        what="Dropout Distillation on the embedded digits (360 test images, so one image is 0.28 %), "
        "one seed",
        runs={
            "teacher": ("--config=configs/distill_digits.py:teacher",),
            "student": ("--config=configs/distill_digits.py", "--config.teacher=TEACHER"),
        },
        checks={"student": "distillation"},
    ),
}


def make_runs(study: Study, names: Iterable[str], folder: pathlib.Path) -> dict[str, Any]:
    """Trains and evaluates runs of a study.

    Args:
      study: the study.
      names: names of its runs.
      folder: for the workdirs.

    Returns:
      For each run its command, versions, commit, last logged line and evaluation.
    """
    runs = {}
    for name in names:
        workdir, args, checks = folder / name, study.runs[name], study.checks.get(name)
        commands = [("train.py", *args)]
        actual_args = [arg.replace("TEACHER", str(folder / "teacher")) for arg in args]
        _call("train.py", *actual_args, f"--workdir={workdir}")
        if checks:
            commands.append(("eval.py", f"--checks={checks}"))
            _call("eval.py", f"--checks={checks}", f"--workdir={workdir}")
        command = " && ".join(f"python {' '.join(command)} --workdir=RUN" for command in commands)
        runs[name] = collect(workdir, command, last=True)
    return runs


def _call(script: str, *args: str) -> None:
    """Runs a program in the repository on one CPU device."""
    env = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    subprocess.run(
        [sys.executable, script, *args],
        cwd=measure.ROOT,
        env=env | {"JAX_PLATFORMS": "cpu"},
        check=True,
    )


def processor() -> str:
    """Name of the CPU, or the architecture if the system does not report one."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Makes all runs, and writes the result files and the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=STUDIES, help="one of the result files; default all")
    args = parser.parse_args()
    machine = f"{measure.cores()} CPU cores ({processor()})"
    for name in [args.only] if args.only else STUDIES:
        study = STUDIES[name]
        with tempfile.TemporaryDirectory() as folder:
            runs = make_runs(study, study.runs, pathlib.Path(folder))
        (measure.RESULTS / f"{name}.json").write_text(dump(study.what, machine, runs))
    tables.write_all()


if __name__ == "__main__":
    main()
