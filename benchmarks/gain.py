"""Gains over cross-entropy in all studies, from their result files: the README's first table and figure.

    python -m benchmarks.gain            # writes benchmarks/results/gain.svg

Each method has one number, chosen on a validation split from as many values as those of the others. A
gain is the mean of the differences from cross-entropy, seed by seed, with its 95 % interval (Student).
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from benchmarks import measure, outcomes

FIGURE = measure.RESULTS / "gain.svg"
BASELINE = "cross-entropy"
COLOURS = {"label smoothing": "#8a8a8a", "dropout": "#4a9bd4", "SD-Dropout": "#d1570c"}

# Result file or plan: the setting in words.
INTENTS = {
    "intents-5": "150 intents, 5 questions each",
    "intents-10": "150 intents, 10 questions each",
    "intents-transformer": "the same, transformer",
    "intents-50": "150 intents, 50 questions each",
}
PLANNED = {"cub100-tuned": "100 birds, 27 photographs each"}
LABEL_NOISE = {
    "0.0": "10 digits, 1,000 images each",
    "0.2": "the same, 20 % of the labels wrong",
    "0.4": "40 % wrong",
    "0.6": "60 % wrong",
}


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison on one task.

    Attributes:
      label: the setting in words.
      accuracies: in %, of each method, by seed.
    """

    label: str
    accuracies: Mapping[str, Sequence[float]]

    def gain(self, method: str) -> tuple[float, float]:
        """The gain of a method in points, and half of its 95 % interval."""
        return outcomes.paired(self.accuracies[method], self.accuracies[BASELINE])


def studies() -> Iterator[Study]:
    """The studies that have results."""
    for name, label in INTENTS.items():
        if (path := measure.RESULTS / f"{name}.json").is_file():
            results = json.loads(path.read_text())["results"]
            yield _study(label, {method: result["accuracy"] for method, result in results.items()})
    for plan, label in PLANNED.items():
        accuracies = {
            method: [100 * run["eval/accuracy"] for run in runs.values()]
            for method, (_, runs) in outcomes.methods(plan).items()
        }
        if {BASELINE, *COLOURS} <= accuracies.keys():
            yield Study(label, accuracies)
    if (path := measure.RESULTS / "label-noise.json").is_file():
        results = json.loads(path.read_text())["results"]
        for noise, label in LABEL_NOISE.items():
            last = {method: result["last"]["accuracy"] for method, result in results[noise].items()}
            yield _study(label, last)


def _study(label: str, accuracies: Mapping[str, Sequence[float]]) -> Study:
    return Study(label, {outcomes.LABELS[method]: a for method, a in accuracies.items()})


def draw(path: str | pathlib.Path) -> None:
    """Draws the gains with their intervals, one line for each study."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Without these, each run would write another file.
    plt.rcParams |= {"svg.hashsalt": "gain", "svg.fonttype": "none", "font.family": "sans-serif"}
    found = [study for study in studies() if len(study.accuracies[BASELINE]) > 1]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(found) + 1.2), layout="constrained")
    for i, (method, colour) in enumerate(COLOURS.items()):
        gains, halves = zip(*(study.gain(method) for study in found), strict=True)
        places = [line + 0.22 * (i - 1) for line in range(len(found))]
        axes.errorbar(gains, places, xerr=halves, fmt="o", ms=5, lw=1.6, color=colour, label=method)
    axes.axvline(0, color="0.3", lw=1, zorder=0)
    axes.set_yticks(range(len(found)), [study.label for study in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("gain in test accuracy over cross-entropy, points, with 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(FIGURE)
