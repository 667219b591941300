"""DML: two networks teach each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.objectives.base import Auxiliary, Objective, Output, Term, objectives
from sdd_jax.options import NonNegative, Positive


@objectives.register("dml")
def dml(
    *,
    model: nn.Module,
    image_shape: tuple[int, ...],
    weight: NonNegative = 1.0,
    temperature: Positive = 3.0,
) -> Objective:
    """Half the cross-entropy of each of two networks, plus ``weight`` times :func:`sdd_jax.dml_loss`.

    The second network has the architecture of the first and other initial values; the first is
    evaluated.
    """

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        logits, stats = forward.auxiliary(batch.views[0])
        terms = {
            "cross_entropy": Term(losses.cross_entropy(view.logits, batch.labels), 0.5),
            "peer_cross_entropy": Term(losses.cross_entropy(logits, batch.labels), 0.5),
            "dml": Term(losses.dml_loss(view.logits, logits, temperature=temperature), weight),
        }
        correct = jnp.argmax(jax.lax.stop_gradient(logits), axis=-1) == batch.labels
        metrics = {"peer_accuracy": correct.astype(jnp.float32)}
        return Output(view, terms, view.batch_stats, metrics, auxiliary_stats=stats)

    dtype = jnp.int32 if model.vocabulary() else jnp.float32
    return Objective(
        loss, auxiliary=Auxiliary(model.clone(), (jnp.zeros((1, *image_shape), dtype),))
    )
