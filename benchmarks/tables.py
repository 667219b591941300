"""Writes the tables of results in the README and docs/results.md from the result files.

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

from benchmarks import gain, measure, outcomes
from benchmarks.plans import PLANS, Figures

PAGES = ("README.md", "docs/results.md")
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
LABEL_NOISE_ROWS = {
    "cross_entropy": "cross-entropy",
    "label_smoothing": "label smoothing",
    "generalised_cross_entropy": "generalised cross-entropy",
    "dropout_cross_entropy": "dropout",
    "sd_dropout": "SD-Dropout",
}
PUBLISHED = {  # errors in the Dropout-Distillation paper, % (300 + 30 and 30 + 30 epochs)
    "cifar10-quick-short": ("18.15", "16.78", "17.20"),
    "mnist-lenet-all": (".51", ".49", ".49"),
}


def tables() -> dict[str, str]:
    """All tables as Markdown, by name."""
    distillation = ("distill-digits", "cifar10-quick-short", "mnist-lenet-all")
    return (
        {
            name: (compared_table if plan.baseline else plan_table)(name)
            for name, plan in PLANS.items()
        }
        | {"gain": gain_table(), "label-noise": label_noise_table()}
        | {"digits": digits_table("digits", DIGITS)}
        | {"digits-evaluation": digits_table("digits-evaluation", DIGITS_EVALUATION)}
        | {name: distillation_table(name) for name in distillation}
        | {"intents": intents_table(), "intents-10": intents_figures("intents-10")}
    )


def plan_table(plan: str) -> str:
    """A column for each recipe that has results: mean and sample standard deviation over seeds."""
    columns = {}
    for name, row in PLANS[plan].rows.items():
        if runs := outcomes.seeds(plan, name):
            columns[row] = list(runs.values())
    lines = [["seeds", *(str(len(runs)) for runs in columns.values())]]
    if PLANS[plan].published:
        lines.append([PLANS[plan].published, *(row.published for row in columns)])
    for heading, figure in PLANS[plan].figures.items():
        cells = [cell(runs, *figure) for runs in columns.values()]
        lines += [[heading, *cells]] if any(cells) else []
    return markdown(["", *(row.label for row in columns)], lines)


def compared_table(plan: str) -> str:
    """A row for each method at its selected value; differences from the baseline, seed by seed."""
    lines = []
    for method, (label, runs) in outcomes.methods(plan).items():
        baseline = outcomes.methods(plan)[PLANS[plan].baseline][1]
        cells = []
        for metric, factor, decimals in PLANS[plan].figures.values():
            values, others = (
                [factor * side[seed][metric] for seed in runs] for side in (runs, baseline)
            )
            is_baseline = method == PLANS[plan].baseline
            cells.append(compared(values, None if is_baseline else others, decimals))
        lines.append([method, label, str(len(runs)), *cells])
    return markdown(["", "chosen", "seeds", *PLANS[plan].figures], lines)


def gain_table() -> str:
    """The accuracy of cross-entropy in every study, and the gains of the other methods."""
    lines = []
    for study in gain.studies():
        baseline = study.accuracies[gain.BASELINE]
        gains = []
        for mean, half in map(study.gain, gain.COLOURS):
            gains.append(f"{mean:+.1f}" + (f" ± {half:.1f}" if len(baseline) > 1 else ""))
        lines.append([study.label, str(len(baseline)), compared(baseline, None, 1), *gains])
    return markdown(["", "seeds", "cross-entropy %", *gain.COLOURS], lines)


def label_noise_table() -> str:
    """Accuracies after the last epoch and with early stopping, by the fraction of wrong labels."""
    path = measure.RESULTS / "label-noise.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    lines = []
    for stop, heading in {"last": "last epoch", "early": "early stopping"}.items():
        for row, label in LABEL_NOISE_ROWS.items():
            cells = []
            for result in results.values():
                accuracies = {method: result[method][stop]["accuracy"] for method in result}
                baseline = None if row == "cross_entropy" else accuracies["cross_entropy"]
                cells.append(compared(accuracies[row], baseline, 1))
            lines.append([f"{label}, {heading}", *cells])
    return markdown(["", *(f"{100 * float(noise):.0f} % wrong" for noise in results)], lines)


def digits_table(name: str, figures: Figures) -> str:
    """A row for cross-entropy and one for SD-Dropout; the runs of a row are named ROW-SEED."""
    runs = outcomes.load(measure.RESULTS / f"{name}.json")
    lines = []
    for row, label in DIGITS_ROWS.items():
        seeds = [metrics for run, metrics in runs.items() if run.rpartition("-")[0] == row]
        lines.append([label, *(cell(seeds, *figure) for figure in figures.values())])
    return markdown(["", *figures], lines)


def distillation_table(name: str) -> str:
    """The three ways to use dropout, from the evaluation of the student."""
    *_, metrics = outcomes.load(measure.RESULTS / f"{name}.json").values()
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
    baseline = None if row == "cross_entropy" else result["cross_entropy"][metric]
    return compared(result[row][metric], baseline, decimals)


def compared(values: Sequence[float], baseline: Sequence[float] | None, decimals: int) -> str:
    """The mean over seeds; with its deviation, or its difference from a baseline, seed by seed."""
    text = f"{np.mean(values):.{decimals}f}"
    if baseline is None:
        spread = f" ± {np.std(values, ddof=1):.{decimals}f}" if len(values) > 1 else ""
        return text + spread
    mean, half = outcomes.paired(values, baseline)
    interval = f" ± {half:.{decimals}f}" if len(values) > 1 else ""
    return f"{text} ({mean:+.{decimals}f}{interval})"


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


def write_tables(page: pathlib.Path) -> None:
    """Replaces the text between the marks of each table."""
    text = page.read_text()
    for name, table in tables().items():
        marks = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
        text = re.sub(marks, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL)
    page.write_text(text)


def write_all() -> None:
    """Writes the tables of every page."""
    for page in PAGES:
        write_tables(measure.ROOT / page)


if __name__ == "__main__":
    write_all()
