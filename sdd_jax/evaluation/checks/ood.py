"""Can the network tell what it has never seen?"""

import dataclasses
import functools
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import data
from sdd_jax.errors import InputError, check
from sdd_jax.evaluation import metrics, scores
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.figures import COLOURS, panels, styles
from sdd_jax.evaluation.findings import Findings, Headline, Plot

SCORES = {"msp": "MSP", "odin": "ODIN", "energy": "Energy", "max_logit": "Max logit"}


@checks.register("ood")
@dataclasses.dataclass(frozen=True)
class OutOfDistribution(Check):
    """Detection of images of other data sets, by four scores.

    ODIN (Liang et al., `Enhancing The Reliability of Out-of-distribution Image Detection
    <https://arxiv.org/abs/1706.02690>`_, 2018) moves the image by epsilon against the sign of the
    gradient of ``-log max_c p_c`` at temperature T, then takes the largest probability at T. Its
    constants are those of the paper for CIFAR; nothing is fitted on the other images.

    Attributes:
      ood: names of data sets, as in ``config.dataset.name``, also several in one string with commas
        between; their test splits are used, resized to the run's images and normalised as they are.
      odin_temperature: T.
      odin_epsilon: of pixels in [0, 1].
    """

    title: ClassVar[str] = "Out-of-distribution detection"
    ood: tuple[str, ...] = ("photos",)
    odin_temperature: float = 1000.0
    odin_epsilon: float = 0.0014

    def __post_init__(self):
        """Checks the options."""
        different = 0 < len(self._names) == len(set(map(_shown, self._names)))
        check(different, "config.eval.ood", self.ood, "names of data sets, each another")
        check(
            self.odin_temperature > 0,
            "config.eval.odin_temperature",
            self.odin_temperature,
            "greater than 0",
        )
        check(self.odin_epsilon >= 0, "config.eval.odin_epsilon", self.odin_epsilon, "0 or more")

    def requirement(self, subject) -> str:
        """Any run can have it, if the other sets are there and are others."""
        for name in self._names:
            check(
                name != subject.dataset.name,
                "config.eval.ood",
                name,
                "other data sets than config.dataset.name",
            )
            _images(name, subject)
        return ""

    def __call__(self, evaluation) -> Findings:
        """Figures for each set and score."""
        inside = self._scores(evaluation, evaluation.images)
        values, headline, plots, notes = {}, [], [], []
        for name in self._names:
            images = _images(name, evaluation.subject)
            outside = self._scores(evaluation, images)
            shown = _shown(name)
            found = {score: metrics.detection(inside[score], outside[score]) for score in SCORES}
            values |= {
                f"ood/{shown}/{score}/{metric}": value
                for score, figures in found.items()
                for metric, value in figures.items()
            }
            areas = {score: figures["auroc"] for score, figures in found.items()}
            headline += [
                Headline(
                    f"ood/{shown}/{score}/auroc", f"AUROC against {shown}, {SCORES[score]}, %", 100
                )
                for score in ("msp", "odin")
            ]
            notes.append(
                f"Out of distribution: {shown}, {len(images):,} images, against "
                f"{len(evaluation.labels):,} of {evaluation.subject.dataset.name}."
            )
            plots += [
                Plot(
                    f"ood_{shown}_scores",
                    f"Scores of {evaluation.subject.dataset.name} and of {shown}",
                    "Where the two histograms overlap, a score cannot tell the two sets apart.",
                    functools.partial(_draw_histograms, shown),
                    (inside, outside),
                    size=(11, 2.6),
                ),
                Plot(
                    f"ood_{shown}_roc",
                    f"Detection of {shown}",
                    "The nearer a curve comes to the upper left corner, the better the score tells the "
                    "sets apart; the diagonal is a guess.",
                    panels(_draw_roc),
                    (inside, outside, areas),
                    size=(4.6, 4.4),
                    panels=True,
                ),
            ]
        return Findings(values, headline, plots, notes=notes)

    @property
    def _names(self) -> list[str]:
        return [name for entry in self.ood for name in entry.split(",")]

    def _scores(self, evaluation, images) -> dict[str, np.ndarray]:
        logits = evaluation.logits if images is evaluation.images else evaluation.logits_of(images)
        scalars = (np.float32(self.odin_temperature), np.float32(255 * self.odin_epsilon))
        moved = evaluation.map(_odin_logits, images, scalars=scalars)
        return {
            "msp": scores.maximum_softmax_probability(logits),
            "odin": scores.maximum_softmax_probability(moved, temperature=self.odin_temperature),
            "energy": scores.negative_energy(logits),
            "max_logit": scores.maximum_logit(logits),
        }


def _odin_logits(network, variables, images, temperature, epsilon):
    def loss(images):
        logits = network.logits(variables, images) / temperature
        return -jnp.sum(jnp.max(jax.nn.log_softmax(logits), axis=-1))

    images = images.astype(jnp.float32)
    return network.logits(variables, images - epsilon * jnp.sign(jax.grad(loss)(images)))


def _images(name: str, subject) -> np.ndarray:
    """The test images of another set, in the size and channels of the run's."""
    options = json.dumps(subject.config.dataset.to_dict())
    return _resized(name, options, subject.dataset.image_shape)


@functools.lru_cache(maxsize=8)
def _resized(name, options, shape) -> np.ndarray:
    try:
        other = data.load_other(name, json.loads(options))
        return data.resized(other.splits["test"].images, shape)
    except InputError as error:
        raise InputError(f"config.eval.ood: {name!r} cannot be used: {error}") from error


def _shown(name: str) -> str:
    """The name in figures and files: of a path, its last part."""
    return name.rpartition("/")[2].removeprefix("npz:").removesuffix(".npz")


def _draw_histograms(shown, figure, runs) -> None:
    rows = figure.subplots(len(runs), len(SCORES), squeeze=False)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height * len(runs))
    for row, (run, ((inside, outside), _)) in zip(rows, runs.items(), strict=True):
        for axes, (score, title) in zip(row, SCORES.items(), strict=True):
            finite = [s[score][np.isfinite(s[score])] for s in (inside, outside)]
            bins = np.histogram_bin_edges(np.concatenate(finite), 40)
            for values, label, colour in zip(
                finite, ("in distribution", shown), COLOURS, strict=False
            ):
                shares = np.full(len(values), 100 / max(len(values), 1))
                axes.hist(values, bins, weights=shares, label=label, color=colour, alpha=0.55)
            axes.set_xlabel(f"{title}{', log' if score in ('msp', 'odin') else ''}")
            axes.locator_params(axis="x", nbins=4)
        row[0].set_ylabel("images (%)" if len(runs) == 1 else f"{run}\nimages (%)")
    figure.legend(
        *rows[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
    )


def _draw_roc(axes, data) -> None:
    inside, outside, areas = data
    axes.plot([0, 100], [0, 100], color="0.6", lw=1)
    for (score, title), style in zip(SCORES.items(), styles(), strict=False):
        fpr, tpr = metrics.roc(inside[score], outside[score])
        line = {"color": style["color"], "linestyle": style["linestyle"]}
        axes.plot(100 * fpr, 100 * tpr, label=f"{title} ({100 * areas[score]:.1f})", **line)
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.set_xlabel("other images accepted (%)")
    axes.set_ylabel("own images accepted (%)")
    free = "lower right" if np.mean(list(areas.values())) >= 0.5 else "upper left"
    axes.legend(frameon=False, loc=free, title="AUROC, %")
