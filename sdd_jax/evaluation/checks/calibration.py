"""Does confidence mean what it says?"""

from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import checks


@checks.register("calibration")
def calibration(evaluation) -> dict[str, float]:
    """ECE over 15 equal-width bins, and the Brier score."""
    log_probs, labels = metrics.log_softmax(evaluation.logits), evaluation.labels
    return {
        "ece": metrics.expected_calibration_error(log_probs, labels),
        "brier": metrics.brier_score(log_probs, labels),
    }
