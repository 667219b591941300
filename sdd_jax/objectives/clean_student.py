"""The one-mask variant of SD-Dropout: the dropped posterior teaches the clean one."""

from typing import Literal

from sdd_jax import losses
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.options import NonNegative, Positive, Rate


@objectives.register("clean_student")
def clean_student(
    *,
    weight: NonNegative = 1.0,
    dropout_rate: Rate = 0.5,
    temperature: Positive = 3.0,
    gradient: Literal["both", "forward", "reverse"] = "both",
) -> Objective:
    """Cross-entropy, plus ``weight`` times :func:`sdd_jax.sd_dropout_clean_student_loss`."""

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        values = losses.sd_dropout_clean_student_loss(
            view.features,
            view.head,
            keys("clean_student"),
            rate=dropout_rate,
            temperature=temperature,
            gradient=gradient,
        )
        terms = {
            "cross_entropy": Term(losses.cross_entropy(view.logits, batch.labels)),
            "clean_student": Term(values, weight),
        }
        return Output(view, terms, view.batch_stats)

    return Objective(loss)
