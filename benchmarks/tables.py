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

import numpy as np
from scipy import stats

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
INTENTS = {  # heading: result file
    "5 shots": "intents-5",
    "10 shots": "intents-10",
    "50 shots": "intents-50",
}
INTENTS_ROWS = {
    "cross_entropy": "cross-entropy",
    "label_smoothing": "label smoothing",
    "dropout": "dropout",
    "r_drop": "R-Drop",
    "sd_dropout": "SD-Dropout",
}
INTENTS_FIGURES = {
    "accuracy %": ("accuracy", 1),
    "NLL": ("nll", 3),
    "ECE %": ("ece", 1),
    "AUROC %": ("auroc", 1),
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
        | {"intents": intents_table(), "intents-10": intents_figures("intents-10")}
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


def intents_table() -> str:
    """Accuracies by number of shots, each with its difference from cross-entropy, seed by seed."""
    files = {heading: measure.RESULTS / f"{name}.json" for heading, name in INTENTS.items()}
    results = {
        heading: json.loads(path.read_text())["results"]
        for heading, path in files.items()
        if path.is_file()
    }
    lines = [
        [label, *(difference(result, row, "accuracy", 1) for result in results.values())]
        for row, label in INTENTS_ROWS.items()
    ]
    return markdown(["", *results], lines)


def intents_figures(name: str) -> str:
    """All figures of one number of shots, each with its difference from cross-entropy."""
    result = json.loads((measure.RESULTS / f"{name}.json").read_text())["results"]
    lines = []
    for row, label in INTENTS_ROWS.items():
        ((number, value),) = result[row]["chosen"].items()
        figures = (difference(result, row, *figure) for figure in INTENTS_FIGURES.values())
        lines.append([label, f"{number} {value:g}", *figures])
    return markdown(["", "chosen", *INTENTS_FIGURES], lines)


def difference(
    result: Mapping[str, Mapping[str, Any]], row: str, metric: str, decimals: int
) -> str:
    """A mean, and in brackets the difference from cross-entropy with its 95 % interval (Student)."""
    values, baseline = (np.array(result[name][metric]) for name in (row, "cross_entropy"))
    text = f"{values.mean():.{decimals}f}"
    if row == "cross_entropy":
        return f"{text} ± {values.std(ddof=1):.{decimals}f}"
    paired = values - baseline
    half = stats.sem(paired) * stats.t.ppf(0.975, len(paired) - 1)
    return f"{text} ({paired.mean():+.{decimals}f} ± {half:.{decimals}f})"


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
