"""CS-KD: the target is the posterior of another image of the same class."""

from sdd_jax import losses
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.options import NonNegative, Positive


@objectives.register("cs_kd")
def cs_kd(*, weight: NonNegative = 1.0, temperature: Positive = 4.0) -> Objective:
    """Cross-entropy, plus ``weight`` times :func:`sdd_jax.cs_kd_loss`.

    The partner's pass has no gradient but runs in training mode: it updates the batch statistics.
    """

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        partner = forward(batch.views[1], batch_stats=view.batch_stats, dropout="partner_dropout")
        divergence = losses.cs_kd_loss(view.logits, partner.logits, temperature=temperature)
        terms = {
            "cross_entropy": Term(losses.cross_entropy(view.logits, batch.labels)),
            "cs_kd": Term(divergence, weight),
        }
        return Output(view, terms, partner.batch_stats)

    return Objective(loss, sampler="same_class")
