"""Objectives that compare the network's posterior with the labels alone."""

from sdd_jax import losses
from sdd_jax.errors import check
from sdd_jax.objectives.base import Objective, Output, Term, objectives


@objectives.register("cross_entropy")
def cross_entropy() -> Objective:
    """Cross-entropy of the labels."""
    return _labels_only("cross_entropy", losses.cross_entropy)


@objectives.register("label_smoothing")
def label_smoothing(*, smoothing: float = 0.1) -> Objective:
    """Cross-entropy with smoothed labels."""
    check(0 <= smoothing <= 1, "config.objective.smoothing", smoothing, "in [0, 1]")
    return _labels_only(
        "label_smoothing",
        lambda logits, labels: losses.label_smoothing(logits, labels, smoothing=smoothing),
    )


def _labels_only(name, loss_fn) -> Objective:
    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        return Output(view, {name: Term(loss_fn(view.logits, batch.labels))}, view.batch_stats)

    return Objective(loss)
