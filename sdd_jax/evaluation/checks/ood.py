"""Detection of images from other data sets."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import MinLen

from sdd_jax import data
from sdd_jax.data.sources import with_options
from sdd_jax.errors import InputError, require
from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.batching import HostArray
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.detectors import Detector, Outputs, Training, detectors
from sdd_jax.evaluation.evaluator import EvaluationSetup, Evaluator
from sdd_jax.evaluation.plots import COLOURS, styles
from sdd_jax.evaluation.results import CheckResult, Headline, Plot, Table
from sdd_jax.options import NonNegative, Positive

METRICS = {"auroc": "AUROC", "aupr_in": "AUPR-in", "aupr_out": "AUPR-out", "fpr95": "FPR95"}
DEFAULT_SETS = ("photos",)
HEADLINE = ("msp", "odin", "knn")  # detectors in the summary
COLUMNS = 4  # histograms in a row


@checks.register("ood")
@dataclasses.dataclass(frozen=True)
class OutOfDistribution(Check):
    """Detection of the test images of other data sets by post-hoc detectors.

    The images are resized to those of the run and normalised in the same way. The detectors
    (:mod:`sdd_jax.evaluation.detectors`) are fitted to the training split alone. Their constants are
    those of their papers, for ODIN those for CIFAR; none is fitted to the other images.

    Attributes:
      ood: names of data sets; an entry may also hold several, separated by commas. They are the far ones
        if there are near ones.
      ood_near: names of further data sets that resemble the run's, as CIFAR-10 and Tiny ImageNet do
        CIFAR-100 in OpenOOD. The means over the near and over the far ones are reported, too.
      ood_detectors: names of detectors. The first five need no pass over the training split; ODIN, which
        changes pixels, is left out where the inputs are no images.
      odin_temperature: T.
      odin_epsilon: size of the change of pixels in [0, 1].
    """

    title: ClassVar[str] = "Out-of-distribution detection"
    one_label = True
    ood: Annotated[tuple[str, ...], MinLen(1)] = DEFAULT_SETS
    ood_near: tuple[str, ...] = ()
    ood_detectors: Annotated[tuple[str, ...], MinLen(1)] = (
        "msp", "odin", "energy", "max_logit", "gen",
        "react", "ash", "vim", "mahalanobis", "relative_mahalanobis", "knn",
    )  # fmt: skip
    odin_temperature: Positive = 1000.0
    odin_epsilon: NonNegative = 0.0014

    def __post_init__(self):
        """Rejects names that the metrics could not tell apart, and unknown detectors."""
        near, far = _labels(self.ood_near), _labels(self.ood)
        require(_distinct(far), "ood", self.ood, "different data sets")
        require(
            not near or _distinct([*near, *far, "near", "far"]),
            "ood_near",
            self.ood_near,
            "data sets that differ from each other and from those of ood, none called near or far",
        )
        known = detectors.names()
        for name in self.ood_detectors:
            require(name in known, "ood_detectors", name, f"one of {', '.join(known)}")
        chosen = self.ood_detectors
        require(_distinct(chosen), "ood_detectors", chosen, "different detectors")

    def requirement(self, setup: EvaluationSetup) -> str:
        """The data sets must be loadable, of the run's kind of inputs, and not its own."""
        return sets_requirement(self.title, self._sets, setup)

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates each detector on each data set."""
        setup, training = evaluator.setup, Training(evaluator)
        context = {key: getattr(self, key) for key in ("odin_temperature", "odin_epsilon")}
        is_image = setup.dataset.inputs.name == "images"
        built = {
            name: detectors.build({"name": name}, training=training, **context)
            for name in self.ood_detectors
            if is_image or name != "odin"
        }
        scores_in = _scores(built, Outputs(evaluator, evaluator.images))
        notes = _fitted_on(training)
        found, by_image, plots = {}, {}, []
        for field, name in self._sets:
            images, label = images_of(name, setup, field), label_of(name)
            scores_out = _scores(built, Outputs(evaluator, images))
            found[label] = {d: metrics.detection(scores_in[d], scores_out[d]) for d in built}
            by_image |= {
                f"ood/{label}/{d}/auroc": metrics.auroc_contributions(scores_in[d], scores_out[d])
                for d in built
            }
            notes.append(
                f"Out of distribution: {len(images):,} images of {label}; in distribution: "
                f"{len(evaluator.labels):,} of {setup.dataset.name}."
            )
            plots += _plots(label, setup.dataset.name, built, scores_in, scores_out, found[label])
        groups = self._groups
        for group, labels in groups.items():
            found[group] = _mean([found[label] for label in labels])
            for d in built:
                sides = [by_image[f"ood/{label}/{d}/auroc"] for label in labels]
                by_image[f"ood/{group}/{d}/auroc"] = _mean_contributions(sides)
        values = {
            f"ood/{label}/{d}/{metric}": value
            for label, by_detector in found.items()
            for d, by_metric in by_detector.items()
            for metric, value in by_metric.items()
        }
        titles = {group: f"{group} (mean)" for group in groups}
        titles |= {label: label for label in found if label not in groups}
        headline = [
            Headline(
                f"ood/{label}/{d}/auroc", f"AUROC against {titles[label]}, {built[d].title}, %", 100
            )
            for label in groups or found
            for d in [d for d in HEADLINE if d in built] or self.ood_detectors[:1]
        ]
        percent = Headline("", "", 100, digits=1)
        rows = [
            [built[d].title, titles[label], *(percent.show(found[label][d][m]) for m in METRICS)]
            for label in titles
            for d in built
        ]
        header = ["detector", "against", *METRICS.values()]
        table = Table("Detection, % (FPR95: lower is better)", header, rows)
        return CheckResult(values, headline, plots, [table], notes, by_image)

    @property
    def _sets(self) -> list[tuple[str, str]]:
        """Field and name of each data set, the near ones first."""
        fields = {"ood_near": self.ood_near, "ood": self.ood}
        return [(field, name) for field, entries in fields.items() for name in names_of(entries)]

    @property
    def _groups(self) -> dict[str, list[str]]:
        """Labels of the near data sets and of the far ones, if there are near ones."""
        near, far = _labels(self.ood_near), _labels(self.ood)
        return {"near": near, "far": far} if near else {}


def names_of(entries: Sequence[str]) -> list[str]:
    """The names of data sets, of which an entry may hold several."""
    return [name for entry in entries for name in entry.split(",")]


def sets_requirement(title: str, sets: Sequence[tuple[str, str]], setup: EvaluationSetup) -> str:
    """The reason why a check does not apply to a run for want of data sets; empty if it does.

    Args:
      title: title of the check.
      sets: field and name of each data set.
      setup: the run.

    Raises:
      InputError: a data set cannot be loaded, is of another kind of inputs, or is the run's own.
    """
    kind = setup.dataset.inputs.name
    if kind != "images" and list(sets) == [("ood", name) for name in DEFAULT_SETS]:
        return f"{title} needs the option ood, data sets of {kind}"
    for field, name in sets:
        require(name != setup.dataset.name, field, name, "another data set than the run's")
        images_of(name, setup, field)
    return ""


def _labels(entries: Sequence[str]) -> list[str]:
    return list(map(label_of, names_of(entries)))


def _distinct(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def _mean(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean over data sets of the metrics of each detector."""
    return {
        d: {metric: float(np.mean([one[d][metric] for one in found])) for metric in METRICS}
        for d in found[0]
    }


def _mean_contributions(sides: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """What each image contributes to the mean over S data sets; empty if it is undefined.

    The images of one set are a sample of their own, of which the mean has the share 1 / S.
    """
    inside, outside = zip(*sides, strict=True)
    if not all(map(len, inside)):
        return []
    return [np.mean(inside, axis=0), *(values / len(sides) for values in outside)]


def _scores(built: Mapping[str, Detector], outputs: Outputs) -> dict[str, np.ndarray]:
    return {name: detector.score(outputs) for name, detector in built.items()}


def _fitted_on(training: Training) -> list[str]:
    """A note on the training images, if a detector used them."""
    if not training.is_computed:
        return []
    note = (
        f"Detectors that need training features: fitted on {training.num_images:,} training images"
    )
    if (kept := len(training.bank)) < training.num_images:
        note += (
            f"; for kNN, ReAct's threshold and ViM's scale, {kept:,} of them, chosen by the seed"
        )
    return [f"{note}."]


def _plots(label, name_in, built, scores_in, scores_out, found) -> list[Plot]:
    auroc = {name: found[name]["auroc"] for name in built}
    seen = "AUROC " + ", ".join(f"{built[d].title} {100 * auroc[d]:.1f} %" for d in built)
    rows = math.ceil(len(built) / COLUMNS)
    return [
        Plot(
            f"ood_{label}_scores",
            f"Scores of {name_in} and of {label}",
            "Where the two histograms overlap, a detector cannot separate the two data sets.",
            functools.partial(_draw_histograms, label, built),
            (scores_in, scores_out),
            seen,
            size=(11, 0.5 + 2.1 * rows),
            panels=True,
            shared_axes=False,
        ),
        Plot(
            f"ood_{label}_roc",
            f"Detection of {label}",
            "The closer a curve is to the upper left corner, the better the detector separates the two "
            "data sets; the diagonal is chance. The legend is in the order of the AUROC.",
            functools.partial(_draw_roc, built),
            (scores_in, scores_out, auroc),
            seen,
            size=(6.8, 3.9),
            panels=True,
        ),
    ]


@functools.lru_cache(maxsize=8)
def images_of(name: str, setup: EvaluationSetup, field: str) -> HostArray:
    """The test inputs of another data set; images in the size and channels of the run's."""
    ours = setup.dataset
    try:
        other = setup.load_dataset(name)
        if ours.inputs == other.inputs and ours.inputs.name == "images":
            return data.resized(other.splits["test"].images, ours.image_shape)
        if ours.inputs != other.inputs or ours.image_shape != other.image_shape:
            raise InputError(
                f"{other.inputs.name} {list(other.image_shape)}, where the run has "
                f"{ours.inputs.name} {list(ours.image_shape)}"
            )
        return other.splits["test"].images
    except InputError as error:
        raise InputError(f"{name!r} cannot be used: {error}", field=field) from error


def label_of(name: str) -> str:
    """The name in metrics and files; the last part of a path."""
    name = with_options(name)[0].removesuffix("/")
    return re.sub(r"^(npz|hf):", "", name.rpartition("/")[2]).removesuffix(".npz")


def _draw_histograms(label, built, figure, runs) -> None:
    rows = math.ceil(len(built) / COLUMNS)
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    (((scores_in, scores_out), _),) = runs.values()
    for axes, (name, detector) in zip(grid.flat, built.items(), strict=False):
        finite = [s[name][np.isfinite(s[name])] for s in (scores_in, scores_out)]
        bins = np.histogram_bin_edges(np.concatenate(finite), 40)
        for values, side, colour in zip(finite, ("in distribution", label), COLOURS, strict=False):
            weights = np.full(len(values), 100 / max(len(values), 1))
            axes.hist(values, bins, weights=weights, label=side, color=colour, alpha=0.55)
        axes.set_xlabel(f"{detector.title}{', log' if detector.log else ''}")
        axes.locator_params(axis="x", nbins=4)
    for axes in grid.flat[len(built) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("images (%)")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False
    )


def _draw_roc(built, figure, runs) -> None:
    (((scores_in, scores_out, auroc), _),) = runs.values()
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.6", lw=1)
    style = dict(zip(built, styles(), strict=False))
    for name in sorted(built, key=lambda name: -auroc[name]):
        fpr, tpr = metrics.roc(scores_in[name], scores_out[name])
        line = {key: style[name][key] for key in ("color", "linestyle")}
        label = f"{built[name].title} ({100 * auroc[name]:.1f})"
        axes.plot(100 * fpr, 100 * tpr, label=label, **line)
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.set_xlabel("false positive rate (%)")
    axes.set_ylabel("true positive rate (%)")
    figure.legend(loc="outside right center", frameon=False)
