"""Calibration of the confidence, before and after temperature scaling."""

import dataclasses
from typing import ClassVar

import numpy as np

from sdd_jax.evaluation import metrics, plots
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.evaluator import Evaluator
from sdd_jax.evaluation.results import CheckResult, Headline, Plot

COMPARED = ("ece", "nll", "brier")  # before and after temperature scaling


@checks.register("calibration")
@dataclasses.dataclass(frozen=True)
class Calibration(Check):
    """Calibration errors, proper scores and AURC; temperature scaling, if there is a validation split.

    The temperature is fitted on the validation split and applied to the evaluated one.
    """

    title: ClassVar[str] = "Calibration"

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Measures the calibration, and fits the temperature."""
        labels = evaluator.labels
        log_probs = metrics.log_softmax(evaluator.logits)
        values = metrics.compute(log_probs, labels, *COMPARED) | {
            "calibration/ece_equal_mass": metrics.expected_calibration_error(
                log_probs, labels, equal_mass=True
            ),
            "calibration/classwise_ece": metrics.classwise_calibration_error(log_probs, labels),
            "calibration/mce": metrics.maximum_calibration_error(log_probs, labels),
            "calibration/aurc": metrics.area_under_risk_coverage(log_probs, labels),
        }
        bins = {"as trained": metrics.reliability(log_probs, labels)}
        headline = [Headline("ece", "ECE, %", 100, higher_is_better=False)]
        notes = []
        if "validation" in evaluator.setup.dataset.splits:
            validation = dataclasses.replace(evaluator, split="validation")
            temperature = metrics.fit_temperature(validation.logits, validation.labels)
            scaled = metrics.log_softmax(evaluator.logits / temperature)
            values["calibration/temperature"] = temperature
            if temperature == metrics.LOWEST_TEMPERATURE:
                notes.append(
                    f"The temperature is at its lower bound: all {len(validation.labels)} validation "
                    "images are classified correctly, so a higher confidence is always better."
                )
            values |= {
                f"calibration/scaled/{name}": value
                for name, value in metrics.compute(scaled, labels, *COMPARED).items()
            }
            bins["temperature-scaled"] = metrics.reliability(scaled, labels)
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
            notes.append("There is no validation split, so no temperature is fitted.")
        headline.append(Headline("calibration/aurc", "AURC", 1, 4, higher_is_better=False))
        return CheckResult(
            values,
            headline,
            plots=(
                Plot(
                    "reliability",
                    "Reliability",
                    "Each marker is a bin of images by confidence, its area their share. On the "
                    "diagonal, confidence equals accuracy; below it, the network is overconfident.",
                    plots.panels(_draw_reliability),
                    bins,
                    size=(4.6, 4.4),
                    panels=True,
                ),
                Plot(
                    "risk_coverage",
                    "Risk and coverage",
                    "Error among the most confident images when the network abstains on the others. The "
                    "lower the curve, the better confidence separates right predictions from wrong.",
                    plots.overlay(_draw_risk),
                    metrics.risk_coverage(log_probs, labels),
                ),
            ),
            notes=notes,
        )


def _draw_reliability(axes, bins) -> None:
    axes.plot([0, 100], [0, 100], color="0.6", lw=1, zorder=0)
    for (name, group), style in zip(bins.items(), plots.styles(), strict=False):
        filled = group.count > 0
        confidence, accuracy = 100 * group.confidence[filled], 100 * group.accuracy[filled]
        colour, marker = style["color"], style["marker"]
        area = 12 + 300 * group.count[filled] / group.count.sum()
        axes.plot(confidence, accuracy, color=colour, ls=style["linestyle"], lw=1)
        axes.scatter(
            confidence,
            accuracy,
            s=area,
            color=colour,
            marker=marker,
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
    axes.set_xlabel("coverage (% of images)")
    axes.set_ylabel("error (%)")
