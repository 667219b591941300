"""The ablations of SD-Dropout that put dropout on the features and compare with the labels alone."""

from sdd_jax import losses
from sdd_jax.dropout import dropout
from sdd_jax.errors import check
from sdd_jax.objectives.base import Objective, Output, Term, objectives


@objectives.register("dropout_cross_entropy")
def dropout_cross_entropy(*, dropout_rate: float = 0.5) -> Objective:
    """Cross-entropy of the labels and the dropped features: plain dropout before the head."""
    return _dropped(dropout_rate, clean=False, weight=1.0)


@objectives.register("clean_dropout_cross_entropy")
def clean_dropout_cross_entropy(*, dropout_rate: float = 0.5, weight: float = 1.0) -> Objective:
    """Cross-entropy of the clean features, and ``weight`` times that of the dropped ones."""
    check(weight >= 0, "config.objective.weight", weight, "0 or more")
    return _dropped(dropout_rate, clean=True, weight=weight)


def _dropped(rate, *, clean, weight) -> Objective:
    check(0 <= rate < 1, "config.objective.dropout_rate", rate, "in [0, 1)")

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        dropped = view.head(dropout(keys("dropout_cross_entropy"), view.features, rate=rate))
        terms = {"dropout_cross_entropy": Term(losses.cross_entropy(dropped, batch.labels), weight)}
        if clean:
            terms["cross_entropy"] = Term(losses.cross_entropy(view.logits, batch.labels))
        return Output(view, terms, view.batch_stats)

    return Objective(loss)
