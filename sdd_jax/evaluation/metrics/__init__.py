"""Metrics of a classifier's predictions, in NumPy and float64, over all examples at once.

Most functions take ``log_probs`` ``[N, K]`` (see :func:`log_softmax`) and integer ``labels`` ``[N]`` in
[0, K). Temperature and vector scaling, :func:`normalized_maximum_logit` and the out-of-distribution
scores take logits ``[N, K]`` or penultimate features ``[N, D]``; :func:`detection` and :func:`roc` take
one score per example. Other shapes or labels raise a ValueError.

    >>> from sdd_jax.evaluation import metrics
    >>> log_probs = metrics.log_softmax([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
    >>> metrics.compute(log_probs, [0, 1, 1, 0], "accuracy")
    {'accuracy': 0.75}

Edge cases neither raise nor warn:

============================================  ======================================================
no examples (or none on one side)             every metric is nan
a logit is nan or +inf, or all are -inf       accuracy counts the example as wrong; every other metric
                                              that includes it is nan
a logit of -inf beside finite ones            a probability of 0; NLL is inf if it is the label's
equal probabilities                           the lowest class is the prediction, as in ``argmax``
equal confidences or scores                   the result does not depend on the order of the examples
============================================  ======================================================
"""

from sdd_jax.evaluation.metrics._predictions import log_softmax
from sdd_jax.evaluation.metrics.activation_shaping import ash_s, react
from sdd_jax.evaluation.metrics.affine_scaling import (
    AffineScaling,
    dirichlet_scaling,
    fit_dirichlet_scaling,
    fit_vector_scaling,
    select_odir,
    vector_scaling,
)
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
    METRICS,
    brier_score,
    compute,
    negative_log_likelihood,
    top_k_accuracy,
)
from sdd_jax.evaluation.metrics.correlation import (
    rank_correlation,
    rank_correlation_contributions,
)
from sdd_jax.evaluation.metrics.detection import detection, roc
from sdd_jax.evaluation.metrics.isotonic import IsotonicMap, fit_isotonic, isotonic
from sdd_jax.evaluation.metrics.logit_norm import fit_logit_norm, normalized_maximum_logit
from sdd_jax.evaluation.metrics.mahalanobis import (
    FeatureMoments,
    feature_moments,
    mahalanobis,
    relative_mahalanobis,
)
from sdd_jax.evaluation.metrics.nearest_neighbours import negative_neighbour_distance
from sdd_jax.evaluation.metrics.ood_scores import (
    maximum_logit,
    maximum_softmax_probability,
    negative_energy,
    negative_generalized_entropy,
)
from sdd_jax.evaluation.metrics.paired import (
    auroc_contributions,
    bootstrap_interval,
    contributions,
    paired_interval,
)
from sdd_jax.evaluation.metrics.selective import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    coverage_at_risk,
    risk_coverage,
)
from sdd_jax.evaluation.metrics.virtual_logit import (
    VirtualLogit,
    fit_virtual_logit,
    virtual_logit,
)

__all__ = [
    "LOWEST_TEMPERATURE",
    "METRICS",
    "AffineScaling",
    "Bins",
    "FeatureMoments",
    "IsotonicMap",
    "VirtualLogit",
    "area_under_generalized_risk_coverage",
    "area_under_risk_coverage",
    "ash_s",
    "auroc_contributions",
    "bootstrap_interval",
    "brier_score",
    "classwise_calibration_error",
    "compute",
    "contributions",
    "coverage_at_risk",
    "detection",
    "dirichlet_scaling",
    "expected_calibration_error",
    "feature_moments",
    "fit_dirichlet_scaling",
    "fit_isotonic",
    "fit_logit_norm",
    "fit_temperature",
    "fit_vector_scaling",
    "fit_virtual_logit",
    "isotonic",
    "log_softmax",
    "mahalanobis",
    "maximum_calibration_error",
    "maximum_logit",
    "maximum_softmax_probability",
    "negative_energy",
    "negative_generalized_entropy",
    "negative_log_likelihood",
    "negative_neighbour_distance",
    "normalized_maximum_logit",
    "paired_interval",
    "rank_correlation",
    "rank_correlation_contributions",
    "react",
    "relative_mahalanobis",
    "reliability",
    "risk_coverage",
    "roc",
    "select_odir",
    "top_k_accuracy",
    "vector_scaling",
    "virtual_logit",
]
