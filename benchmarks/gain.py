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
PLANNED = {  # with the modality and the data set
    "cub100-tuned": ("images: CUB-100", "100 birds, 27 photographs each"),
    "cifar100-50-tuned": ("images: CIFAR-100", "100 classes of CIFAR-100, 50 images each"),
}
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
      data: the modality and the data set.
      label: the setting in words.
      accuracies: in %, of each method, by seed.
    """

    data: str
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
            accuracies = {method: result["accuracy"] for method, result in results.items()}
            yield _study("text: CLINC150", label, accuracies)
    for plan, (data, label) in PLANNED.items():
        accuracies = {
            method: [100 * run["eval/accuracy"] for run in runs.values()]
            for method, (_, runs) in outcomes.methods(plan).items()
        }
        if {BASELINE, *COLOURS} <= accuracies.keys():
            yield Study(data, label, accuracies)
    if (path := measure.RESULTS / "label-noise.json").is_file():
        results = json.loads(path.read_text())["results"]
        for noise, label in LABEL_NOISE.items():
            last = {method: result["last"]["accuracy"] for method, result in results[noise].items()}
            yield _study("images: MNIST", label, last)


def _study(data: str, label: str, accuracies: Mapping[str, Sequence[float]]) -> Study:
    return Study(data, label, {outcomes.LABELS[method]: a for method, a in accuracies.items()})


def draw(path: str | pathlib.Path) -> None:
    """Draws the gains with their intervals: a panel for each data set, a line for each study."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Without these, each run would write another file.
    plt.rcParams |= {"svg.hashsalt": "gain", "svg.fonttype": "none", "font.family": "sans-serif"}
    groups: dict[str, list[Study]] = {}
    for study in studies():
        if len(study.accuracies[BASELINE]) > 1:
            groups.setdefault(study.data, []).append(study)
    sizes = [len(group) for group in groups.values()]
    figure, panels = plt.subplots(
        len(groups),
        figsize=(8, 0.5 * sum(sizes) + 0.8 * len(sizes) + 0.6),
        height_ratios=sizes,
        layout="constrained",
        squeeze=False,
    )
    # Not one axis for all: the gains of one data set are ten times those of another.
    for axes, (data, group) in zip(panels.flat, groups.items(), strict=True):
        for i, (method, colour) in enumerate(COLOURS.items()):
            gains, halves = zip(*(study.gain(method) for study in group), strict=True)
            places = [line + 0.22 * (i - 1) for line in range(len(group))]
            axes.errorbar(
                gains, places, xerr=halves, fmt="o", ms=5, lw=1.6, color=colour, label=method
            )
        axes.axvline(0, color="0.3", lw=1, zorder=0)
        axes.set_yticks(range(len(group)), [study.label for study in group])
        axes.set_ylim(len(group) - 0.5, -0.5)
        axes.set_title(data, loc="left", fontsize="medium", fontweight="bold")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    axes.set_xlabel("gain in test accuracy over cross-entropy, points, with 95 % interval")
    figure.legend(
        *axes.get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper center"
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(FIGURE)
