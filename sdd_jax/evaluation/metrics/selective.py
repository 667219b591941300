"""Selective classification: the error rate when the least confident examples are rejected."""

import math

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import (
    confidence_and_correctness,
    mean,
    mean_over_ties,
    validated,
)

_ROUNDING = 1e-12  # exceeds that of a mean over ties


def risk_coverage(
    log_probs: ArrayLike, labels: ArrayLike, *, confidence: ArrayLike | None = None
) -> np.ndarray:
    r"""Computes the error rate among the i most confident examples, for i = 1 to N.

    .. math:: r_i = \frac{1}{i} \sum_{j \le i} 1[\hat y_j \ne y_j],
       \qquad \max_c p_{1c} \ge \max_c p_{2c} \ge \dots

    :math:`1 - r_i` is the selective accuracy. Equally confident examples each count with their mean
    error rate, which is the expectation over a random order; torch-uncertainty takes them as they come.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      confidence: ``[N]``, another score by which to order the examples, such as that of
        :func:`normalized_maximum_logit`; the largest probability by default. The predicted class is the
        most probable one in any case.

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
    largest, correct = confidence_and_correctness(*validated(log_probs, labels))
    confidence = largest if confidence is None else np.asarray(confidence, np.float64)
    if confidence.shape != correct.shape:
        raise ValueError(f"confidence must be {correct.shape}, got shape {confidence.shape}")
    if np.isnan(confidence).any() or np.isnan(largest).any():
        return np.full(len(confidence), np.nan)
    wrong = mean_over_ties(1 - correct, confidence)
    wrong = wrong[np.argsort(-confidence, kind="stable")]
    return np.cumsum(wrong) / np.arange(1, len(wrong) + 1)


def area_under_risk_coverage(
    log_probs: ArrayLike, labels: ArrayLike, *, confidence: ArrayLike | None = None
) -> float:
    r"""Computes the mean risk over all coverages (AURC).

    .. math:: \frac{1}{N} \sum_i r_i

    with the risks of :func:`risk_coverage`. AURC equals the error rate if all examples are equally
    confident. For a given error rate, it is smallest if every misclassified example is less confident
    than every correct one.

    This is the sum in the reference. torch-uncertainty integrates the curve from 1 / N by the
    trapezoidal rule, which gives another value on small data sets.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      confidence: ``[N]``, see :func:`risk_coverage`.

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
    return mean(risk_coverage(log_probs, labels, confidence=confidence))


def area_under_generalized_risk_coverage(
    log_probs: ArrayLike, labels: ArrayLike, *, confidence: ArrayLike | None = None
) -> float:
    r"""Computes the area under the generalised risk, the rate of undetected errors (AUGRC).

    .. math:: \int_0^1 \kappa \, r(\kappa) \, d\kappa = \frac{1}{N} \sum_i \frac{g_{i-1} + g_i}{2},
       \qquad g_i = \frac{i}{N} r_i

    with the risks of :func:`risk_coverage` and :math:`g_0 = 0`. Where AURC weighs an error by the
    coverages at which it occurs, most heavily at low ones, AUGRC weighs all errors alike. With the AUROC
    of the confidence, right predictions against wrong, it is exactly

    .. math:: (1 - \mathrm{AUROC}) \, a (1 - a) + \frac{(1 - a)^2}{2}

    for an accuracy a; half the error rate if all examples are equally confident. torch-uncertainty
    starts at coverage 1 / N in place of 0 and divides by 1 - 1 / N.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      confidence: ``[N]``, see :func:`risk_coverage`.

    Returns:
      The area, in [0, 0.5]; nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    References:
      Traub et al., `Overcoming Common Flaws in the Evaluation of Selective Classification Systems
      <https://arxiv.org/abs/2407.01032>`_, 2024.

    Examples:
      >>> log_probs = np.log([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
      >>> area_under_generalized_risk_coverage(log_probs, [0, 1, 0, 1])
      0.03125
    """
    risks = risk_coverage(log_probs, labels, confidence=confidence)
    undetected = np.concatenate([[0], risks * np.arange(1, len(risks) + 1)])
    return mean((undetected[:-1] + undetected[1:]) / 2) / max(len(risks), 1)


def coverage_at_risk(
    log_probs: ArrayLike,
    labels: ArrayLike,
    *,
    risk: float = 0.05,
    confidence: ArrayLike | None = None,
) -> float:
    r"""Computes the largest share of the examples that can be answered with at most this error rate.

    .. math:: \max \left\{ \frac{i}{N} : r_i \le \mathrm{risk} \right\}

    with the risks of :func:`risk_coverage`, which need not rise with i. torch-uncertainty's CovAt5Risk
    is nan where no coverage has so low a risk.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      risk: the error rate, in [0, 1].
      confidence: ``[N]``, see :func:`risk_coverage`.

    Returns:
      The coverage, in [0, 1]: 0 if no coverage has so low a risk; nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, labels outside [0, K), or a risk outside [0, 1].

    References:
      Geifman and El-Yaniv, `Selective Classification for Deep Neural Networks
      <https://arxiv.org/abs/1705.08500>`_, 2017.

    Examples:
      >>> log_probs = np.log([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
      >>> coverage_at_risk(log_probs, [0, 1, 0, 1])
      0.75
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk must be in [0, 1], got {risk}")
    risks = risk_coverage(log_probs, labels, confidence=confidence)
    if not len(risks) or np.isnan(risks).any():
        return math.nan
    low = np.flatnonzero(risks <= risk + _ROUNDING)
    return float(low[-1] + 1) / len(risks) if len(low) else 0.0
