"""Ablations of SD-Dropout: cross-entropy of dropped features."""

from sdd_jax.dropout import dropout
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.options import NonNegative, Rate


@objectives.register("dropout_cross_entropy")
def dropout_cross_entropy(*, dropout_rate: Rate = 0.5) -> Objective:
    """Cross-entropy of the dropped features: plain dropout before the head."""

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        values = _dropped_cross_entropy(view, batch, keys, dropout_rate)
        return Output(view, {"dropout_cross_entropy": Term(values)}, view.batch_stats)

    return Objective(loss, one_label=False)


@objectives.register("clean_dropout_cross_entropy")
def clean_dropout_cross_entropy(
    *, dropout_rate: Rate = 0.5, weight: NonNegative = 1.0
) -> Objective:
    """Cross-entropy of the clean features, plus ``weight`` times that of the dropped features."""

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        values = _dropped_cross_entropy(view, batch, keys, dropout_rate)
        terms = {
            "dropout_cross_entropy": Term(values, weight),
            "cross_entropy": Term(batch.task.loss(view.logits, batch.labels)),
        }
        return Output(view, terms, view.batch_stats)

    return Objective(loss, one_label=False)


def _dropped_cross_entropy(view, batch, keys, rate):
    dropped = view.head(dropout(keys("dropout_cross_entropy"), view.features, rate=rate))
    return batch.task.loss(dropped, batch.labels)
