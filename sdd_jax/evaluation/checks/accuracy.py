"""Accuracy and proper scores on clean images."""

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.evaluator import Evaluator
from sdd_jax.evaluation.results import CheckResult, Headline, Plot
from sdd_jax.tasks import Task

PANELS = 12  # of the examples
COLUMNS = 4
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
            plots=_examples(evaluator),
            by_image={name: [decisions.by_example(v)] for name, v in by_image.items()}
            | {
                name: [values]
                for name, values in task.contributions(evaluator.logits, evaluator.labels).items()
            },
        )


def _examples(evaluator: Evaluator) -> tuple[Plot, ...]:
    """Some images with what was predicted, if the task can show them."""
    task = evaluator.setup.dataset.task
    if not task.panels:
        return ()
    count = min(PANELS // len(task.panels), len(evaluator.labels))
    chosen = np.arange(count) * len(evaluator.labels) // count
    images = np.asarray(evaluator.images[chosen])
    return (
        Plot(
            "examples",
            "Examples",
            f"{count} evenly spaced images of the {evaluator.split} split. {task.caption}",
            functools.partial(_draw_examples, task),
            (images, evaluator.logits[chosen], evaluator.labels[chosen]),
            size=(8.0, 6.4),
            panels=True,
        ),
    )


def _draw_examples(task: Task, figure: Any, runs: Any) -> None:
    ((examples, _),) = runs.values()
    per_example = len(task.panels)
    columns = COLUMNS // per_example * per_example
    rows = -(-len(examples[0]) * per_example // columns)
    axes = figure.subplots(rows, columns, squeeze=False)
    for part in axes.flat:
        part.set_axis_off()
    for part, heading in zip(axes[0], task.panels * columns, strict=False):
        part.set_title(heading, size=8)
    cells = axes.reshape(-1, per_example)
    for panels, *example in zip(cells, *examples, strict=False):
        task.draw(panels, *example)
