"""The spread of an ensemble, and what one pass of its student keeps of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval, MinLen

from sdd_jax.errors import require
from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.checks.distillation import (
    ensemble_label,
    teacher_requirement,
    teachers_of,
)
from sdd_jax.evaluation.checks.ood import (
    DEFAULT_SETS,
    images_of,
    label_of,
    names_of,
    sets_requirement,
)
from sdd_jax.evaluation.evaluator import EvaluationSetup, Evaluator, ensemble_predictions
from sdd_jax.evaluation.plots import COLOURS, panel
from sdd_jax.evaluation.results import MISSING, CheckResult, Headline, Plot, Table

MEASURES = {"entropy": "entropy", "mutual_information": "MI"}
Spreads = dict[tuple[str, str], np.ndarray]  # network and measure to values [N]


@checks.register("spread")
@dataclasses.dataclass(frozen=True)
class Spread(Check):
    """Mutual information of the ensemble and of its student; what they detect out of distribution.

    The networks are those of the check ``distillation``. A student without a ``model.spread`` has an
    entropy only, as the teacher with dropout off ("Standard"). The share of the ensemble's gain that the
    student keeps is (student - Standard) / (ensemble - Standard) in AUROC, with the same measure of
    both, and with the entropy of Standard.

    Attributes:
      mc_samples: number of masks m.
      ood: names of data sets; an entry may also hold several, separated by commas.
    """

    title: ClassVar[str] = "Spread of the ensemble"
    one_label = True
    mc_samples: Annotated[int, Interval(ge=1, le=100_000)] = 100
    ood: Annotated[tuple[str, ...], MinLen(1)] = DEFAULT_SETS

    def __post_init__(self):
        """Rejects names that the metrics could not tell apart."""
        labels = list(map(label_of, names_of(self.ood)))
        require(len(set(labels)) == len(labels), "ood", self.ood, "different data sets")

    def requirement(self, setup: EvaluationSetup) -> str:
        """Requires a run with a teacher; the data sets must be loadable and not its own."""
        if reason := teacher_requirement(setup, "spread"):
            return reason
        return sets_requirement(self.title, [("ood", name) for name in names_of(self.ood)], setup)

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates the teacher, its ensemble and the student on the split and on each data set."""
        setup, teachers = evaluator.setup, teachers_of(evaluator)
        titles = {
            "standard": "Standard",
            "ensemble": ensemble_label(teachers, self.mc_samples),
            "student": "Student",
        }
        inside = _spreads(evaluator, teachers, self.mc_samples)
        target = inside["ensemble", "mutual_information"]
        values = {"ensemble/mutual_information": float(np.mean(target))}
        by_image: dict[str, Sequence[np.ndarray]] = {}
        for measure in MEASURES:
            if (found := inside.get(("student", measure))) is not None:
                name = f"spearman/{measure}"
                values[name] = metrics.rank_correlation(found, target)
                by_image[f"spread/{name}"] = metrics.rank_correlation_contributions(found, target)
        if (found := inside.get(("student", "mutual_information"))) is not None:
            values["student/mutual_information"] = float(np.mean(found))
        outside = {}
        for name in names_of(self.ood):
            images, label = images_of(name, setup, "ood"), label_of(name)
            others = [teacher.with_images(images) for teacher in teachers]
            outside[label] = _spreads(evaluator.with_images(images), others, self.mc_samples)
            values |= _detection(label, inside, outside[label])
            by_image |= {
                f"spread/{label}/{network}/{measure}/auroc": metrics.auroc_contributions(
                    -inside[network, measure], -uncertain
                )
                for (network, measure), uncertain in outside[label].items()
            }
        best = list(inside)[-1][1]  # the student's mutual information, if it has one
        return CheckResult(
            {f"spread/{name}": value for name, value in values.items()},
            headline=[
                Headline(
                    f"spread/spearman/{best}",
                    f"Rank correlation of the student's {MEASURES[best]} with the ensemble's MI",
                ),
                *(
                    Headline(
                        f"spread/{label}/{network}/{measure}/auroc",
                        f"AUROC against {label}, {titles[network]}, {MEASURES[measure]}, %",
                        100,
                    )
                    for label in outside
                    for network, measure in (("ensemble", "mutual_information"), ("student", best))
                ),
            ],
            plots=[
                Plot(
                    "spread",
                    "Mutual information of the student and of the ensemble",
                    "One point for each image; on the diagonal, the single pass of the student has the "
                    "spread of the ensemble.",
                    panel(_draw),
                    (setup.dataset.name, inside, outside),
                    f"rank correlation {values['spearman/mutual_information']:.2f}",
                    panels=True,
                )
            ]
            if best == "mutual_information"
            else (),
            tables=[_table(values, inside, list(outside), titles)],
            notes=_notes(values, list(outside)),
            by_image=by_image,
        )


def _spreads(evaluator: Evaluator, teachers: list[Evaluator], mc_samples: int) -> Spreads:
    """Entropy and mutual information of each network, where it has them, on the evaluators' images."""
    *_, ensemble = ensemble_predictions(teachers, mc_samples)
    found: Spreads = {
        ("standard", "entropy"): _entropy(teachers[0].logits),
        ("ensemble", "entropy"): ensemble.entropy,
        ("ensemble", "mutual_information"): ensemble.mutual_information,
    }
    if evaluator.spread == "none":
        return found | {("student", "entropy"): _entropy(evaluator.logits)}
    prediction = evaluator.prediction_of(evaluator.images)
    return found | {("student", measure): getattr(prediction, measure) for measure in MEASURES}


def _entropy(logits: np.ndarray) -> np.ndarray:
    log_probs = metrics.log_softmax(logits)
    return -np.sum(np.exp(log_probs) * np.maximum(log_probs, np.finfo(np.float64).min), axis=-1)


def _detection(label: str, inside: Spreads, outside: Spreads) -> dict[str, float]:
    """AUROC of every measure, and the shares of the ensemble's gain."""
    auroc = {
        key: metrics.detection(-inside[key], -uncertain)["auroc"]
        for key, uncertain in outside.items()
    }
    values = {f"{label}/{network}/{m}/auroc": value for (network, m), value in auroc.items()}
    for measure in MEASURES:
        gain = auroc["ensemble", measure] - auroc["standard", "entropy"]
        if gain > 0 and ("student", measure) in auroc:  # otherwise there is no gain to keep
            kept = (auroc["student", measure] - auroc["standard", "entropy"]) / gain
            values[f"{label}/gain_kept/{measure}"] = kept
    return values


def _table(
    values: Mapping[str, float], inside: Spreads, labels: list[str], titles: Mapping[str, str]
) -> Table:
    percent = Headline("", "", 100, digits=1)
    rows = [
        [titles[network], MEASURES[measure]]
        + [percent.show(values[f"{label}/{network}/{measure}/auroc"]) for label in labels]
        + [
            format(values[f"spearman/{measure}"], ".3f") if network == "student" else MISSING,
            format(float(np.mean(uncertain)), ".4f"),
        ]
        for (network, measure), uncertain in inside.items()
    ]
    header = ["", "by", *(f"AUROC against {label}" for label in labels)]
    header += ["rank correlation with the ensemble's MI", "mean, nats"]
    return Table("What detects images out of distribution, %", header, rows)


def _notes(values: Mapping[str, float], labels: list[str]) -> list[str]:
    notes = []
    for label in labels:
        for measure, name in MEASURES.items():
            kept = values.get(f"{label}/gain_kept/{measure}")
            if kept is not None:
                ours = values[f"{label}/ensemble/{measure}/auroc"]
                gain = ours - values[f"{label}/standard/entropy/auroc"]
                notes.append(
                    f"Against {label}, the ensemble gains {100 * gain:.1f} points of AUROC by {name} "
                    f"over Standard, of which the student keeps {100 * kept:.0f} %."
                )
    return notes or ["The ensemble has no gain in AUROC over Standard that a student could keep."]


def _draw(axes, data) -> None:
    name, inside, outside = data
    for (label, spreads), colour in zip({name: inside, **outside}.items(), COLOURS, strict=False):
        pair = [spreads[network, "mutual_information"] for network in ("ensemble", "student")]
        axes.loglog(*pair, ".", ms=3, alpha=0.5, color=colour, label=label)
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="0.6", lw=1, zorder=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("ensemble (nats)")
    axes.set_ylabel("student, one pass (nats)")
    axes.legend(frameon=False)
