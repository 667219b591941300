"""DDGSD: two augmentations of an image teach each other."""

import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.options import NonNegative, Positive


@objectives.register("ddgsd")
def ddgsd(
    *,
    weight: NonNegative = 1.0,
    temperature: Positive = 3.0,
    feature_weight: NonNegative = 0.005,
    joint_batch: bool = True,
) -> Objective:
    """Cross-entropies of both views, :func:`sdd_jax.ddgsd_loss` and the distance of mean features.

    Args:
      weight: of :func:`sdd_jax.ddgsd_loss`.
      temperature: T > 0.
      feature_weight: of :func:`sdd_jax.ddgsd_feature_loss`.
      joint_batch: run one pass over both views, as the authors of SD-Dropout do: batch norm normalises
        by the statistics of both together and updates the running statistics once. False runs a pass
        per view, where batch norm equalises the views' means and the feature term is smaller.
    """

    def loss(forward, batch, keys):
        streams = ("dropout", "second_dropout")
        if joint_batch:
            first, second = forward.joint(batch.views, dropout=streams)
        else:
            first = forward(batch.views[0], dropout=streams[0])
            second = forward(batch.views[1], batch_stats=first.batch_stats, dropout=streams[1])
        cross_entropies = [losses.cross_entropy(v.logits, batch.labels) for v in (first, second)]
        divergence = losses.ddgsd_loss(first.logits, second.logits, temperature=temperature)
        distance = losses.ddgsd_feature_loss(
            first.features, second.features, axis_name=batch.axis_name
        )
        terms = {
            "cross_entropy": Term(cross_entropies[0] + cross_entropies[1]),
            "ddgsd": Term(divergence, weight),
            "ddgsd_features": Term(jnp.broadcast_to(distance, batch.labels.shape), feature_weight),
        }
        return Output(first, terms, second.batch_stats, other_view=second)

    return Objective(loss, sampler="two_views")
