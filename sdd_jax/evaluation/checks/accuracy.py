"""Accuracy and proper scores on clean images."""

import dataclasses
from typing import ClassVar

from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.evaluator import Evaluator
from sdd_jax.evaluation.results import CheckResult, Headline

NLL = Headline("nll", "NLL, raw, nats", 1, 3, higher_is_better=False)


@checks.register("accuracy")
@dataclasses.dataclass(frozen=True)
class Accuracy(Check):
    """Accuracy, top-5 accuracy (with more than five classes), NLL, Brier score and ECE."""

    title: ClassVar[str] = "Accuracy"

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates the clean images."""
        log_probs = metrics.log_softmax(evaluator.logits)
        by_image = metrics.contributions(log_probs, evaluator.labels, "accuracy", "nll")
        return CheckResult(
            evaluator.summary(),
            headline=(Headline("accuracy", "accuracy, %", 100), NLL),
            by_image={name: [values] for name, values in by_image.items()},
        )
