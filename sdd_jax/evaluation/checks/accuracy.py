"""Accuracy and proper scores."""

import dataclasses
from typing import ClassVar

from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.findings import Findings, Headline


@checks.register("accuracy")
@dataclasses.dataclass(frozen=True)
class Accuracy(Check):
    """Accuracy, top-5 accuracy (of more than five classes), NLL, Brier score and ECE."""

    title: ClassVar[str] = "Accuracy"

    def __call__(self, evaluation) -> Findings:
        """The figures of the clean images."""
        return Findings(
            evaluation.summary(),
            headline=(
                Headline("accuracy", "accuracy, %", 100),
                Headline("nll", "NLL, nats", 1, 3, higher_is_better=False),
            ),
        )
