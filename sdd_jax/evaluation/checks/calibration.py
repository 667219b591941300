"""Calibration of the confidence, before and after scaling, and selective classification."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from sdd_jax.evaluation import metrics, plots
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.checks.accuracy import NLL
from sdd_jax.evaluation.evaluator import Evaluator
from sdd_jax.evaluation.results import MISSING, WARNING, CheckResult, Headline, Plot, Table
from sdd_jax.tasks import Decisions

COMPARED = ("ece", "nll", "brier")  # before and after temperature scaling
RAW = (NLL, Headline("ece", "ECE, raw, %", 100, higher_is_better=False))
SCALED = (
    *(
        dataclasses.replace(
            line,
            metric=f"calibration/scaled/{line.metric}",
            label=line.label.replace("raw", "temperature-scaled"),
            raw=line.metric,
        )
        for line in RAW
    ),
    Headline("calibration/temperature", "fitted temperature", higher_is_better=None),
)
FEW = 10  # decisions in a bin, below which the plot shows it faintly
SMALLEST_GAP = 0.02  # between accuracy and mean confidence, for a warning
MOST_CLASSES = 20  # for Dirichlet scaling, whose fit to 100 classes takes minutes
SELECTIVE = {
    "aurc": metrics.area_under_risk_coverage,
    "augrc": metrics.area_under_generalized_risk_coverage,
    "coverage_at_5": metrics.coverage_at_risk,
}
COLUMNS = {
    "accuracy": ("accuracy %", 100, 2),
    "nll": ("NLL", 1, 4),
    "ece": ("ECE %", 100, 2),
    "classwise_ece": ("classwise ECE %", 100, 3),
    "aurc": ("1000 AURC", 1000, 2),
    "augrc": ("1000 AUGRC", 1000, 2),
    "coverage_at_5": ("coverage at 5 % error, %", 100, 1),
}


@checks.register("calibration")
@dataclasses.dataclass(frozen=True)
class Calibration(Check):
    """Calibration errors, proper scores and selective classification, before and after scaling.

    With a validation split, temperature, vector and Dirichlet scaling and isotonic regression are fitted
    on it and applied to the evaluated split, in one table with the raw figures; so is the norm of the
    logits that gives another confidence (``logit_norm``). The summary has the temperature-scaled figures
    first. With the temperature at its lower bound, which alone decides them, the summary and the table
    have raw figures only.

    ``calibration/confidence`` is the mean probability of the predicted class, ``calibration/gap`` the
    accuracy minus it: positive for an underconfident network, negative for an overconfident one. A note
    warns of a gap that exceeds 0.02 and two of its standard errors, another of a temperature that makes
    the NLL worse.
    """

    title: ClassVar[str] = "Calibration"

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Measures the calibration, and fits the temperature."""
        decisions, noun = evaluator.some_decisions, evaluator.setup.dataset.noun
        logits, labels, *_ = decisions
        log_probs = metrics.log_softmax(logits)
        confidence = np.exp(log_probs.max(axis=-1))
        gaps = (log_probs.argmax(axis=-1) == labels) - confidence
        raw = _figures(log_probs, labels)
        values = {name: raw[name] for name in COMPARED} | {
            "calibration/ece_equal_mass": metrics.expected_calibration_error(
                log_probs, labels, equal_mass=True
            ),
            "calibration/classwise_ece": raw["classwise_ece"],
            "calibration/mce": metrics.maximum_calibration_error(log_probs, labels),
            **{f"calibration/{name}": raw[name] for name in SELECTIVE},
            "calibration/confidence": float(confidence.mean()),
            "calibration/gap": float(gaps.mean()),
        }
        bins = {"raw": metrics.reliability(log_probs, labels)}
        risks = metrics.risk_coverage(log_probs, labels)
        headline = list(RAW)
        by_image = metrics.contributions(log_probs, labels, "nll", "ece")
        by_image["calibration/aurc"] = metrics.contributions(log_probs, labels, "aurc")["aurc"]
        notes, worsened = evaluator.note_on_decisions(), []
        rows = {"raw": raw}
        title = "Calibration and selective classification"
        fitted = None
        if "validation" in evaluator.setup.dataset.splits:
            validation = dataclasses.replace(evaluator, split="validation").some_decisions
            temperature = metrics.fit_temperature(validation.logits, validation.labels)
            scaled = metrics.log_softmax(logits / temperature)
            values["calibration/temperature"] = temperature
            maps = {"scaled": scaled} | _calibrated(validation, logits)
            p = metrics.fit_logit_norm(validation.logits, validation.labels)
            confidence_by_norm = metrics.normalized_maximum_logit(logits, p=p)
            found = {name: _figures(mapped, labels) for name, mapped in maps.items()}
            found["logit_norm"] = _selective(log_probs, labels, confidence_by_norm)
            for name, figures in found.items():
                values |= {f"calibration/{name}/{key}": value for key, value in figures.items()}
            values["calibration/logit_norm/p"] = p
            if temperature == metrics.LOWEST_TEMPERATURE:
                notes.append(
                    f"The temperature is at its lower bound: all {len(validation.labels)} validation "
                    f"{noun}s are classified correctly, so a higher confidence is always better. The "
                    "summary has raw figures only; train with a larger dataset.validation for "
                    "temperature-scaled ones."
                )
            else:
                fitted = temperature
                rows |= found
                title += f", fitted on {len(validation.labels):,} validation {noun}s"
                bins["temperature-scaled"] = metrics.reliability(scaled, labels)
                headline += SCALED
                of_scaled = metrics.contributions(scaled, labels, "nll", "ece")
                by_image |= {f"calibration/scaled/{name}": of_scaled[name] for name in of_scaled}
                worsened = _worse_nll(values, f"{len(validation.labels)} validation {noun}s")
        else:
            notes.append(
                "There is no validation split, so no temperature is fitted and all figures are raw; "
                "train with --config.dataset.validation=0.1 for temperature-scaled ones."
            )
        sd_dropout = evaluator.setup.sd_dropout_rate > 0
        if "scaled" in rows and "dirichlet" not in rows:
            notes.append(f"Dirichlet scaling is left out with more than {MOST_CLASSES} classes.")
        notes += worsened + _warnings(gaps, values, fitted, not worsened, sd_dropout=sd_dropout)
        headline.append(Headline("calibration/aurc", "AURC", 1, 4, higher_is_better=False))
        return CheckResult(
            values,
            headline,
            plots=(
                Plot(
                    "reliability",
                    "Reliability",
                    f"Each marker is a bin of {noun}s by confidence, its area their share. On the "
                    "diagonal, confidence equals accuracy; above it, the network is underconfident, "
                    f"below it overconfident. Bins of fewer than {FEW} {noun}s are faint: their "
                    "accuracy is uncertain.",
                    draw_reliability,
                    bins,
                    "; ".join(_seen(name, group, noun) for name, group in bins.items()),
                    size=(4.6, 4.4),
                    panels=True,
                ),
                Plot(
                    "risk_coverage",
                    "Risk and coverage",
                    f"Error among the most confident {noun}s when the network abstains on the others. "
                    "The lower the curve, the better confidence separates right predictions from wrong.",
                    draw_risk_coverage,
                    risks,
                    f"error {100 * risks[-1]:.1f} % on all {noun}s, "
                    f"{100 * risks[(len(risks) - 1) // 2]:.1f} % on the more confident half",
                ),
            ),
            tables=[_table(title, rows, values)],
            notes=notes,
            by_image={name: [decisions.by_example(values)] for name, values in by_image.items()},
        )


def _calibrated(validation: Decisions, logits: np.ndarray) -> dict[str, np.ndarray]:
    """Log-probabilities by each map but the temperature, fitted on the validation split."""
    log_probs, fit_on = metrics.log_softmax(logits), metrics.log_softmax(validation.logits)
    labels = validation.labels
    vector = metrics.fit_vector_scaling(validation.logits, labels)
    maps = {"vector": metrics.vector_scaling(logits, vector)}
    if logits.shape[-1] <= MOST_CLASSES:
        odir = metrics.select_odir(fit_on, labels)
        dirichlet = metrics.fit_dirichlet_scaling(fit_on, labels, odir=odir)
        maps["dirichlet"] = metrics.dirichlet_scaling(log_probs, dirichlet)
    return maps | {"isotonic": metrics.isotonic(log_probs, metrics.fit_isotonic(fit_on, labels))}


def _figures(log_probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        **metrics.compute(log_probs, labels, "accuracy", *COMPARED),
        "classwise_ece": metrics.classwise_calibration_error(log_probs, labels),
        **_selective(log_probs, labels),
    }


def _selective(
    log_probs: np.ndarray, labels: np.ndarray, confidence: np.ndarray | None = None
) -> dict[str, float]:
    return {
        name: function(log_probs, labels, confidence=confidence)
        for name, function in SELECTIVE.items()
    }


def _table(
    title: str, rows: Mapping[str, Mapping[str, float]], values: Mapping[str, float]
) -> Table:
    labels = {
        "raw": "raw",
        "scaled": "temperature",
        "vector": "vector",
        "dirichlet": "Dirichlet",
        "isotonic": "isotonic",
        "logit_norm": f"{values.get('calibration/logit_norm/p', 0):.0f}-norm of logits",
    }
    header = ["", *(label for label, _, _ in COLUMNS.values())]
    lines = [
        [
            labels[name],
            *(
                Headline("", "", scale, digits).show(figures.get(metric))
                for metric, (_, scale, digits) in COLUMNS.items()
            ),
        ]
        for name, figures in rows.items()
    ]
    return Table(title, header, lines)


def _worse_nll(values: Mapping[str, float], fitted_on: str) -> list[str]:
    """A warning if temperature scaling makes the NLL worse, as far as the summary shows it, or none."""
    raw, scaled = (NLL.show(values[name]) for name in ("nll", "calibration/scaled/nll"))
    if MISSING in (raw, scaled) or float(scaled) <= float(raw):
        return []
    return [
        f"{WARNING}temperature scaling makes the NLL worse, {scaled} in place of {raw}: the "
        f"temperature, {values['calibration/temperature']:.3g}, was fitted on {fitted_on}, "
        "which are too few or differ from the evaluated ones. Use the raw "
        "probabilities, and compare runs by the raw figures, or train with a larger dataset.validation."
    ]


def _warnings(
    gaps: np.ndarray,
    values: Mapping[str, float],
    temperature: float | None,
    helps: bool,
    *,
    sd_dropout: bool,
) -> list[str]:
    """A warning if confidence and accuracy differ by more than chance, or none.

    Args:
      gaps: correctness minus confidence, ``[N]``.
      values: the metrics.
      temperature: the fitted temperature; None without one.
      helps: whether the NLL at this temperature is no worse than the raw one.
      sd_dropout: whether the network was trained with SD-Dropout.
    """
    gap, confidence = values["calibration/gap"], values["calibration/confidence"]
    if len(gaps) < 2:
        return []
    error = gaps.std(ddof=1) / math.sqrt(len(gaps))
    if not abs(gap) > max(SMALLEST_GAP, 2 * error):  # nan is no gap
        return []
    under = gap > 0
    direction, level = ("underconfident", "low") if under else ("overconfident", "high")
    if temperature is None:
        remedy = (
            "Before you use the probabilities, or compare runs by NLL or ECE, fit a temperature: train "
            "with a larger dataset.validation."
        )
    elif (temperature < 1) == under and helps:
        remedy = (
            f"Divide the logits by the fitted temperature, {temperature:.3g}, before you use the "
            "probabilities, and compare runs by the temperature-scaled figures."
        )
    else:
        remedy = f"The fitted temperature, {temperature:.3g}, does not correct this."
    if under and sd_dropout:
        remedy += (
            " If its accuracy on the training images is low as well, train with a smaller "
            "sd_dropout.weight."
        )
    return [
        f"{WARNING}the network is {direction}: its mean confidence is {100 * confidence:.1f} %, its "
        f"accuracy {100 * (confidence + gap):.1f} %. Its probabilities are too {level}; the ranking of "
        f"the classes and the accuracy are unaffected. {remedy}"
    ]


def _seen(name: str, bins: metrics.Bins, noun: str) -> str:
    filled = bins.count >= FEW
    above = int(np.sum(bins.accuracy[filled] > bins.confidence[filled]))
    bins_of = f"{filled.sum()} bins of {FEW} {noun}s or more"
    return f"{name}, accuracy exceeds confidence in {above} of the {bins_of}"


def draw_reliability(figure, runs) -> None:
    """Draws the bins of one run."""
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.6", lw=1, zorder=0)
    ((bins, _),) = runs.values()
    for (name, group), style in zip(bins.items(), plots.styles(), strict=False):
        share = group.count / group.count.sum()
        for shown, alpha in ((group.count >= FEW, 0.75), (group.count < FEW, 0.28)):
            x, y = 100 * group.confidence[shown], 100 * group.accuracy[shown]
            axes.scatter(
                x, y, 12 + 300 * share[shown], style["color"], marker=style["marker"],
                alpha=alpha, lw=0, clip_on=False,
            )  # fmt: skip
            if alpha > 0.5:
                axes.plot(x, y, color=style["color"], ls=style["linestyle"], lw=1)
        axes.plot([], [], label=name, **style)
    axes.set(xlim=(0, 102), ylim=(0, 102), aspect="equal")
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("accuracy (%)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


@plots.overlay
def draw_risk_coverage(axes, risks, *, label, color, linestyle, **_) -> None:
    """Draws the risks of one run."""
    coverage = 100 * np.arange(1, len(risks) + 1) / len(risks)
    axes.plot(coverage, 100 * risks, label=label, color=color, ls=linestyle)
    axes.set(xlim=(0, 100))  # a limit of y would end its scaling to the runs that follow
    axes.set_xlabel("coverage (%)")
    axes.set_ylabel("error (%)")
