"""Generalised cross-entropy, for noisy labels."""

from typing import Annotated

from annotated_types import Interval

from sdd_jax import losses
from sdd_jax.objectives.base import Objective, Output, Term, objectives


@objectives.register("generalised_cross_entropy")
def generalised_cross_entropy(*, q: Annotated[float, Interval(gt=0, le=1)] = 0.7) -> Objective:
    """Generalised cross-entropy of the labels, :func:`sdd_jax.generalised_cross_entropy`."""

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        values = losses.generalised_cross_entropy(view.logits, batch.labels, q=q)
        return Output(view, {"generalised_cross_entropy": Term(values)}, view.batch_stats)

    return Objective(loss)
