"""TF-KD: a virtual teacher that is always right."""

import flax.linen as nn

from sdd_jax import losses
from sdd_jax.errors import require
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.options import Fraction, Positive, Rate


@objectives.register("tf_kd")
def tf_kd(
    *,
    model: nn.Module,
    alpha: Fraction = 0.1,
    correct: Rate = 0.99,
    temperature: Positive = 20.0,
) -> Objective:
    """``1 - alpha`` times the cross-entropy, plus ``alpha`` temperature^2 :func:`sdd_jax.tf_kd_loss`.

    The square of the temperature, which the paper leaves to ``alpha``, gives the term gradients of the
    same size as the cross-entropy's.

    Raises:
      InputError: ``correct`` below 1 / K.
    """
    num_classes = model.num_classes
    require(correct >= 1 / num_classes, "correct", correct, f"in [1/{num_classes}, 1)")

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
