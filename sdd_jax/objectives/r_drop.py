"""R-Drop: two passes through a network with dropout are to agree."""

import flax.linen as nn

from sdd_jax import losses
from sdd_jax.errors import InputError, check
from sdd_jax.objectives.base import Objective, Output, Term, objectives


@objectives.register("r_drop")
def r_drop(*, model: nn.Module, weight: float = 1.0, temperature: float = 1.0) -> Objective:
    """The mean of the cross-entropies of two passes, and ``weight`` times :func:`sdd_jax.r_drop_loss`.

    Dropout is the network's own, everywhere in it, and independent in the two passes.
    """
    check(weight >= 0, "config.objective.weight", weight, "0 or more")
    check(temperature > 0, "config.objective.temperature", temperature, "greater than 0")
    if not any(model.stochastic()):
        raise InputError(
            "config.objective: 'r_drop' needs a network with dropout, config.model.dropout_rate is 0"
        )

    def loss(forward, batch, keys):
        first = forward(batch.views[0])
        second = forward(batch.views[0], batch_stats=first.batch_stats, dropout="second_dropout")
        cross_entropies = [losses.cross_entropy(v.logits, batch.labels) for v in (first, second)]
        divergence = losses.r_drop_loss(first.logits, second.logits, temperature=temperature)
        terms = {
            "cross_entropy": Term(sum(cross_entropies) / 2),
            "r_drop": Term(divergence, weight),
        }
        return Output(first, terms, second.batch_stats)

    return Objective(loss)
