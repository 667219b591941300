"""Monte-Carlo dropout against the number of masks."""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval

from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.evaluator import EvaluationSetup, Evaluator
from sdd_jax.evaluation.plots import log_ticks
from sdd_jax.evaluation.results import CheckResult, Headline, Plot
from sdd_jax.options import Rate


@checks.register("mc_dropout")
@dataclasses.dataclass(frozen=True)
class MCDropout(Check):
    """Accuracy, NLL, ECE, entropy and mutual information against the number of masks.

    The dropout is the network's own. A network without any gets dropout on its features, at the rate of
    the SD-Dropout that it was trained with.

    Attributes:
      mc_samples: largest number of masks.
      mc_rate: dropout rate on the features, in place of that dropout; 0: keep it.
    """

    title: ClassVar[str] = "Monte-Carlo dropout"
    mc_samples: Annotated[int, Interval(ge=1, le=100_000)] = 100
    mc_rate: Rate = 0.0

    def requirement(self, setup: EvaluationSetup) -> str:
        """Requires dropout, or the option ``mc_rate``, and the same decisions for all masks."""
        if not (task := setup.dataset.task).fixed_decisions:
            return f"mc_dropout needs decisions that are the same for all masks, got {task.name}"
        if setup.mask_rate(self.mc_rate) is None:
            return "mc_dropout needs a run with dropout, or the option mc_rate"
        return ""

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates ensembles of up to ``mc_samples`` masks."""
        setup, decisions = evaluator.setup, evaluator.some_decisions
        labels = decisions.labels
        rate, curve = setup.mask_rate(self.mc_rate) or 0.0, {}
        ensemble = None
        for ensemble in evaluator.ensemble_predictions(self.mc_samples, rate=rate):
            curve[ensemble.num_samples] = {
                **metrics.compute(ensemble.log_probs, labels, "accuracy", "nll", "ece"),
                "entropy": float(np.mean(ensemble.entropy)),
                "mutual_information": float(np.mean(ensemble.mutual_information)),
            }
        assert ensemble is not None  # there is at least one mask
        by_image = metrics.contributions(ensemble.log_probs, labels, "accuracy", "nll", "ece")
        last, label = f"mc_dropout/{self.mc_samples}", f"MC({self.mc_samples})"
        source = f"dropout {rate:g} on the features" if rate else "the network's own dropout"
        return CheckResult(
            {
                f"mc_dropout/{m}/{name}": value
                for m, values in curve.items()
                for name, value in values.items()
            },
            headline=(
                Headline(f"{last}/accuracy", f"{label} accuracy, %", 100),
                Headline(f"{last}/nll", f"{label} NLL, nats", 1, 3, higher_is_better=False),
                Headline(f"{last}/ece", f"{label} ECE, %", 100, higher_is_better=False),
            ),
            plots=(
                Plot(
                    "mc_dropout",
                    "Number of masks",
                    "Mean of the posteriors under m dropout masks; the thin line without markers is a "
                    "single pass with dropout off.",
                    _draw,
                    (curve, evaluator.summary()),
                    ", ".join(
                        f"{label} {100 * curve[1][name]:.1f} % with 1 mask and "
                        f"{100 * curve[self.mc_samples][name]:.1f} % with {self.mc_samples}"
                        for name, label in (("accuracy", "accuracy"), ("ece", "ECE"))
                    ),
                    size=(11, 3.4),
                ),
            ),
            notes=[f"The masks are those of {source}.", *evaluator.note_on_decisions()],
            by_image={f"{last}/{name}": [decisions.by_example(v)] for name, v in by_image.items()},
        )


def _draw(figure, runs) -> None:
    panels = figure.subplots(1, 4)
    columns = {
        "accuracy": ("accuracy (%)", 100),
        "nll": ("NLL (nats)", 1),
        "ece": ("ECE (%)", 100),
        "mutual_information": ("mutual information (nats)", 1),
    }
    for name, ((curve, summary), style) in runs.items():
        for axes, (metric, (label, scale)) in zip(panels, columns.items(), strict=True):
            values = [scale * at_m[metric] for at_m in curve.values()]
            axes.plot(list(curve), values, label=name, **style)
            if metric in summary:
                axes.axhline(scale * summary[metric], color=style["color"], lw=0.8, zorder=0)
            log_ticks(axes, (1, 3, 10, 30, 100, 300, 1000), max(curve))
            axes.set_xlabel("masks m")
            axes.set_ylabel(label)
    if len(runs) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
