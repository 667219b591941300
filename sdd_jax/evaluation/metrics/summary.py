"""The figures that one asks for together, by name."""

import numpy as np

from sdd_jax.evaluation.metrics.calibration import expected_calibration_error
from sdd_jax.evaluation.metrics.classification import (
    brier_score,
    negative_log_likelihood,
    top_k_accuracy,
)

SCORES = {
    "accuracy": top_k_accuracy,
    "nll": negative_log_likelihood,
    "brier": brier_score,
    "ece": expected_calibration_error,
}


def scores(log_probs: np.ndarray, labels: np.ndarray, *names: str) -> dict[str, float]:
    """``{name: figure}``.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      *names: of "accuracy", "nll", "brier" and "ece", which has 15 bins of equal width.

    Raises:
      ValueError: shapes or labels as the package's docstring says.
      KeyError: another name.
    """
    return {name: SCORES[name](log_probs, labels) for name in names}
