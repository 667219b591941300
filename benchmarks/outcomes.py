"""Reads the result files of plans, selects rows by validation, and takes paired differences."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import measure
from benchmarks.plans import PLANS
from sdd_jax.tasks import selecting

LABELS = {  # methods, by their names in the result files of the studies
    "cross_entropy": "cross-entropy",
    "label_smoothing": "label smoothing",
    "generalised_cross_entropy": "generalised cross-entropy",
    "dropout": "dropout",
    "dropout_cross_entropy": "dropout",
    "r_drop": "R-Drop",
    "sd_dropout": "SD-Dropout",
}


def load(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Reads a result file: for each run, its last logged line and its evaluation."""
    runs = json.loads(path.read_text())["runs"]
    return {name: run["metrics"][-1] | run.get("eval", {}) for name, run in runs.items()}


def seeds(plan: str, row: str) -> dict[int, dict[str, Any]]:
    """The runs of a row of a plan, by seed."""
    found = {}
    for path in (measure.RESULTS / plan).glob(f"{row}-*.json"):
        if match := re.fullmatch(rf"{re.escape(row)}-(\d+)", path.stem):
            (found[int(match[1])],) = load(path).values()
    return dict(sorted(found.items()))


def select(plan: str, rows: Sequence[str], seed: int) -> str:
    """The row with the best validation of a seed, by the metric of its task, of those with a result."""

    def validation(row: str) -> float:
        run = seeds(plan, row).get(seed, {})
        return run.get(f"validation/{selecting(run, 'validation')}", -1.0)

    return max(rows, key=validation)


def methods(plan: str) -> dict[str, tuple[str, dict[int, dict[str, Any]]]]:
    """Each method of a plan that has results: the label of its selected row, and its runs by seed.

    The runs are those of the seeds that every method has.
    """
    rows: dict[str, list[str]] = {}
    for name, row in PLANS[plan].rows.items():
        rows.setdefault(row.method or row.label, []).append(name)
    found = {}
    for method, names in rows.items():
        selected = select(plan, names, 0)
        if runs := seeds(plan, selected):
            found[method] = PLANS[plan].rows[selected].label, runs
    common = set.intersection(*(set(runs) for _, runs in found.values())) if found else set()
    return {
        method: (label, {seed: runs[seed] for seed in sorted(common)})
        for method, (label, runs) in found.items()
    }


def paired(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences and half of its 95 % interval (Student); nan for one difference."""
    differences = np.asarray(values) - np.asarray(baseline)
    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return float(differences.mean()), float(half)
