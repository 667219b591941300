"""Does confidence mean what it says?"""

import dataclasses
from typing import ClassVar

import numpy as np

from sdd_jax.evaluation import figures, metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.findings import Findings, Headline, Plot

SCORES = ("ece", "nll", "brier")


@checks.register("calibration")
@dataclasses.dataclass(frozen=True)
class Calibration(Check):
    """Calibration errors, proper scores and AURC; temperature scaling, if there is a validation split.

    The temperature is fitted on the validation split and applied to the test split.
    """

    title: ClassVar[str] = "Calibration"

    def __call__(self, evaluation) -> Findings:
        """Before and after temperature scaling."""
        labels = evaluation.labels
        log_probs = metrics.log_softmax(evaluation.logits)
        values = metrics.scores(log_probs, labels, *SCORES) | {
            "calibration/ece_equal_mass": metrics.expected_calibration_error(
                log_probs, labels, equal_mass=True
            ),
            "calibration/classwise_ece": metrics.classwise_calibration_error(log_probs, labels),
            "calibration/mce": metrics.maximum_calibration_error(log_probs, labels),
            "calibration/aurc": metrics.area_under_risk_coverage(log_probs, labels),
        }
        curves = {"as trained": metrics.reliability(log_probs, labels)}
        headline = [Headline("ece", "ECE, %", 100, higher_is_better=False)]
        notes = []
        if "validation" in evaluation.subject.dataset.splits:
            validation = dataclasses.replace(evaluation, split="validation")
            temperature = metrics.fit_temperature(validation.logits, validation.labels)
            scaled = metrics.log_softmax(evaluation.logits / temperature)
            values["calibration/temperature"] = temperature
            if temperature == metrics.LOWEST_TEMPERATURE:
                notes.append(
                    f"The temperature is at its bound: all {len(validation.labels)} validation images "
                    "are classified right, so that more confidence is always better."
                )
            values |= {
                f"calibration/scaled/{name}": value
                for name, value in metrics.scores(scaled, labels, *SCORES).items()
            }
            curves["temperature-scaled"] = metrics.reliability(scaled, labels)
            headline += [
                Headline(
                    "calibration/scaled/ece",
                    "ECE after temperature scaling, %",
                    100,
                    higher_is_better=False,
                ),
                Headline("calibration/temperature", "fitted temperature", higher_is_better=None),
            ]
        else:
            notes.append("No validation split, so no temperature was fitted.")
        headline.append(Headline("calibration/aurc", "AURC", 1, 4, higher_is_better=False))
        plots = (
            Plot(
                "reliability",
                "Reliability",
                "Each dot is a bin of images by confidence, its area their share: on the diagonal "
                "confidence is what it says, below it the network is overconfident.",
                figures.panels(_draw_reliability),
                curves,
                size=(4.6, 4.4),
                panels=True,
            ),
            Plot(
                "risk_coverage",
                "Risk and coverage",
                "The error among the most confident images, the others left to a person: the lower the "
                "curve, the better confidence tells right from wrong.",
                figures.overlay(_draw_risk),
                metrics.risk_coverage(log_probs, labels),
            ),
        )
        return Findings(values, headline, plots, notes=notes)


def _draw_reliability(axes, curves) -> None:
    axes.plot([0, 100], [0, 100], color="0.6", lw=1, zorder=0)
    for (name, bins), style in zip(curves.items(), figures.styles(), strict=False):
        filled = bins.count > 0
        confidence, accuracy = 100 * bins.confidence[filled], 100 * bins.accuracy[filled]
        area = 12 + 300 * bins.count[filled] / bins.count.sum()
        axes.plot(confidence, accuracy, color=style["color"], ls=style["linestyle"], lw=1)
        axes.scatter(
            confidence,
            accuracy,
            s=area,
            color=style["color"],
            marker=style["marker"],
            alpha=0.75,
            lw=0,
            clip_on=False,
        )
        axes.plot([], [], label=name, **style)
    axes.set(xlim=(0, 102), ylim=(0, 102), aspect="equal")
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("accuracy (%)")
    axes.legend(frameon=False, loc="upper left")


def _draw_risk(axes, risks, *, label, color, linestyle, **_) -> None:
    coverage = 100 * np.arange(1, len(risks) + 1) / len(risks)
    axes.plot(coverage, 100 * risks, label=label, color=color, ls=linestyle)
    axes.set(xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coverage: share of images answered (%)")
    axes.set_ylabel("error among them (%)")
