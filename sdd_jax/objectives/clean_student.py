"""The one-mask variant of SD-Dropout: the dropped posterior teaches the clean one."""

from sdd_jax import losses
from sdd_jax.errors import check
from sdd_jax.objectives.base import Objective, Output, Term, objectives


@objectives.register("clean_student")
def clean_student(
    *,
    weight: float = 1.0,
    dropout_rate: float = 0.5,
    temperature: float = 3.0,
    gradient: str = "both",
) -> Objective:
    """Cross-entropy, and ``weight`` times :func:`sdd_jax.sd_dropout_clean_student_loss`."""
    check(weight >= 0, "config.objective.weight", weight, "0 or more")
    check(0 <= dropout_rate < 1, "config.objective.dropout_rate", dropout_rate, "in [0, 1)")
    check(temperature > 0, "config.objective.temperature", temperature, "greater than 0")
    allowed = losses.GRADIENTS
    check(
        gradient in allowed, "config.objective.gradient", gradient, f"one of {', '.join(allowed)}"
    )

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
