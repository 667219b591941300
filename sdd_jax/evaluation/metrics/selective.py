"""What is gained by leaving out the examples of least confidence."""

import numpy as np

from sdd_jax.evaluation.metrics._predictions import checked, mean, mean_over_ties, top_class


def risk_coverage(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Risk at every coverage: the error rate among the i most confident examples, for i = 1 to N.

    .. math:: r_i = \frac{1}{i} \sum_{j \le i} 1[\hat y_j \ne y_j],
       \qquad \max_c p_{1c} \ge \max_c p_{2c} \ge \dots

    So that the order of equally confident examples does not matter, each of them counts as wrong by the
    share of them that is: what a random order gives on average.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      Risks ``[N]`` in [0, 1], the i-th at coverage i / N, the last the error rate; nan throughout if an
      example is nan.

    Raises:
      ValueError: shapes or labels as the package's docstring says.

    References:
      Geifman and El-Yaniv, `Selective Classification for Deep Neural Networks
      <https://arxiv.org/abs/1705.08500>`_, 2017.
    """
    confidence, correct = top_class(*checked(log_probs, labels))
    if np.isnan(confidence).any():
        return np.full(len(confidence), np.nan)
    wrong = mean_over_ties(1 - correct, confidence)
    wrong = wrong[np.argsort(-confidence, kind="stable")]
    return np.cumsum(wrong) / np.arange(1, len(wrong) + 1)


def area_under_risk_coverage(log_probs: np.ndarray, labels: np.ndarray) -> float:
    r"""Mean risk over all coverages (AURC).

    .. math:: \frac{1}{N} \sum_i r_i

    with the risks of :func:`risk_coverage`. It is the error rate if all are equally confident, and least
    for a given error rate if every wrong example is less confident than every right one.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      The area, in [0, 1]; nan if N is 0 or an example is nan.

    Raises:
      ValueError: shapes or labels as the package's docstring says.

    References:
      Geifman et al., `Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers
      <https://arxiv.org/abs/1805.08206>`_, 2019.
    """
    return mean(risk_coverage(log_probs, labels))
