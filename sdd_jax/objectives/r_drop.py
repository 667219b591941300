"""R-Drop: penalises disagreement between two dropout passes."""

import flax.linen as nn

from sdd_jax import losses
from sdd_jax.errors import InputError
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.options import NonNegative, Positive


@objectives.register("r_drop")
def r_drop(
    *, model: nn.Module, weight: NonNegative = 1.0, temperature: Positive = 1.0
) -> Objective:
    """Mean cross-entropy of two passes, plus ``weight`` times :func:`sdd_jax.r_drop_loss`.

    The dropout is the network's own, in all its layers, with independent masks in the two passes.

    Raises:
      InputError: a network without dropout.
    """
    if not any(model.stochastic()):
        raise InputError("'r_drop' needs a network with dropout, this one's dropout_rate is 0")

    def loss(forward, batch, keys):
        first = forward(batch.views[0])
        second = forward(batch.views[0], batch_stats=first.batch_stats, dropout="second_dropout")
        cross_entropies = [losses.cross_entropy(v.logits, batch.labels) for v in (first, second)]
        divergence = losses.r_drop_loss(first.logits, second.logits, temperature=temperature)
        terms = {
            "cross_entropy": Term((cross_entropies[0] + cross_entropies[1]) / 2),
            "r_drop": Term(divergence, weight),
        }
        return Output(first, terms, second.batch_stats)

    return Objective(loss)
