"""Writes the README's tables of results from the result files.

    python -m benchmarks.tables

Each table stands between ``<!-- NAME -->`` and ``<!-- end -->``; NAME is that of a plan of
:mod:`benchmarks.plans`, or of the result file.
"""

import json
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import measure
from benchmarks.plans import PLANS, Figures

DIGITS: Figures = {
    "accuracy %": ("eval/accuracy", 100, 2),
    "NLL": ("eval/nll", 1, 3),
    "ECE %": ("eval/ece", 100, 2),
}
DIGITS_EVALUATION: Figures = {
    "accuracy %": ("eval/accuracy", 100, 1),
    "ECE %": ("eval/ece", 100, 1),
    "AUROC %, MSP, photos": ("eval/ood/photos/msp/auroc", 100, 1),
    "AUROC %, ODIN, photos": ("eval/ood/photos/odin/auroc", 100, 1),
    "PGD-20 4/255, accuracy %": ("eval/adversarial/pgd/4/accuracy", 100, 1),
    "PGD-20 8/255, accuracy %": ("eval/adversarial/pgd/8/accuracy", 100, 1),
    "corrupted, accuracy %": ("eval/corruption/generated/mean_accuracy", 100, 1),
}
DIGITS_ROWS = {"ce": "cross-entropy", "sd_dropout": "SD-Dropout, weight 0.1"}

DISTILLATION: Figures = {
    "error %": ("error", 100, 2),
    "NLL": ("nll", 1, 3),
    "Brier": ("brier", 1, 3),
    "ECE %": ("ece", 100, 1),
    "KL from MC": ("kl_from_mc", 1, 3),
}
DISTILLATION_ROWS = {
    "standard": "Standard: teacher, dropout off",
    "mc": "MC(100): teacher, 100 masks",
    "distilled": "Distilled: student, one pass",
}
PUBLISHED = {  # errors in the Dropout-Distillation paper, % (300 + 30 and 30 + 30 epochs)
    "cifar10-quick-short": ("18.15", "16.78", "17.20"),
    "mnist-lenet-all": (".51", ".49", ".49"),
}


def tables() -> dict[str, str]:
    """All tables as Markdown, by name."""
    distillation = ("distill-digits", "cifar10-quick-short", "mnist-lenet-all")
    return (
        {plan: plan_table(plan) for plan in PLANS}
        | {"digits": digits_table("digits", DIGITS)}
        | {"digits-evaluation": digits_table("digits-evaluation", DIGITS_EVALUATION)}
        | {name: distillation_table(name) for name in distillation}
    )


def plan_table(plan: str) -> str:
    """A column for each recipe that has results: mean and sample standard deviation over seeds."""
    columns = {}
    for name, row in PLANS[plan].rows.items():
        files = (measure.RESULTS / plan).glob(f"{name}-[0-9]*.json")
        files = [path for path in files if re.fullmatch(rf"{re.escape(name)}-\d+", path.stem)]
        if files:
            columns[row] = [metrics for path in files for metrics in load(path).values()]
    lines = [["seeds", *(str(len(runs)) for runs in columns.values())]]
    if PLANS[plan].published:
        lines.append([PLANS[plan].published, *(row.published for row in columns)])
    for heading, figure in PLANS[plan].figures.items():
        cells = [cell(runs, *figure) for runs in columns.values()]
        lines += [[heading, *cells]] if any(cells) else []
    return markdown(["", *(row.label for row in columns)], lines)


def digits_table(name: str, figures: Figures) -> str:
    """A row for cross-entropy and one for SD-Dropout; the runs of a row are named ROW-SEED."""
    runs = load(measure.RESULTS / f"{name}.json")
    lines = []
    for row, label in DIGITS_ROWS.items():
        seeds = [metrics for run, metrics in runs.items() if run.rpartition("-")[0] == row]
        lines.append([label, *(cell(seeds, *figure) for figure in figures.values())])
    return markdown(["", *figures], lines)


def distillation_table(name: str) -> str:
    """The three ways to use dropout, from the evaluation of the student."""
    *_, metrics = load(measure.RESULTS / f"{name}.json").values()
    # Older files name these metrics without the check.
    prefix = "eval/distillation/" if "eval/distillation/mc/error" in metrics else "eval/"
    published = PUBLISHED.get(name)
    lines = []
    for i, (row, label) in enumerate(DISTILLATION_ROWS.items()):
        cells = [
            cell([metrics], f"{prefix}{row}/{metric}", factor, decimals)
            for metric, factor, decimals in DISTILLATION.values()
        ]
        lines.append([label, *([published[i]] if published else []), *cells])
    return markdown(["", *(["the paper's error %"] if published else []), *DISTILLATION], lines)


def load(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Reads a result file: for each run, its last logged line and its evaluation."""
    runs = json.loads(path.read_text())["runs"]
    return {name: run["metrics"][-1] | run.get("eval", {}) for name, run in runs.items()}


def cell(runs: Sequence[Mapping[str, Any]], name: str, factor: float, decimals: int) -> str:
    """The mean of a metric, with the sample standard deviation of several runs; empty without any."""
    values = [factor * metrics[name] for metrics in runs if metrics.get(name) is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{spread}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table as Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_tables(readme: pathlib.Path) -> None:
    """Replaces the text between the marks of each table."""
    text = readme.read_text()
    for name, table in tables().items():
        marks = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
        text = re.sub(marks, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    write_tables(measure.ROOT / "README.md")
