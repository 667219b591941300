"""Trains and evaluates the recipes of a plan over seeds.

    python -m benchmarks.reproduce PLAN --data-dir DIR [--runs RUNS --seeds 0,1,2 --rows ce --tables]

PLAN is one of :mod:`benchmarks.plans`. DIR is a tfds ``data_dir``, or holds ``cifar100.npz`` and its
like, with arrays as for ``npz:``. Each run is ``train.py`` and then ``eval.py``; an interrupted run
resumes. Its figures go to ``benchmarks/results/PLAN/ROW-SEED.json``; a run with such a file is skipped.
All rows of a method train with the first seed, and the one with the highest accuracy (mIoU, AP) on the
validation split with the other seeds. ``--tables``, alone or with a plan, updates the pages' tables.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import measure, outcomes, tables
from benchmarks.collect import collect, dump
from benchmarks.plans import PLANS, Plan


def run(plan: str, row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates a recipe unless its result file exists; returns the run in the file."""
    output = measure.RESULTS / plan / f"{row}-{seed}.json"
    if not output.is_file():
        recipe = PLANS[plan].rows[row]
        workdir = pathlib.Path(args.runs) / plan / row / f"seed{seed}"
        options = [f"--config.seed={seed}", *recipe.options]
        data_dir = f"--config.dataset.data_dir={args.data_dir}"
        name = data_set(measure.load_card(recipe.card).dataset.name, args.data_dir)
        data = [data_dir, f"--config.dataset.name={name}"]
        train_args = [*options, *data]
        if recipe.teacher:
            teacher = pathlib.Path(recipe.teacher).name.replace(".py", "").replace(":", "-")
            teacher_workdir = pathlib.Path(args.runs) / plan / teacher
            call("train.py", f"--config={recipe.teacher}", *data, f"--workdir={teacher_workdir}")
            train_args.append(f"--config.teacher={teacher_workdir}")
        call("train.py", f"--config={recipe.card}", *train_args, f"--workdir={workdir}")
        call(
            "eval.py",
            f"--workdir={workdir}",
            *_evaluation_args(PLANS[plan], args.data_dir),
            data_dir,
        )
        # The recorded commands must not contain paths of this machine.
        teacher = [f"--config.teacher=RUN_OF_{recipe.teacher}"] if recipe.teacher else []
        command = shlex.join(["python", "train.py", f"--config={recipe.card}", *options, *teacher])
        evaluation = shlex.join(["eval.py", *_evaluation_args(PLANS[plan], "")])
        what = " ".join(filter(None, (recipe.method, recipe.label)))
        text = dump(
            f"{what}, seed {seed}: last step, and {evaluation}",
            args.machine,
            {f"{row}-{seed}": collect(workdir, command, last=True)},
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
    return _load(output)


def call(script: str, *args: str) -> None:
    """Runs a program in the repository; if it fails, exits with its status."""
    print(f"+ python {script} {' '.join(args)}", flush=True)
    status = subprocess.run([sys.executable, script, *args], cwd=measure.ROOT).returncode
    if status:  # the program has reported the error
        sys.exit(status)


def schedule(plan: str, rows: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yields the runs ``(row, seed)`` to make; for later seeds, only the selected row of each method."""
    methods = {row: PLANS[plan].rows[row].method for row in rows}
    for seed in seeds:
        for row, method in methods.items():
            candidates = [other for other in rows if method and methods[other] == method]
            if seed == seeds[0] or not method or row == outcomes.select(plan, candidates, seeds[0]):
                yield row, seed


def _load(path: pathlib.Path) -> dict[str, Any]:
    """The one run of a result file."""
    (result,) = json.loads(path.read_text())["runs"].values()
    return result


def data_set(name: str, data_dir: str) -> str:
    """The npz file of a data set if there is one, otherwise its name in tfds."""
    file = pathlib.Path(data_dir) / f"{name}.npz"
    return f"npz:{file}" if file.is_file() else name


def _evaluation_args(plan: Plan, data_dir: str) -> list[str]:
    ood = tuple(data_set(name, data_dir) for name in plan.ood)
    return [*plan.evaluation, *([f"--config.eval.ood={ood}"] if ood else [])]


def _absolute(path: str) -> str:
    """Makes a path absolute, since the programs run in the repository."""
    return path and os.path.abspath(os.path.expanduser(path))


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def main() -> None:
    """Runs a plan, or updates the tables, or both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plan", nargs="?", choices=PLANS)
    parser.add_argument(
        "--data-dir", type=_absolute, default="", help="a tfds data_dir, or a folder of npz files"
    )
    parser.add_argument(
        "--runs", type=_absolute, default="runs/reproduce", help="folder of the workdirs"
    )
    parser.add_argument("--seeds", type=_seeds, default="0,1,2")
    parser.add_argument("--rows", default="", help="rows of the plan; default all")
    parser.add_argument("--machine", help="description of the machine")
    parser.add_argument("--tables", action="store_true", help="update the tables of the pages")
    args = parser.parse_args()
    if not (args.plan or args.tables):
        parser.error(f"give a plan ({', '.join(PLANS)}) or --tables")
    if args.plan:
        args.machine = args.machine or measure.machine()
        rows = args.rows.split(",") if args.rows else list(PLANS[args.plan].rows)
        if unknown := set(rows) - set(PLANS[args.plan].rows):
            allowed = ", ".join(PLANS[args.plan].rows)
            parser.error(f"--rows: must be among {allowed}, got {', '.join(sorted(unknown))}")
        for row, seed in schedule(args.plan, rows, args.seeds):
            run(args.plan, row, seed, args)
        print(tables.plan_table(args.plan))
    if args.tables:
        tables.write_all()


if __name__ == "__main__":
    main()
