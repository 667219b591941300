"""Metrics of predictions, in NumPy and float64, from all examples at once.

Most functions take ``log_probs`` ``[N, K]`` (see :func:`log_softmax`) and integer ``labels`` ``[N]`` in
[0, K); :func:`fit_temperature` takes logits, :func:`detection` and :func:`roc` one score an example.
Other shapes, or labels outside the range, are a ValueError.

What the edges give, without a warning or an exception:

============================================  ======================================================
no examples (or none on one side)             every figure is nan
an example of which a logit is nan or +inf,   accuracy counts it as wrong; every other figure over
or all are -inf                               examples that include it is nan
a logit of -inf beside finite ones            a probability of 0; NLL is inf if it is the label's
equal probabilities                           the lower class is the prediction, as in ``argmax``
equal confidences or scores                   no figure depends on the order of the examples
============================================  ======================================================
"""

from sdd_jax.evaluation.metrics.calibration import (
    LOWEST_TEMPERATURE,
    Bins,
    classwise_calibration_error,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    reliability,
)
from sdd_jax.evaluation.metrics.classification import (
    brier_score,
    log_softmax,
    negative_log_likelihood,
    top_k_accuracy,
)
from sdd_jax.evaluation.metrics.detection import detection, roc
from sdd_jax.evaluation.metrics.selective import area_under_risk_coverage, risk_coverage
from sdd_jax.evaluation.metrics.summary import scores

__all__ = [
    "LOWEST_TEMPERATURE",
    "Bins",
    "area_under_risk_coverage",
    "brier_score",
    "classwise_calibration_error",
    "detection",
    "expected_calibration_error",
    "fit_temperature",
    "log_softmax",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "reliability",
    "risk_coverage",
    "roc",
    "scores",
    "top_k_accuracy",
]
