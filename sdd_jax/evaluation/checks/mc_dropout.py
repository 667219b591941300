"""What averaging over dropout masks buys."""

import dataclasses
from typing import ClassVar

import numpy as np

from sdd_jax.errors import check
from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.figures import log_ticks
from sdd_jax.evaluation.findings import Findings, Headline, Plot
from sdd_jax.evaluation.monte_carlo import monte_carlo


@checks.register("mc_dropout")
@dataclasses.dataclass(frozen=True)
class MCDropout(Check):
    """Accuracy, NLL, ECE, entropy and mutual information against the number of masks.

    The dropout is the network's own; of a network without any, that of SD-Dropout on its features, as it
    was trained.

    Attributes:
      mc_samples: the most masks.
      mc_rate: of dropout on the features, in place of what the run was trained with; 0: as trained.
    """

    title: ClassVar[str] = "Monte-Carlo dropout"
    mc_samples: int = 100
    mc_rate: float = 0.0

    def __post_init__(self):
        """Checks the options."""
        check(self.mc_samples >= 1, "config.eval.mc_samples", self.mc_samples, "at least 1")
        check(0 <= self.mc_rate < 1, "config.eval.mc_rate", self.mc_rate, "in [0, 1)")

    def requirement(self, subject) -> str:
        """The run was trained with dropout, or the options say which to use."""
        if any(subject.model.stochastic()) or self._rate(subject.config):
            return ""
        return "mc_dropout needs a run with dropout, or config.eval.mc_rate"

    def __call__(self, evaluation) -> Findings:
        """The curves."""
        config, labels = evaluation.subject.config, evaluation.labels
        own = any(evaluation.subject.model.stochastic()) and not self.mc_rate
        rate = 0.0 if own else self._rate(config)
        values, curve = {}, {}
        for ensemble in monte_carlo(evaluation, self.mc_samples, rate=rate):
            curve[ensemble.num_samples] = {
                **metrics.scores(ensemble.log_probs, labels, "accuracy", "nll", "ece"),
                "entropy": float(np.mean(ensemble.entropy)),
                "mutual_information": float(np.mean(ensemble.mutual_information)),
            }
            values |= {
                f"mc_dropout/{ensemble.num_samples}/{name}": value
                for name, value in curve[ensemble.num_samples].items()
            }
        summary = evaluation.summary()
        last = f"mc_dropout/{self.mc_samples}"
        shown = f"MC({self.mc_samples})"
        where = "the network's own dropout" if own else f"dropout {rate:g} on the features"
        return Findings(
            values,
            headline=(
                Headline(f"{last}/accuracy", f"{shown} accuracy, %", 100),
                Headline(f"{last}/nll", f"{shown} NLL, nats", 1, 3, higher_is_better=False),
                Headline(f"{last}/ece", f"{shown} ECE, %", 100, higher_is_better=False),
            ),
            plots=(
                Plot(
                    "mc_dropout",
                    "Number of masks",
                    "The mean of m dropout masks; the thin line without markers is one pass with "
                    "dropout off.",
                    _draw,
                    (curve, summary),
                    size=(11, 3.4),
                ),
            ),
            notes=(f"Masks are those of {where}.",),
        )

    def _rate(self, config) -> float:
        trained = config.sd_dropout
        if self.mc_rate or not trained.weight:
            return self.mc_rate
        return sum(trained.random_rate) / 2 if trained.random_rate else trained.rate


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
            values = [scale * at[metric] for at in curve.values()]
            axes.plot(list(curve), values, label=name, **style)
            if metric in summary:
                axes.axhline(scale * summary[metric], color=style["color"], lw=0.8, zorder=0)
            log_ticks(axes, (1, 3, 10, 30, 100, 300, 1000), max(curve))
            axes.set_xlabel("masks m")
            axes.set_ylabel(label)
    if len(runs) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
