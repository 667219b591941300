"""Writes the tables of results in the README and the pages of docs/ from the result files.

    python -m benchmarks.tables

Each table stands between ``<!-- NAME -->`` and ``<!-- end -->``; NAME is that of a plan of
:mod:`benchmarks.plans`, or of the result file.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import gain, measure, outcomes
from benchmarks.plans import PLANS, Figures

PAGES = ("README.md", "docs/results.md", "docs/methods.md", "docs/devices.md")
TOPOLOGIES = ("v5e-2x2", "v5e-8x8")
TPU_COLUMNS = ("batch", "GFLOP", "GB moved", "peak, GiB", "all-reduces", "loops")
SELECTIVE_COLUMNS = (
    "accuracy %",
    "1000 AURC by probability",
    "by p-norm of logits",
    "gain by the p-norm",
)
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
SPREAD_ROWS = {  # label: student, network in the check distillation, network in the check spread
    "one network, one pass": ("distill", "standard", "standard"),
    "the ensemble": ("distill", "mc", "ensemble"),
    "student, mean only": ("distill", "distilled", "student"),
    "student, two heads": ("two_heads", "distilled", "student"),
    "student, Dirichlet by proxy": ("dirichlet_proxy", "distilled", "student"),
    "student, Dirichlet by likelihood": ("dirichlet_nll", "distilled", "student"),
    "student, Gaussian logits": ("gaussian", "distilled", "student"),
}
KEPT = ("one network, one pass", "student, mean only", "student, two heads")  # in the README
SPREAD_ENSEMBLES = {"dropout": "100 masks", "ensemble": "{networks} networks"}
INTENTS = {  # heading: result file
    "5 shots": "intents-5",
    "10 shots": "intents-10",
    "50 shots": "intents-50",
}
INTENTS_FIGURES = {
    "accuracy %": ("accuracy", 1),
    "NLL": ("nll", 3),
    "ECE %": ("ece", 1),
    "AUROC %": ("auroc", 1),
}
# Batches of 64, of which the later file replaces methods of the earlier one, and of 128 images.
OBJECTIVES = (
    ("objectives-resnet18-64", "objectives-resnet18-64-ddgsd"),
    ("objectives-resnet18-128",),
)
PUBLISHED = {  # errors in the Dropout-Distillation paper, % (30 + 30 epochs)
    "mnist-lenet-all": (".51", ".49", ".49"),
}


def tables() -> dict[str, str]:
    """All tables as Markdown, by name."""
    distillation = ("distill-digits", "mnist-lenet-all")
    return (
        {plan: plan_table(plan) for plan in PLANS}
        | {"gain": gain_table(), "label-noise": label_noise_table()}
        | {"digits": digits_table("digits", DIGITS)}
        | {"digits-evaluation": digits_table("digits-evaluation", DIGITS_EVALUATION)}
        | {name: distillation_table(name) for name in distillation}
        | {f"spread-{study}": spread_table(f"spread-{study}") for study in ("digits", "mnist")}
        | {"kept": kept_table()}
        | {"intents": intents_table(), "intents-10": intents_figures("intents-10")}
        | {"intents-transformer": intents_figures("intents-transformer")}
        | {"methods": methods_table()}
        | {f"tpu-{topology}": tpu_table(topology) for topology in TOPOLOGIES}
        | {"selective-cub100-tuned": selective_table("selective-cub100-tuned")}
        | {"distilled-inputs-quick": distilled_inputs_table("distilled-inputs-quick")}
    )


def plan_table(plan: str) -> str:
    """The table of a plan: its methods beside the baseline, or without one all of its recipes."""
    return compared_table(plan) if PLANS[plan].baseline else recipes_table(plan)


def recipes_table(plan: str) -> str:
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
    methods, figures = outcomes.methods(plan), PLANS[plan].figures
    _, baseline = methods.get(PLANS[plan].baseline, ("", {}))
    lines = []
    for method, (label, runs) in methods.items():
        cells = []
        for metric, factor, decimals in figures.values():
            values, others = (
                [factor * run[metric] for run in side.values()] for side in (runs, baseline)
            )
            is_compared = baseline and method != PLANS[plan].baseline
            cells.append(compared(values, others if is_compared else None, decimals))
        lines.append([method, label, str(len(runs)), *cells])
    return markdown(["", "chosen", "seeds", *figures], lines)


def gain_table() -> str:
    """The accuracy of cross-entropy in every study, and the gains of the other methods."""
    lines = []
    for study in gain.studies():
        baseline = study.accuracies[gain.BASELINE]
        gains = []
        for mean, half in map(study.gain, gain.COLOURS):
            gains.append(signed(mean, 1) + (f" ± {half:.1f}" if len(baseline) > 1 else ""))
        lines.append([study.label, str(len(baseline)), compared(baseline, None, 1), *gains])
    return markdown(["", "seeds", "cross-entropy %", *gain.COLOURS], lines)


def label_noise_table() -> str:
    """Accuracies after the last epoch and with early stopping, by the fraction of wrong labels."""
    path = measure.RESULTS / "label-noise.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    lines = []
    for stop, heading in {"last": "last epoch", "early": "early stopping"}.items():
        columns = [{m: result[m][stop] for m in result} for result in results.values()]
        for row in columns[0] if columns else ():
            cells = [difference(column, row, "accuracy", 1) for column in columns]
            lines.append([f"{outcomes.LABELS[row]}, {heading}", *cells])
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


def distilled_inputs_table(name: str) -> str:
    """A row for each kind of images: errors and divergences from the ensemble of each network."""
    path = measure.RESULTS / f"{name}.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    lines = [
        [images, *(f"{of['error']:.1f}, {of['kl']:.3f}" for of in networks.values())]
        for images, networks in results.items()
    ]
    header = next(iter(results.values()), ())
    return markdown(["error %, KL from MC", *header], lines)


def spread_table(name: str) -> str:
    """A row for each network and student: its error, and its spread beside the ensemble's."""
    path = measure.RESULTS / f"{name}.json"
    content = json.loads(path.read_text()) if path.is_file() else {"results": {}, "ood": ()}
    lines = []
    for kind, students in content["results"].items():
        ensemble = SPREAD_ENSEMBLES[kind].format(networks=content["networks"])
        for label, (student, network, other) in SPREAD_ROWS.items():
            if student not in students:
                continue
            found = students[student]
            cells = [
                compared(100 * np.asarray(found[f"distillation/{network}/error"]), None, 2),
                compared(found[f"distillation/{network}/kl_from_mc"], None, 3),
            ]
            rank = found.get("spread/spearman/mutual_information") if other == "student" else None
            cells.append(compared(rank, None, 2) if rank else "")
            for ood in content["ood"]:
                for key in ("entropy", "mutual_information"):
                    auroc = found.get(f"spread/{ood}/{other}/{key}/auroc")
                    cells.append(compared(100 * np.asarray(auroc), None, 1) if auroc else "")
            lines.append([ensemble, label, *cells])
    aurocs = [f"AUROC %, {o}, by {m}" for o in content["ood"] for m in ("entropy", "MI")]
    header = ["ensemble", "", "error %", "KL from it", "rank correlation of the MI", *aurocs]
    return markdown(header, lines)


def kept_table() -> str:
    """What students of dropout masks keep in one pass: a column for each of those in the README."""
    results = json.loads((measure.RESULTS / "spread-digits.json").read_text())["results"]["dropout"]
    lines = [["KL from the ensemble, nats"], ["rank correlation of the mutual information"]]
    for student, network, other in map(SPREAD_ROWS.__getitem__, KEPT):
        found = results[student]
        rank = found.get("spread/spearman/mutual_information") if other == "student" else None
        lines[0].append(compared(found[f"distillation/{network}/kl_from_mc"], None, 3))
        lines[1].append(compared(rank, None, 2) if rank else "")
    return markdown(["", *KEPT], lines)


def intents_table() -> str:
    """Accuracies by number of shots, each with its difference from cross-entropy, seed by seed."""
    files = {heading: measure.RESULTS / f"{name}.json" for heading, name in INTENTS.items()}
    results = {
        heading: json.loads(path.read_text())["results"]
        for heading, path in files.items()
        if path.is_file()
    }
    lines = [
        [
            outcomes.LABELS[row],
            *(difference(result, row, "accuracy", 1) for result in results.values()),
        ]
        for row in next(iter(results.values()), ())
    ]
    return markdown(["", *results], lines)


def intents_figures(name: str) -> str:
    """All figures of one number of shots, each with its difference from cross-entropy."""
    result = json.loads((measure.RESULTS / f"{name}.json").read_text())["results"]
    lines = []
    for row in result:
        ((number, value),) = result[row]["chosen"].items()
        figures = (difference(result, row, *figure) for figure in INTENTS_FIGURES.values())
        lines.append([outcomes.LABELS[row], f"{number} {value:g}", *figures])
    return markdown(["", "chosen", *INTENTS_FIGURES], lines)


def methods_table() -> str:
    """The table of docs/methods.md with its last column, the time of a step over cross-entropy's.

    The other columns are text of the page. A row is a method, the first name in code of its first cell.
    """
    measured = []
    for files in OBJECTIVES:
        contents = [json.loads((measure.RESULTS / f"{name}.json").read_text()) for name in files]
        measured.append({k: v for content in contents for k, v in content["objectives"].items()})
    page = (measure.ROOT / "docs" / "methods.md").read_text()
    _, _, table = page.partition("<!-- methods -->\n")
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.partition("\n<!-- end -->")[0].splitlines()
    )
    lines = []
    for row in rows:
        method = row[0].split("`")[1].removesuffix(".weight")
        times = [relative_time(batch[method]) for batch in measured if method in batch]
        time = "1" if method == "cross_entropy" else "; ".join(times) or "not measured"
        lines.append([*row[: len(header) - 1], time])
    return markdown(header, lines)


def relative_time(result: Mapping[str, Any]) -> str:
    """The median of a ratio, with its quartiles."""
    ratio = result["over_cross_entropy"]
    low, high = ratio["quartiles"]
    return f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})"


def tpu_table(topology: str) -> str:
    """A row for each card: what the TPU compiler says of a step on one chip, or why it says nothing."""
    path = measure.RESULTS / f"tpu-{topology}.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    lines = []
    for card, figures in results.items():
        if "error" in figures:
            lines.append([card, figures["error"], *[""] * (len(TPU_COLUMNS) - 1)])
            continue
        too_large = ", ".join(map(str, figures["does_not_fit"]))
        reduced = figures["collectives"].get("all-reduce", {"count": 0, "bytes": 0})
        cells = [
            f"{figures['batch_size']}" + (f" ({too_large} too large)" if too_large else ""),
            f"{figures['flops'] / 1e9:.3g}",
            f"{figures['bytes_accessed'] / 1e9:.3g}",
            f"{figures['peak_bytes'] / 2**30:.2f}",
            f"{reduced['count']}, {reduced['bytes'] / 1e6:.3g} MB",
            ", ".join(figures["other_loops"]),
        ]
        lines.append([card, *cells])
    return markdown(["", *TPU_COLUMNS], lines)


def selective_table(name: str) -> str:
    """A row for each method: AURC by two confidences, and what the second gains; beside the baseline."""
    path = measure.RESULTS / f"{name}.json"
    methods = json.loads(path.read_text())["methods"] if path.is_file() else {}
    lines, baseline = [], None
    for method, figures in methods.items():
        columns = [np.asarray(figures[x]) for x in ("accuracy", "aurc", "aurc_repaired")]
        columns.append(columns[1] - columns[2])
        cells = [
            compared(values, None if baseline is None else baseline[i], 1)
            for i, values in enumerate(columns)
        ]
        baseline = columns if baseline is None else baseline
        lines.append([method, str(len(columns[0])), *cells])
    return markdown(["", "seeds", *SELECTIVE_COLUMNS], lines)


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
    return f"{text} ({signed(mean, decimals)}{interval})"


def signed(value: float, decimals: int) -> str:
    """A number with its sign; what rounds to zero is +0."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def cell(runs: Sequence[Mapping[str, Any]], name: str, factor: float, decimals: int) -> str:
    """The mean of a metric, with the sample standard deviation of several runs; empty without any."""
    values = [factor * metrics[name] for metrics in runs if metrics.get(name) is not None]
    return compared(values, None, decimals) if values else ""


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
