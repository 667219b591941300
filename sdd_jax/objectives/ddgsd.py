"""DDGSD: two augmentations of an image teach each other."""

import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.errors import check
from sdd_jax.objectives.base import Objective, Output, Term, objectives


@objectives.register("ddgsd")
def ddgsd(
    *, weight: float = 1.0, temperature: float = 3.0, feature_weight: float = 0.005
) -> Objective:
    """Cross-entropies of both views, :func:`sdd_jax.ddgsd_loss`, and the distance of mean features."""
    check(weight >= 0, "config.objective.weight", weight, "0 or more")
    check(temperature > 0, "config.objective.temperature", temperature, "greater than 0")
    check(feature_weight >= 0, "config.objective.feature_weight", feature_weight, "0 or more")

    def loss(forward, batch, keys):
        first = forward(batch.views[0])
        second = forward(batch.views[1], batch_stats=first.batch_stats, dropout="second_dropout")
        cross_entropies = [losses.cross_entropy(v.logits, batch.labels) for v in (first, second)]
        distance = losses.ddgsd_feature_loss(
            first.features, second.features, axis_name=batch.axis_name
        )
        terms = {
            "cross_entropy": Term(sum(cross_entropies)),
            "ddgsd": Term(
                losses.ddgsd_loss(first.logits, second.logits, temperature=temperature), weight
            ),
            "ddgsd_features": Term(jnp.broadcast_to(distance, batch.labels.shape), feature_weight),
        }
        return Output(first, terms, second.batch_stats, other_view=second)

    return Objective(loss, sampler="two_views")
