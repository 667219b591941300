"""Selective classification: the error rate when the least confident examples are rejected."""

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import (
    confidence_and_correctness,
    mean,
    mean_over_ties,
    validated,
)


def risk_coverage(log_probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    r"""Computes the error rate among the i most confident examples, for i = 1 to N.

    .. math:: r_i = \frac{1}{i} \sum_{j \le i} 1[\hat y_j \ne y_j],
       \qquad \max_c p_{1c} \ge \max_c p_{2c} \ge \dots

    Equally confident examples each count with their mean error rate, which is the expectation over a
    random order.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      Risks ``[N]`` in [0, 1]: the i-th at coverage i / N, the last the error rate; all nan if an example
      is nan.

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    References:
      Geifman and El-Yaniv, `Selective Classification for Deep Neural Networks
      <https://arxiv.org/abs/1705.08500>`_, 2017.

    Examples:
      >>> risk_coverage(np.log([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]]), [0, 1, 0, 1])
      array([0.  , 0.  , 0.  , 0.25])
    """
    confidence, correct = confidence_and_correctness(*validated(log_probs, labels))
    if np.isnan(confidence).any():
        return np.full(len(confidence), np.nan)
    wrong = mean_over_ties(1 - correct, confidence)
    wrong = wrong[np.argsort(-confidence, kind="stable")]
    return np.cumsum(wrong) / np.arange(1, len(wrong) + 1)


def area_under_risk_coverage(log_probs: ArrayLike, labels: ArrayLike) -> float:
    r"""Computes the mean risk over all coverages (AURC).

    .. math:: \frac{1}{N} \sum_i r_i

    with the risks of :func:`risk_coverage`. AURC equals the error rate if all examples are equally
    confident. For a given error rate, it is smallest if every misclassified example is less confident
    than every correct one.

    This is the sum in the reference. Other libraries integrate the curve by the trapezoidal rule, which
    gives another value on small data sets.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      The area, in [0, 1]; nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    References:
      Geifman et al., `Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers
      <https://arxiv.org/abs/1805.08206>`_, 2019.

    Examples:
      >>> log_probs = np.log([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
      >>> area_under_risk_coverage(log_probs, [0, 1, 0, 1])
      0.0625
    """
    return mean(risk_coverage(log_probs, labels))
