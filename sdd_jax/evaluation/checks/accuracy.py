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
    """Accuracy, top-5 accuracy (with more than five classes), NLL, Brier score and ECE.

    The metrics of the task come first: mIoU of segmentation, mAP of several labels per example. The
    others are then those of single pixels, or of single labels.
    """

    title: ClassVar[str] = "Accuracy"

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates the clean images."""
        task, decisions = evaluator.setup.dataset.task, evaluator.decisions
        log_probs = metrics.log_softmax(decisions.logits)
        by_image = metrics.contributions(log_probs, decisions.labels, "accuracy", "nll")
        own = [Headline(name, f"{label}, %", 100) for name, label in task.figures.items()]
        return CheckResult(
            evaluator.summary(),
            headline=(*own, Headline("accuracy", "accuracy, %", 100), NLL),
            by_image={name: [decisions.by_example(v)] for name, v in by_image.items()}
            | {
                name: [values]
                for name, values in task.contributions(evaluator.logits, evaluator.labels).items()
            },
        )
