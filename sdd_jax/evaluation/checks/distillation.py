"""Dropout Distillation's three-way table: Standard, Monte-Carlo dropout, Distilled."""

import dataclasses
import time
from typing import ClassVar

import numpy as np

from sdd_jax.errors import check
from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.figures import COLOURS, log_ticks, panels
from sdd_jax.evaluation.findings import MISSING, Findings, Headline, Plot, Table
from sdd_jax.evaluation.monte_carlo import monte_carlo
from sdd_jax.trained import load_teacher


@checks.register("distillation")
@dataclasses.dataclass(frozen=True)
class Distillation(Check):
    """Error, NLL, Brier, ECE, KL to the MC posterior and time per image of the three; gap closed.

    "Standard" is the teacher with dropout off, "MC(m)" the mean of its posteriors under m masks,
    "Distilled" the run's own network. The share of the gap closed is
    (Standard - Distilled) / (Standard - MC) in error.

    Attributes:
      mc_samples: m.
    """

    title: ClassVar[str] = "Dropout Distillation"
    mc_samples: int = 100

    def __post_init__(self):
        """Checks the options."""
        check(self.mc_samples >= 1, "config.eval.mc_samples", self.mc_samples, "at least 1")

    def requirement(self, subject) -> str:
        """The run has a teacher."""
        return "" if subject.config.teacher else "distillation needs a run with config.teacher"

    def __call__(self, evaluation) -> Findings:
        """The three-way table, and the error against m."""
        subject, labels = evaluation.subject, evaluation.labels
        teacher = evaluation.of(
            load_teacher(subject.config.teacher, subject.dataset, subject.config.dataset)
        )
        curve = {}
        for ensemble in monte_carlo(teacher, self.mc_samples):
            right = metrics.top_k_accuracy(ensemble.log_probs, labels)
            curve[ensemble.num_samples] = 1 - right
        mc = ensemble.log_probs
        networks = {
            "standard": (metrics.log_softmax(teacher.logits), _seconds_per_image(teacher)),
            "mc": (mc, ensemble.seconds_per_image),
            "distilled": (metrics.log_softmax(evaluation.logits), _seconds_per_image(evaluation)),
        }
        values = {"mc_samples": self.mc_samples}
        for name, (log_probs, seconds) in networks.items():
            scores = metrics.scores(log_probs, labels, "nll", "brier", "ece")
            values[f"{name}/error"] = 1 - metrics.top_k_accuracy(log_probs, labels)
            values |= {f"{name}/{score}": value for score, value in scores.items()}
            divergence = np.sum(np.exp(mc) * (mc - log_probs), axis=-1)
            values[f"{name}/kl_from_mc"] = float(np.mean(divergence))
            if seconds is not None:
                values[f"{name}/milliseconds_per_image"] = 1000 * seconds
        gap = values["standard/error"] - values["mc/error"]
        if gap > 0:  # otherwise there is nothing to close
            values["gap_closed"] = (values["standard/error"] - values["distilled/error"]) / gap
        values |= {f"mc_error/{m}": error for m, error in curve.items()}
        return Findings(
            {f"distillation/{name}": value for name, value in values.items()},
            headline=[
                Headline(f"distillation/{name}/error", f"{shown} error, %", 100, 2, False)
                for name, shown in _names(values).items()
            ]
            + [
                Headline("distillation/distilled/kl_from_mc", "KL from MC, nats", 1, 4, False),
            ],
            plots=(
                Plot(
                    "mc_error",
                    "Error of the ensemble",
                    "The error of the mean of m masks, m passes, against that of one pass of the "
                    "teacher without dropout and of the student.",
                    panels(_draw),
                    (curve, values),
                    panels=True,
                ),
            ),
            tables=(_table(values),),
            notes=(_closed(values),),
        )


def _seconds_per_image(evaluation) -> float:
    """Of a pass over all images that compiles nothing: the logits are there, so it is the second."""
    start = time.perf_counter()
    evaluation.logits_of(evaluation.images)
    return (time.perf_counter() - start) / len(evaluation.labels)


def _names(values: dict[str, float]) -> dict[str, str]:
    return {"standard": "Standard", "mc": f"MC({values['mc_samples']})", "distilled": "Distilled"}


def _closed(values: dict[str, float]) -> str:
    closed = values.get("gap_closed")
    if closed is None:
        return "Gap closed: none to close, MC is not better than Standard."
    return f"Gap closed: {100 * closed:.0f} % of the way from Standard to MC in error."


def _table(values: dict[str, float]) -> Table:
    columns = {
        "error": ("error %", 100, ".2f"),
        "nll": ("NLL", 1, ".4f"),
        "brier": ("Brier", 1, ".4f"),
        "ece": ("ECE %", 100, ".2f"),
        "kl_from_mc": ("KL from MC", 1, ".4f"),
        "milliseconds_per_image": ("ms/image", 1, ".3f"),
    }
    rows = [
        [shown]
        + [
            format(scale * values[f"{name}/{key}"], form) if f"{name}/{key}" in values else MISSING
            for key, (_, scale, form) in columns.items()
        ]
        for name, shown in _names(values).items()
    ]
    return Table("Three ways to use dropout", ["", *(c[0] for c in columns.values())], rows)


def _draw(axes, data) -> None:
    curve, values = data
    axes.plot(
        list(curve),
        [100 * error for error in curve.values()],
        "o-",
        color=COLOURS[0],
        label="MC(m), m passes",
    )
    for name, dash, colour in (("standard", "--", COLOURS[1]), ("distilled", "-.", COLOURS[2])):
        error = 100 * values[f"{name}/error"]
        axes.axhline(error, ls=dash, color=colour, label=f"{name.capitalize()}, one pass")
    log_ticks(axes, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), max(curve))
    axes.set_xlim(0.9, max(curve) * 1.1)
    axes.set_xlabel("dropout masks m, averaged")
    axes.set_ylabel("test error (%)")
    axes.legend(frameon=False)
