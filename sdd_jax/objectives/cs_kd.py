"""CS-KD: another image of the same class teaches."""

from sdd_jax import losses
from sdd_jax.errors import check
from sdd_jax.objectives.base import Objective, Output, Term, objectives


@objectives.register("cs_kd")
def cs_kd(*, weight: float = 1.0, temperature: float = 4.0) -> Objective:
    """Cross-entropy, and ``weight`` times :func:`sdd_jax.cs_kd_loss`.

    The partner's pass has no gradient, but runs in training mode: it counts in the batch statistics.
    """
    check(weight >= 0, "config.objective.weight", weight, "0 or more")
    check(temperature > 0, "config.objective.temperature", temperature, "greater than 0")

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        partner = forward(batch.views[1], batch_stats=view.batch_stats, dropout="partner_dropout")
        distance = losses.cs_kd_loss(view.logits, partner.logits, temperature=temperature)
        terms = {
            "cross_entropy": Term(losses.cross_entropy(view.logits, batch.labels)),
            "cs_kd": Term(distance, weight),
        }
        return Output(view, terms, partner.batch_stats)

    return Objective(loss, sampler="same_class")
