"""The three-way table of Dropout Distillation: Standard, Monte-Carlo dropout, Distilled."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval

from sdd_jax.errors import InputError
from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.evaluator import EvaluationSetup, Evaluator
from sdd_jax.evaluation.plots import COLOURS, log_ticks, panel
from sdd_jax.evaluation.results import MISSING, CheckResult, Headline, Plot, Table


@checks.register("distillation")
@dataclasses.dataclass(frozen=True)
class Distillation(Check):
    """Error, NLL, Brier score, ECE, KL from the MC posterior, time per image; share of the gap closed.

    "Standard" is the teacher with dropout off, "MC(m)" the mean of its posteriors under m masks,
    "Distilled" the run's own network. The closed share of the gap is
    (Standard - Distilled) / (Standard - MC) in error.

    Attributes:
      mc_samples: number of masks m.
    """

    title: ClassVar[str] = "Dropout Distillation"
    one_label = True
    mc_samples: Annotated[int, Interval(ge=1, le=100_000)] = 100

    def requirement(self, setup: EvaluationSetup) -> str:
        """Requires a run with a teacher; the teacher must still be loadable."""
        if setup.load_teacher is None:
            return "distillation needs a run with a teacher"
        try:
            setup.load_teacher()
        except InputError as error:
            raise InputError(f"the teacher cannot be loaded: {error}") from error
        return ""

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates the teacher, its ensemble and the student."""
        labels, load_teacher = evaluator.labels, evaluator.setup.load_teacher
        if load_teacher is None:
            raise ValueError("distillation needs a run with a teacher")
        teacher = evaluator.with_network(load_teacher())
        curve: dict[int, float] = {}
        networks: dict[str, tuple[np.ndarray, float | None]] = {
            "standard": (metrics.log_softmax(teacher.logits), _seconds_per_image(teacher))
        }
        for ensemble in teacher.ensemble_predictions(self.mc_samples):
            curve[ensemble.num_samples] = 1 - metrics.top_k_accuracy(ensemble.log_probs, labels)
            networks["mc"] = ensemble.log_probs, ensemble.seconds_per_image
        networks["distilled"] = (
            metrics.log_softmax(evaluator.logits),
            _seconds_per_image(evaluator),
        )
        mc, _ = networks["mc"]
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
                for name, label in _labels(values).items()
            ]
            + [
                Headline("distillation/distilled/kl_from_mc", "KL from MC, nats", 1, 4, False),
            ],
            plots=(
                Plot(
                    "mc_error",
                    "Error of the ensemble",
                    "Error of the mean posterior under m masks, which takes m passes, and of one pass "
                    "of the teacher without dropout and of the student.",
                    panel(_draw),
                    (curve, values),
                    "error "
                    + ", ".join(
                        f"{label} {100 * values[f'{name}/error']:.2f} %"
                        for name, label in _labels(values).items()
                    ),
                    panels=True,
                ),
            ),
            tables=(_table(values),),
            notes=(_gap_note(values),),
            by_image=by_image,
        )


def _seconds_per_image(evaluator: Evaluator) -> float:
    """Seconds per image of a pass over all images, compiled by the pass for the logits."""
    _ = evaluator.logits
    start = time.perf_counter()
    evaluator.logits_of(evaluator.images)
    return (time.perf_counter() - start) / len(evaluator.labels)


def _labels(values: Mapping[str, float]) -> dict[str, str]:
    return {"standard": "Standard", "mc": f"MC({values['mc_samples']})", "distilled": "Distilled"}


def _gap_note(values: Mapping[str, float]) -> str:
    closed = values.get("gap_closed")
    if closed is None:
        return "Gap closed: undefined, since MC is not better than Standard."
    return f"Gap closed: {100 * closed:.0f} % of the way from Standard to MC in error."


def _table(values: Mapping[str, float]) -> Table:
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
        for name, label in _labels(values).items()
    ]
    header = ["", *(title for title, _, _ in columns.values())]
    return Table("Three ways to use dropout", header, rows)


def _draw(axes, data) -> None:
    curve, values = data
    errors = [100 * error for error in curve.values()]
    axes.plot(list(curve), errors, "o-", color=COLOURS[0], label="MC(m), m passes")
    for name, dash, colour in (("standard", "--", COLOURS[1]), ("distilled", "-.", COLOURS[2])):
        error = 100 * values[f"{name}/error"]
        axes.axhline(error, ls=dash, color=colour, label=f"{name.capitalize()}, one pass")
    log_ticks(axes, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), max(curve))
    axes.set_xlim(0.9, max(curve) * 1.1)
    axes.set_xlabel("number of dropout masks m")
    axes.set_ylabel("test error (%)")
    axes.legend(frameon=False)
