"""Isotonic regression of the probability of each class, in NumPy and float64."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import validated

LOWEST_FREQUENCY = 1e-6


class IsotonicMap(NamedTuple):
    """A non-decreasing, piecewise linear function of a probability.

    Attributes:
      probability: knots, ascending; nan if nothing could be fitted.
      frequency: values at the knots, constant outside them.
    """

    probability: np.ndarray
    frequency: np.ndarray


def fit_isotonic(log_probs: ArrayLike, labels: ArrayLike) -> list[IsotonicMap]:
    r"""Fits scikit-learn's isotonic regression to each class against the others.

    .. math:: \min_{f_k \text{ non-decreasing}} \sum_n (f_k(p_{nk}) - 1[y_n = k])^2

    Args:
      log_probs: ``[N, K]``, of a validation split: a thousand examples or more, since it overfits fewer.
      labels: integers ``[N]`` in [0, K).

    Returns:
      A function of each class; all nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    References:
      Zadrozny and Elkan, `Transforming Classifier Scores into Accurate Multiclass Probability Estimates
      <https://doi.org/10.1145/775047.775151>`_, 2002.
    """
    from sklearn.isotonic import IsotonicRegression

    log_probs, labels = validated(log_probs, labels)
    if not len(labels) or np.isnan(log_probs).any():
        return [IsotonicMap(*np.full((2, 1), np.nan)) for _ in range(log_probs.shape[-1])]
    fits = [
        IsotonicRegression(y_min=0, y_max=1).fit(probs, labels == k)
        for k, probs in enumerate(np.exp(log_probs).T)
    ]
    return [IsotonicMap(fit.X_thresholds_, fit.y_thresholds_) for fit in fits]


def isotonic(log_probs: ArrayLike, maps: list[IsotonicMap]) -> np.ndarray:
    r"""Applies the function of each class and normalises.

    .. math:: \log \frac{\max(f_c(p_c), 10^{-6})}{\sum_k \max(f_k(p_k), 10^{-6})}

    This is scikit-learn's one-vs-rest scheme, but for the bound, which is torch-uncertainty's: without
    it the NLL is inf as soon as one label has no probability. The predicted class may change.

    Args:
      log_probs: ``[N, K]``.
      maps: see :func:`fit_isotonic`.

    Returns:
      Log-probabilities ``[N, K]``; nan where ``log_probs`` is.
    """
    probs = np.exp(np.asarray(log_probs, np.float64))
    values = np.stack(
        [
            np.interp(p, one.probability, one.frequency)
            for p, one in zip(probs.T, maps, strict=True)
        ],
        axis=-1,
    )
    values = np.maximum(values, LOWEST_FREQUENCY)
    return np.log(values / values.sum(axis=-1, keepdims=True))
