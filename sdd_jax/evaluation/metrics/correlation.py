"""Correlation of two measures of the same examples."""

import math

import numpy as np
from numpy.typing import ArrayLike


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Computes Spearman's rank correlation, which any increasing function of a measure leaves as it is.

    Args:
      first: a measure, ``[N]``.
      second: another one of the same examples, ``[N]``.

    Returns:
      A number in [-1, 1], with equal values at their mean rank; nan for less than two examples, for a
      constant measure or a nan.

    Raises:
      ValueError: measures that are not one-dimensional, or of different length.

    Example:
      >>> rank_correlation([1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 26.0])
      0.8
    """
    from scipy.stats import rankdata

    a, b = (np.asarray(x, np.float64) for x in (first, second))
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"measures must be [N], of the same examples, got {a.shape}, {b.shape}")
    if len(a) < 2 or any(np.isnan(x).any() or np.ptp(x) == 0 for x in (a, b)):
        return math.nan
    ranks = [rankdata(x) for x in (a, b)]
    return float(np.clip(np.corrcoef(*ranks)[0, 1], -1, 1))
