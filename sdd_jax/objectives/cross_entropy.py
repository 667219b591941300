"""Cross-entropy and label smoothing."""

from sdd_jax import losses
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.options import Fraction


@objectives.register("cross_entropy")
def cross_entropy() -> Objective:
    """Cross-entropy of the labels: :func:`sdd_jax.cross_entropy` of the task's decisions."""

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        values = batch.task.loss(view.logits, batch.labels)
        return Output(view, {"cross_entropy": Term(values)}, view.batch_stats)

    return Objective(loss, one_label=False)


@objectives.register("label_smoothing")
def label_smoothing(*, smoothing: Fraction = 0.1) -> Objective:
    """Cross-entropy of smoothed labels, :func:`sdd_jax.label_smoothing`."""

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        values = losses.label_smoothing(view.logits, batch.labels, smoothing=smoothing)
        return Output(view, {"label_smoothing": Term(values)}, view.batch_stats)

    return Objective(loss)
