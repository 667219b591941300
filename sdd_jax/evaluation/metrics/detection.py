"""Telling examples of the training distribution from others by a score."""

import math

import numpy as np


def detection(scores_in: np.ndarray, scores_out: np.ndarray) -> dict[str, float]:
    """How well a score separates in-distribution examples from out-of-distribution ones.

    Only the order of the scores matters; infinite ones take part in it.

    Args:
      scores_in: ``[N]``, of in-distribution examples; a higher score says more in-distribution.
      scores_out: ``[M]``, of out-of-distribution examples.

    Returns:
      All nan if a side is empty or a score is nan, otherwise, in [0, 1],

      - ``auroc``: the chance that an in-distribution example scores higher than an out-of-distribution
        one, a tie counting half.
      - ``aupr_in``: average precision with in-distribution examples positive.
      - ``aupr_out``: average precision with out-of-distribution examples positive, and scores negated.
      - ``fpr95``: smallest share of out-of-distribution examples accepted by a threshold that accepts at
        least 95 % of in-distribution ones.

    Raises:
      ValueError: scores that are not one-dimensional.

    References:
      Hendrycks and Gimpel, `A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
      Neural Networks <https://arxiv.org/abs/1610.02136>`_, 2017; fpr95: Liang et al., `Enhancing the
      Reliability of Out-of-Distribution Image Detection in Neural Networks
      <https://arxiv.org/abs/1706.02690>`_, 2018.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    is_in, ranks = _ranked(scores_in, scores_out)
    if not len(ranks):
        return dict.fromkeys(("auroc", "aupr_in", "aupr_out", "fpr95"), math.nan)
    fpr, tpr = roc(scores_in, scores_out)
    return {
        "auroc": float(roc_auc_score(is_in, ranks)),
        "aupr_in": float(average_precision_score(is_in, ranks)),
        "aupr_out": float(average_precision_score(~is_in, -ranks)),
        "fpr95": float(fpr[tpr >= 0.95].min()),
    }


def roc(scores_in: np.ndarray, scores_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve of a score, with in-distribution examples positive.

    Args:
      scores_in: ``[N]``, of in-distribution examples; a higher score says more in-distribution.
      scores_out: ``[M]``, of out-of-distribution examples.

    Returns:
      ``(fpr, tpr)``, each ``[T + 1]`` for T different scores: the shares of out-of-distribution and of
      in-distribution examples accepted, from (0, 0) to (1, 1) as the threshold falls. One nan each if a
      side is empty or a score is nan.

    Raises:
      ValueError: scores that are not one-dimensional.
    """
    from sklearn.metrics import roc_curve

    is_in, ranks = _ranked(scores_in, scores_out)
    if not len(ranks):
        return np.array([math.nan]), np.array([math.nan])
    fpr, tpr, _ = roc_curve(is_in, ranks, drop_intermediate=False)
    return fpr, tpr


def _ranked(scores_in, scores_out) -> tuple[np.ndarray, np.ndarray]:
    """Whether each score is in-distribution, and its rank, equal for equal ones; empty if undefined.

    Ranks, since scikit-learn refuses infinite scores.
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
