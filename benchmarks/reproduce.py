"""Trains the papers' recipes over seeds, and sets what came out beside the published figures.

    python -m benchmarks.reproduce PLAN --data-dir DIR [--runs RUNS --seeds 0,1,2 --rows CE,...]
    python -m benchmarks.reproduce --tables

DIR is a tfds ``data_dir``, or holds ``cifar100.npz`` and the like (arrays as ``npz:`` takes them).
Each run is ``train.py`` and then ``eval.py``, resumed where it stopped and left alone where it is
finished. Its figures go to ``benchmarks/results/PLAN/ROW-SEED.json``; ``--tables`` writes the README's
tables from these files, between the marks that name the plan. Where a plan tries several values, each
trains with the first seed, and the one with the highest validation accuracy goes on with the others.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.collect import collect, dump
from benchmarks.measure import RESULTS, ROOT, load_card, machine

FIGURES = {  # heading: figure, factor, decimals
    "validation %": ("validation/accuracy", 100, 2),
    "accuracy %": ("eval/accuracy", 100, 2),
    "NLL": ("eval/nll", 1, 3),
    "ECE %": ("eval/ece", 100, 1),
    "NLL, scaled": ("eval/calibration/scaled/nll", 1, 3),
    "ECE %, scaled": ("eval/calibration/scaled/ece", 100, 1),
    "AUROC %, ODIN, CIFAR-10": ("eval/ood/cifar10/odin/auroc", 100, 1),
    "AUROC %, ODIN, MNIST": ("eval/ood/mnist/odin/auroc", 100, 1),
    "FGSM 2/255, accuracy %": ("eval/adversarial/fgsm/2/accuracy", 100, 1),
    "corrupted, accuracy %": ("eval/corruption/generated/mean_accuracy", 100, 1),
}
THREE_WAYS = {
    f"{name}, error %": (f"eval/distillation/{key}/error", 100, 2)
    for name, key in {"Standard": "standard", "MC(100)": "mc", "Distilled": "distilled"}.items()
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A recipe.

    Attributes:
      label: at the head of its column.
      card: and its argument.
      published: the figure to compare with, in words.
      options: further arguments of ``train.py``.
      teacher: the card of a teacher that is trained before.
      tried: whether this is one of several values of which the validation split chooses one.
    """

    label: str
    card: str
    published: str = ""
    options: tuple[str, ...] = ()
    teacher: str = ""
    tried: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """A table.

    Attributes:
      rows: by the name of their files.
      figures: as ``FIGURES``; those of which no run has the figure are left out.
      evaluation: arguments of ``eval.py``.
      ood: the data sets of its check of that name.
      published: what the figures to compare with are.
    """

    rows: dict[str, Row]
    figures: dict[str, tuple[str, float, int]]
    evaluation: tuple[str, ...]
    ood: tuple[str, ...] = ()
    published: str = ""


CHECKS = "--checks=accuracy,calibration,ood,adversarial,corruption"
CIFAR100 = {
    "ce": ("CE", "resnet18.py:ce", "74.8 ± 0.3"),
    "sd_dropout": ("SD-Dropout", "resnet18.py", "76.8 ± 0.3"),
    "clean_student": ("SD-Dropout, clean student", "clean_student.py", "76.8 ± 0.3"),
    "cs_kd": ("CS-KD", "cs_kd.py", "77.3 ± 0.3"),
    "cs_kd-sd_dropout": ("CS-KD + SD-Dropout 0.1", "cs_kd.py:sd_dropout", "77.1 ± 0.4"),
    "ddgsd": ("DDGSD", "ddgsd.py", "76.7 ± 0.5"),
    "ddgsd-sd_dropout": ("DDGSD + SD-Dropout 0.1", "ddgsd.py:sd_dropout", "77.2 ± 0.1"),
    "byot": ("BYOT", "byot.py", "77.0 ± 0.1"),
    "byot-sd_dropout": ("BYOT + SD-Dropout 0.1", "byot.py:sd_dropout", "77.4 ± 0.2"),
    "dml": ("DML", "dml.py", "78.9"),
    "dml-sd_dropout": ("DML + SD-Dropout 0.1", "dml.py:sd_dropout", "78.8"),
}
DISTILLED = {
    "quick": ("CIFAR-10 Quick", "quick_cifar10.py", "18.15 / 16.78 / 17.20"),
    "nin": ("CIFAR-10 NiN", "nin_cifar.py", "11.16 / 11.04 / 11.14"),
    "all_conv": ("CIFAR-10 AllConv", "all_conv_cifar.py", "11.20 / 10.60 / 10.80"),
    "nin-cifar100": ("CIFAR-100 NiN", "nin_cifar.py:cifar100", "35.28 / 35.05 / 35.20"),
    "all_conv-cifar100": (
        "CIFAR-100 AllConv",
        "all_conv_cifar.py:cifar100",
        "32.46 / 30.99 / 32.07",
    ),
}
FEW = "configs/cifar100_50_per_class.py"
PLANS = {
    "cifar100": Plan(
        rows={
            name: Row(
                label, f"configs/cifar100_{card}", published, ("--config.model.dtype=bfloat16",)
            )
            for name, (label, card, published) in CIFAR100.items()
        },
        figures=FIGURES,
        evaluation=(CHECKS, "--config.eval.epsilons=(1.0, 2.0, 4.0)"),
        ood=("cifar10", "mnist"),
        published="accuracy in the authors' logs, %",
    ),
    "cifar100-50-per-class": Plan(
        rows={"ce": Row("CE", f"{FEW}:ce")}
        | {
            f"sd_dropout-{weight}": Row(
                f"SD-Dropout, weight {weight}",
                FEW,
                options=(f"--config.sd_dropout.weight={weight}",),
                tried=True,
            )
            for weight in ("0.02", "0.1", "1.0")
        },
        figures=FIGURES,
        evaluation=(CHECKS, "--config.eval.epsilons=(2.0,)", "--config.eval.max_images=1000"),
        ood=("cifar10", "mnist"),
    ),
    "distillation": Plan(
        rows={
            name: Row(label, f"configs/distill_{card}", published, teacher=f"configs/{card}")
            for name, (label, card, published) in DISTILLED.items()
        },
        figures=THREE_WAYS,
        evaluation=("--checks=distillation",),
        published="the paper's errors, %",
    ),
}


def run(plan: str, row: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates what is not there yet, and writes the run's figures down.

    Returns:
      What was written.
    """
    output = RESULTS / plan / f"{row}-{seed}.json"
    if not output.is_file():
        recipe = PLANS[plan].rows[row]
        workdir = pathlib.Path(given.runs) / plan / row / f"seed{seed}"
        teacher = workdir.with_name(f"teacher-seed{seed}")
        options = [f"--config.seed={seed}", *recipe.options]
        data = [f"--config.dataset.data_dir={given.data_dir}"]
        source = _source(load_card(recipe.card).dataset.name, given.data_dir)
        train = [*options, *data, f"--config.dataset.name={source}"]
        if recipe.teacher:
            _call("train.py", f"--config={recipe.teacher}", *train, f"--workdir={teacher}")
            train.append(f"--config.teacher={teacher}")
        _call("train.py", f"--config={recipe.card}", *train, f"--workdir={workdir}")
        shown, evaluation = (_evaluation(PLANS[plan], folder) for folder in ("", given.data_dir))
        _call("eval.py", f"--workdir={workdir}", *evaluation, *data)
        of_teacher = [f"--config.teacher=RUN_OF_{recipe.teacher}"] if recipe.teacher else []
        command = " ".join([f"python train.py --config={recipe.card}", *options, *of_teacher])
        result = {
            "what": f"{recipe.label}, seed {seed}: last step, and eval.py {' '.join(shown)}",
            "machine": given.machine,
            "runs": {f"{row}-{seed}": collect(workdir, command, last=True)},
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(dump(result))
    return _of_file(output)


def _source(data_set: str, folder: str) -> str:
    file = pathlib.Path(folder) / f"{data_set}.npz"
    return f"npz:{file}" if file.is_file() else data_set


def _evaluation(plan: Plan, folder: str) -> list[str]:
    ood = ",".join(_source(name, folder) for name in plan.ood)
    return [*plan.evaluation, *([f"--config.eval.ood={ood}"] if ood else [])]


def _call(script: str, *arguments: str) -> None:
    print(f"+ python {script} {' '.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, script, *arguments], cwd=ROOT).returncode
    if status:  # it has said why
        sys.exit(status)


def _of_file(path: pathlib.Path) -> dict[str, Any]:
    (of_run,) = json.loads(path.read_text())["runs"].values()
    return of_run


def to_run(plan: str, rows: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Rows and seeds in turn; of the values that are tried, the later seeds have the chosen one."""
    tried = [row for row in rows if PLANS[plan].rows[row].tried]
    for seed in seeds:
        for row in rows:
            if seed == seeds[0] or row not in tried or row == chosen(plan, tried, seeds[0]):
                yield row, seed


def chosen(plan: str, tried: Sequence[str], seed: int) -> str:
    """Of the rows that are tried, the one with the highest validation accuracy of a seed."""
    files = {row: RESULTS / plan / f"{row}-{seed}.json" for row in tried}
    return max(tried, key=lambda row: _of_file(files[row])["metrics"][-1]["validation/accuracy"])


def table(plan: str) -> str:
    """Markdown: for each recipe that has run, mean and sample standard deviation over its seeds."""
    of_rows = {}
    for name, row in PLANS[plan].rows.items():
        files = (RESULTS / plan).glob(f"{name}-[0-9]*.json")
        files = [path for path in files if re.fullmatch(rf"{re.escape(name)}-\d+", path.stem)]
        if files:
            runs = map(_of_file, files)
            of_rows[row] = [of_run["metrics"][-1] | of_run["eval"] for of_run in runs]
    lines = [
        ["", *(row.label for row in of_rows)],
        ["---"] * (1 + len(of_rows)),
        ["seeds", *(str(len(runs)) for runs in of_rows.values())],
    ]
    if PLANS[plan].published:
        lines.append([PLANS[plan].published, *(row.published for row in of_rows)])
    for heading, figure in PLANS[plan].figures.items():
        cells = [_cell(runs, *figure) for runs in of_rows.values()]
        lines += [[heading, *cells]] if any(cells) else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(runs: list[dict[str, float]], name: str, factor: float, decimals: int) -> str:
    values = [factor * of_run[name] for of_run in runs if of_run.get(name) is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if values[1:] else ""
    return f"{statistics.mean(values):.{decimals}f}{spread}"


def write_tables(readme: pathlib.Path) -> None:
    """Replaces what lies between ``<!-- PLAN -->`` and ``<!-- end -->`` by the plan's table."""
    text = readme.read_text()
    for plan in PLANS:
        marks = rf"(<!-- {re.escape(plan)} -->\n).*?(<!-- end -->)"
        text = re.sub(marks, lambda m, p=plan: f"{m[1]}{table(p)}\n{m[2]}", text, flags=re.DOTALL)
    readme.write_text(text)


def _absolute(path: str) -> str:
    """What is run is run from the root of the project."""
    return path and os.path.abspath(os.path.expanduser(path))


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def main() -> None:
    """Runs a plan, or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plan", nargs="?", choices=PLANS)
    parser.add_argument(
        "--data-dir", type=_absolute, default="", help="a tfds data_dir, or of npz files"
    )
    parser.add_argument(
        "--runs", type=_absolute, default="runs/reproduce", help="folder of the workdirs"
    )
    parser.add_argument("--seeds", type=_seeds, default="0,1,2")
    parser.add_argument("--rows", default="", help="some of the plan's; by default all")
    parser.add_argument("--machine", help="in words")
    parser.add_argument("--tables", action="store_true", help="write the README's tables")
    given = parser.parse_args()
    if not (given.plan or given.tables):
        parser.error(f"give a plan ({', '.join(PLANS)}) or --tables")
    if given.plan:
        given.machine = given.machine or machine()
        rows = given.rows.split(",") if given.rows else list(PLANS[given.plan].rows)
        if unknown := set(rows) - set(PLANS[given.plan].rows):
            allowed = ", ".join(PLANS[given.plan].rows)
            parser.error(f"--rows: must be of {allowed}, got {', '.join(unknown)}")
        for row, seed in to_run(given.plan, rows, given.seeds):
            run(given.plan, row, seed, given)
        print(table(given.plan))
    if given.tables:
        write_tables(ROOT / "README.md")


if __name__ == "__main__":
    main()
