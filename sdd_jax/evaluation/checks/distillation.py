"""The three-way table of Dropout Distillation: Standard, Monte-Carlo dropout, Distilled."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval

from sdd_jax.errors import InputError
from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.evaluator import EvaluationSetup, Evaluator, ensemble_predictions
from sdd_jax.evaluation.plots import COLOURS, log_ticks, panel
from sdd_jax.evaluation.results import MISSING, CheckResult, Headline, Plot, Table


@checks.register("distillation")
@dataclasses.dataclass(frozen=True)
class Distillation(Check):
    """Error, NLL, Brier score, ECE, KL from the MC posterior, time per image; share of the gap closed.

    "Standard" is the teacher with dropout off, "MC(m)" the mean of its posteriors under m masks,
    "Distilled" the run's own network. Of several teachers, "Standard" is the first, from which the
    student starts, and the mean is that of m masks of each, or of one pass of each if none has dropout.
    The closed share of the gap is (Standard - Distilled) / (Standard - MC) in error.

    Attributes:
      mc_samples: number of masks m.
    """

    title: ClassVar[str] = "Dropout Distillation"
    one_label = True
    mc_samples: Annotated[int, Interval(ge=1, le=100_000)] = 100

    def requirement(self, setup: EvaluationSetup) -> str:
        """Requires a run with a teacher; the teacher must still be loadable."""
        return teacher_requirement(setup, "distillation")

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates the teacher, its ensemble and the student."""
        labels, teachers = evaluator.labels, teachers_of(evaluator)
        curve: dict[int, float] = {}
        networks: dict[str, tuple[np.ndarray, float | None]] = {
            "standard": (metrics.log_softmax(teachers[0].logits), _seconds_per_image(teachers[0]))
        }
        for ensemble in ensemble_predictions(teachers, self.mc_samples):
            curve[ensemble.num_samples] = 1 - metrics.top_k_accuracy(ensemble.log_probs, labels)
            networks["mc"] = ensemble.log_probs, ensemble.seconds_per_image
        networks["distilled"] = _student_log_probs(evaluator), _seconds_per_image(evaluator)
        mc, _ = networks["mc"]
        labelled = {
            "standard": "Standard",
            "mc": ensemble_label(teachers, self.mc_samples),
            "distilled": "Distilled",
        }
        values: dict[str, float] = {"mc_samples": self.mc_samples}
        by_image = {}
        for name, (log_probs, seconds) in networks.items():
            values[f"{name}/error"] = 1 - metrics.top_k_accuracy(log_probs, labels)
            for metric, value in metrics.compute(log_probs, labels, "nll", "brier", "ece").items():
                values[f"{name}/{metric}"] = value
            divergence = np.sum(np.exp(mc) * (mc - log_probs), axis=-1)
            by_image[f"distillation/{name}/kl_from_mc"] = [divergence]
            by_image[f"distillation/{name}/error"] = [
                1 - metrics.contributions(log_probs, labels, "accuracy")["accuracy"]
            ]
            values[f"{name}/kl_from_mc"] = float(np.mean(divergence))
            if seconds is not None:
                values[f"{name}/milliseconds_per_image"] = 1000 * seconds
        gap = values["standard/error"] - values["mc/error"]
        if gap > 0:  # otherwise there is no gap to close
            values["gap_closed"] = (values["standard/error"] - values["distilled/error"]) / gap
        values |= {f"mc_error/{m}": error for m, error in curve.items()}
        return CheckResult(
            {f"distillation/{name}": value for name, value in values.items()},
            headline=[
                Headline(f"distillation/{name}/error", f"{label} error, %", 100, 2, False)
                for name, label in labelled.items()
            ]
            + [
                Headline("distillation/distilled/kl_from_mc", "KL from MC, nats", 1, 4, False),
            ],
            plots=(
                Plot(
                    "mc_error",
                    "Error of the ensemble",
                    "Error of the mean posterior of m passes through the ensemble, and of one pass "
                    "of the teacher without dropout and of the student.",
                    panel(_draw),
                    (curve, values),
                    "error "
                    + ", ".join(
                        f"{label} {100 * values[f'{name}/error']:.2f} %"
                        for name, label in labelled.items()
                    ),
                    panels=True,
                ),
            ),
            tables=(_table(values, labelled),),
            notes=(
                gap_note(
                    values,
                    metrics.paired_interval(
                        *(by_image[f"distillation/{name}/error"] for name in ("mc", "standard"))
                    ),
                ),
            ),
            by_image=by_image,
        )


def teacher_requirement(setup: EvaluationSetup, name: str) -> str:
    """The requirement of a check that compares with the teachers of the run.

    Raises:
      InputError: a teacher cannot be loaded.
    """
    if setup.load_teachers is None:
        return f"{name} needs a run with a teacher"
    try:
        setup.load_teachers()
    except InputError as error:
        raise InputError(f"the teacher cannot be loaded: {error}") from error
    return ""


def teachers_of(evaluator: Evaluator) -> list[Evaluator]:
    """The evaluators of the run's teachers on the same images."""
    load_teachers = evaluator.setup.load_teachers
    if load_teachers is None:
        raise ValueError("the run has no teacher")
    return [evaluator.with_network(teacher) for teacher in load_teachers()]


def ensemble_label(teachers: Sequence[Evaluator], mc_samples: int) -> str:
    """The name of an ensemble in tables: "MC(100)", "MC(100) of 3" or "Ensemble of 3"."""
    of = f" of {len(teachers)}" if len(teachers) > 1 else ""
    if any(any(teacher.setup.model.stochastic()) for teacher in teachers):
        return f"MC({mc_samples}){of}"
    return f"Ensemble{of}"


def _student_log_probs(evaluator: Evaluator) -> np.ndarray:
    """Logarithm of the mean posterior of a pass; only that of Gaussian logits is not softmax(logits)."""
    if evaluator.spread != "gaussian":
        return metrics.log_softmax(evaluator.logits)
    probs = evaluator.prediction_of(evaluator.images).probs
    return np.log(np.maximum(probs.astype(np.float64), np.finfo(np.float32).tiny))


def _seconds_per_image(evaluator: Evaluator) -> float:
    """Seconds per image of a pass over all images, compiled by the pass for the logits."""
    _ = evaluator.logits
    start = time.perf_counter()
    evaluator.logits_of(evaluator.images)
    return (time.perf_counter() - start) / len(evaluator.labels)


def gap_note(values: Mapping[str, float], interval: tuple[float, float] | None) -> str:
    """The closed share of the gap, and the gap with its interval over the test images."""
    closed = values.get("gap_closed")
    if closed is None:
        return "Gap closed: undefined, since MC is not better than Standard."
    gap = 100 * (values["standard/error"] - values["mc/error"])
    note = f"Gap closed: {100 * closed:.0f} % of the way from Standard to MC in error, {gap:.2f} points"
    if interval is None:
        return f"{note}."
    low, high = (100 * end for end in interval)
    chance = "; the gap may be chance, and then its share says nothing" if low <= 0 else ""
    return f"{note} (95 % interval {low:.2f} to {high:.2f}){chance}."


def _table(values: Mapping[str, float], labelled: Mapping[str, str]) -> Table:
    columns = {
        "error": ("error %", 100, ".2f"),
        "nll": ("NLL", 1, ".4f"),
        "brier": ("Brier", 1, ".4f"),
        "ece": ("ECE %", 100, ".2f"),
        "kl_from_mc": ("KL from MC", 1, ".4f"),
        "milliseconds_per_image": ("ms/image", 1, ".3f"),
    }
    rows = [
        [label]
        + [
            format(scale * values[f"{name}/{key}"], spec) if f"{name}/{key}" in values else MISSING
            for key, (_, scale, spec) in columns.items()
        ]
        for name, label in labelled.items()
    ]
    header = ["", *(title for title, _, _ in columns.values())]
    return Table("Three ways to use dropout", header, rows)


def _draw(axes, data) -> None:
    curve, values = data
    errors = [100 * error for error in curve.values()]
    axes.plot(list(curve), errors, "o-", color=COLOURS[0], label="ensemble, m passes")
    for name, dash, colour in (("standard", "--", COLOURS[1]), ("distilled", "-.", COLOURS[2])):
        error = 100 * values[f"{name}/error"]
        axes.axhline(error, ls=dash, color=colour, label=f"{name.capitalize()}, one pass")
    log_ticks(axes, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), max(curve))
    axes.set_xlim(0.9, max(curve) * 1.1)
    axes.set_xlabel("number of passes m")
    axes.set_ylabel("test error (%)")
    axes.legend(frameon=False)
