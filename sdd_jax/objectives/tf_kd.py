"""TF-KD: a virtual teacher that is always right."""

import flax.linen as nn

from sdd_jax import losses
from sdd_jax.errors import check
from sdd_jax.objectives.base import Objective, Output, Term, objectives


@objectives.register("tf_kd")
def tf_kd(
    *, model: nn.Module, alpha: float = 0.1, correct: float = 0.99, temperature: float = 20.0
) -> Objective:
    """``1 - alpha`` times the cross-entropy, and ``alpha`` temperature^2 :func:`sdd_jax.tf_kd_loss`.

    The square of the temperature, which the paper leaves to ``alpha``, keeps the term's gradients of the
    size of the cross-entropy's.
    """
    check(0 <= alpha <= 1, "config.objective.alpha", alpha, "in [0, 1]")
    check(temperature > 0, "config.objective.temperature", temperature, "greater than 0")
    check(
        1 / model.num_classes <= correct < 1,
        "config.objective.correct",
        correct,
        f"in [1/{model.num_classes}, 1)",
    )

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        divergence = losses.tf_kd_loss(
            view.logits, batch.labels, correct=correct, temperature=temperature
        )
        terms = {
            "cross_entropy": Term(losses.cross_entropy(view.logits, batch.labels), 1 - alpha),
            "tf_kd": Term(temperature**2 * divergence, alpha),
        }
        return Output(view, terms, view.batch_stats)

    return Objective(loss)
