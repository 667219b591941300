"""Detection of out-of-distribution examples by a score."""

import math

import numpy as np
from numpy.typing import ArrayLike


def detection(scores_in: ArrayLike, scores_out: ArrayLike) -> dict[str, float]:
    """Measures how well a score separates in-distribution from out-of-distribution examples.

    Only the order of the scores matters; infinite scores are allowed.

    Args:
      scores_in: ``[N]``, of in-distribution examples; a higher score means more in-distribution.
      scores_out: ``[M]``, of out-of-distribution examples.

    Returns:
      All nan if a side is empty or a score is nan; otherwise, each in [0, 1],

      - ``auroc``: probability that an in-distribution example scores higher than an out-of-distribution
        one, ties counting half.
      - ``aupr_in``: average precision with in-distribution examples positive. Average precision is a sum
        over thresholds, without trapezoids.
      - ``aupr_out``: average precision with out-of-distribution examples positive and scores negated.
      - ``fpr95``: smallest share of out-of-distribution examples accepted by a threshold that accepts at
        least 95 % of in-distribution ones, without interpolation. Some authors take out-of-distribution
        examples as positive, which gives another value.

    Raises:
      ValueError: scores that are not one-dimensional.

    References:
      Hendrycks and Gimpel, `A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
      Neural Networks <https://arxiv.org/abs/1610.02136>`_, 2017; fpr95: Liang et al., `Enhancing the
      Reliability of Out-of-Distribution Image Detection in Neural Networks
      <https://arxiv.org/abs/1706.02690>`_, 2018.

    Examples:
      >>> result = detection([3.0, 2.0, 2.0, 0.0], [2.0, 1.0])
      >>> result["auroc"], result["fpr95"]
      (0.625, 1.0)
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    is_in, ranks = ranked(scores_in, scores_out)
    if not len(ranks):
        return dict.fromkeys(("auroc", "aupr_in", "aupr_out", "fpr95"), math.nan)
    fpr, tpr = roc(scores_in, scores_out)
    return {
        "auroc": float(roc_auc_score(is_in, ranks)),
        "aupr_in": float(average_precision_score(is_in, ranks)),
        "aupr_out": float(average_precision_score(~is_in, -ranks)),
        "fpr95": float(fpr[tpr >= 0.95].min()),
    }


def roc(scores_in: ArrayLike, scores_out: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Computes the ROC curve of a score, with in-distribution examples positive.

    Args:
      scores_in: ``[N]``, of in-distribution examples; a higher score means more in-distribution.
      scores_out: ``[M]``, of out-of-distribution examples.

    Returns:
      ``(fpr, tpr)``, each ``[T + 1]`` for T different scores: the accepted shares of out-of-distribution
      and of in-distribution examples, from (0, 0) to (1, 1) as the threshold falls. A single nan each if
      a side is empty or a score is nan.

    Raises:
      ValueError: scores that are not one-dimensional.

    Examples:
      >>> fpr, tpr = roc([3.0, 2.0, 2.0, 0.0], [2.0, 1.0])
      >>> fpr.tolist(), tpr.tolist()
      ([0.0, 0.0, 0.5, 1.0, 1.0], [0.0, 0.25, 0.75, 0.75, 1.0])
    """
    from sklearn.metrics import roc_curve

    is_in, ranks = ranked(scores_in, scores_out)
    if not len(ranks):
        return np.array([math.nan]), np.array([math.nan])
    fpr, tpr, _ = roc_curve(is_in, ranks, drop_intermediate=False)
    return fpr, tpr


def ranked(scores_in: ArrayLike, scores_out: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns a mask of the in-distribution scores, and the rank of every score; empty if undefined.

    Equal scores have equal ranks. Ranks are finite: scikit-learn refuses infinite scores.
    """
    scores_in, scores_out = np.asarray(scores_in, np.float64), np.asarray(scores_out, np.float64)
    if scores_in.ndim != 1 or scores_out.ndim != 1:
        raise ValueError(
            f"scores must be one-dimensional, got shapes {scores_in.shape} and {scores_out.shape}"
        )
    scores = np.concatenate([scores_in, scores_out])
    if not len(scores_in) or not len(scores_out) or np.isnan(scores).any():
        return np.empty(0, bool), np.empty(0, int)
    return np.arange(len(scores)) < len(scores_in), np.unique(scores, return_inverse=True)[1]
