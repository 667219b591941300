"""Detection of images from other data sets."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax.numpy as jnp
import numpy as np
from annotated_types import MinLen

from sdd_jax import data
from sdd_jax.data.sources import with_options
from sdd_jax.errors import InputError, require
from sdd_jax.evaluation import attacks, metrics
from sdd_jax.evaluation.batching import HostArray
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.evaluator import EvaluationSetup, Evaluator
from sdd_jax.evaluation.plots import COLOURS, panel, styles
from sdd_jax.evaluation.results import CheckResult, Headline, Plot
from sdd_jax.options import NonNegative, Positive

Scores = Mapping[str, np.ndarray]

SCORE_LABELS = {"msp": "MSP", "odin": "ODIN", "energy": "Energy", "max_logit": "Max logit"}


@checks.register("ood")
@dataclasses.dataclass(frozen=True)
class OutOfDistribution(Check):
    """Detection of the test images of other data sets by four scores.

    The images are resized to those of the run and normalised in the same way. The constants of ODIN
    (:func:`sdd_jax.evaluation.attacks.odin_inputs`) are those of its paper for CIFAR; they are not
    fitted to the other images.

    Attributes:
      ood: names of data sets; an entry may also hold several, separated by commas.
      odin_temperature: T.
      odin_epsilon: size of the change of pixels in [0, 1].
    """

    title: ClassVar[str] = "Out-of-distribution detection"
    ood: Annotated[tuple[str, ...], MinLen(1)] = ("photos",)
    odin_temperature: Positive = 1000.0
    odin_epsilon: NonNegative = 0.0014

    def __post_init__(self):
        """Rejects names that the metrics could not tell apart."""
        labels = list(map(_label, self._names))
        require(len(set(labels)) == len(labels), "ood", self.ood, "different data sets")

    def requirement(self, setup: EvaluationSetup) -> str:
        """Applies to every run; the data sets must be loadable and not its own."""
        for name in self._names:
            require(name != setup.dataset.name, "ood", name, "another data set than the run's")
            _images(name, setup)
        return ""

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates each score on each data set."""
        num_in, name_in = len(evaluator.labels), evaluator.setup.dataset.name
        scores_in = self._scores(evaluator, evaluator.images)
        values, headline, plots, notes, by_image = {}, [], [], [], {}
        for name in self._names:
            images, label = _images(name, evaluator.setup), _label(name)
            scores_out = self._scores(evaluator, images)
            auroc = {}
            for score in SCORE_LABELS:
                detection = metrics.detection(scores_in[score], scores_out[score])
                auroc[score] = detection["auroc"]
                values |= {f"ood/{label}/{score}/{k}": value for k, value in detection.items()}
                by_image[f"ood/{label}/{score}/auroc"] = metrics.auroc_contributions(
                    scores_in[score], scores_out[score]
                )
            headline += [
                Headline(
                    f"ood/{label}/{score}/auroc",
                    f"AUROC against {label}, {SCORE_LABELS[score]}, %",
                    100,
                )
                for score in ("msp", "odin")
            ]
            notes.append(
                f"Out of distribution: {len(images):,} images of {label}; in distribution: "
                f"{num_in:,} of {name_in}."
            )
            seen = "AUROC " + ", ".join(
                f"{title} {100 * auroc[score]:.1f} %" for score, title in SCORE_LABELS.items()
            )
            plots += [
                Plot(
                    f"ood_{label}_scores",
                    f"Scores of {name_in} and of {label}",
                    "Where the two histograms overlap, a score cannot separate the two data sets.",
                    functools.partial(_draw_histograms, label),
                    (scores_in, scores_out),
                    seen,
                    size=(11, 2.6),
                    panels=True,
                    shared_axes=False,
                ),
                Plot(
                    f"ood_{label}_roc",
                    f"Detection of {label}",
                    "The closer a curve is to the upper left corner, the better the score separates the "
                    "two data sets; the diagonal is chance.",
                    panel(_draw_roc),
                    (scores_in, scores_out, auroc),
                    seen,
                    size=(4.6, 4.4),
                    panels=True,
                ),
            ]
        return CheckResult(values, headline, plots, notes=notes, by_image=by_image)

    @property
    def _names(self) -> list[str]:
        return [name for entry in self.ood for name in entry.split(",")]

    def _scores(self, evaluator: Evaluator, images: HostArray) -> dict[str, np.ndarray]:
        logits = evaluator.logits if images is evaluator.images else evaluator.logits_of(images)
        temperature, epsilon = self.odin_temperature, 255 * self.odin_epsilon
        scalars = np.float32(temperature), np.float32(epsilon)
        moved = evaluator.map(_odin_logits, images, scalars=scalars)
        return {
            "msp": metrics.maximum_softmax_probability(logits),
            "odin": metrics.maximum_softmax_probability(moved, temperature=temperature),
            "energy": metrics.negative_energy(logits),
            "max_logit": metrics.maximum_logit(logits),
        }


def _odin_logits(network, variables, images, temperature, epsilon):
    logits_fn = functools.partial(network.logits, variables)
    images = images.astype(jnp.float32)
    moved = attacks.odin_inputs(logits_fn, images, epsilon, temperature=temperature)
    return network.logits(variables, moved)


@functools.lru_cache(maxsize=8)
def _images(name: str, setup: EvaluationSetup) -> HostArray:
    """The test images of another data set, in the size and channels of the run's."""
    try:
        return data.resized(
            setup.load_dataset(name).splits["test"].images, setup.dataset.image_shape
        )
    except InputError as error:
        raise InputError(f"{name!r} cannot be used: {error}", field="ood") from error


def _label(name: str) -> str:
    """The name in metrics and files; the last part of a path."""
    name = with_options(name)[0].removesuffix("/")
    return re.sub(r"^(npz|hf):", "", name.rpartition("/")[2]).removesuffix(".npz")


def _draw_histograms(label, figure, runs) -> None:
    row = figure.subplots(1, len(SCORE_LABELS))
    (((scores_in, scores_out), _),) = runs.values()
    for axes, (score, title) in zip(row, SCORE_LABELS.items(), strict=True):
        finite = [s[score][np.isfinite(s[score])] for s in (scores_in, scores_out)]
        bins = np.histogram_bin_edges(np.concatenate(finite), 40)
        for values, name, colour in zip(finite, ("in distribution", label), COLOURS, strict=False):
            weights = np.full(len(values), 100 / max(len(values), 1))
            axes.hist(values, bins, weights=weights, label=name, color=colour, alpha=0.55)
        axes.set_xlabel(f"{title}{', log' if score in ('msp', 'odin') else ''}")
        axes.locator_params(axis="x", nbins=4)
    row[0].set_ylabel("images (%)")
    figure.legend(
        *row[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False
    )


def _draw_roc(axes, data) -> None:
    scores_in, scores_out, auroc = data
    axes.plot([0, 100], [0, 100], color="0.6", lw=1)
    for (score, title), style in zip(SCORE_LABELS.items(), styles(), strict=False):
        fpr, tpr = metrics.roc(scores_in[score], scores_out[score])
        line = {"color": style["color"], "linestyle": style["linestyle"]}
        axes.plot(100 * fpr, 100 * tpr, label=f"{title} ({100 * auroc[score]:.1f})", **line)
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.set_xlabel("false positive rate (%)")
    axes.set_ylabel("true positive rate (%)")
    free_corner = "lower right" if np.mean(list(auroc.values())) >= 0.5 else "upper left"
    axes.legend(frameon=False, loc=free_corner, title="AUROC, %")
