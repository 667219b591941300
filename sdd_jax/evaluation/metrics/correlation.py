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
      >>> round(rank_correlation([1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 26.0]), 6)
      0.8
    """
    ranks = _ranks(first, second)
    return math.nan if ranks is None else _correlation(*ranks)


def rank_correlation_contributions(first: ArrayLike, second: ArrayLike) -> list[np.ndarray]:
    r"""Computes what each example contributes to the rank correlation, for its bootstrap interval.

    .. math:: c_i = 12 \left[ u_i v_i + \tfrac1N \textstyle\sum_j 1(u_j > u_i)\, v_j
              + \tfrac1N \sum_j 1(v_j > v_i)\, u_j \right] + \text{const}

    u and v are the ranks of the two measures, from 0 to 1: the influence of an example on
    :math:`12\, \mathbb{E} u v - 3`, also through the ranks of the others. Equal values count half. The
    mean is the rank correlation.

    Args:
      first: a measure, ``[N]``.
      second: another one of the same examples, ``[N]``.

    Returns:
      One group, float64 ``[N]``, see :func:`bootstrap_interval`; empty where the correlation is nan.

    Raises:
      ValueError: as :func:`rank_correlation`.
    """
    ranks = _ranks(first, second)
    if ranks is None:
        return []
    u, v = ((x - 0.5) / len(x) for x in ranks)
    influence = 12 * (u * v + _mean_above(u, v) + _mean_above(v, u))
    return [influence - np.mean(influence) + _correlation(*ranks)]


def _ranks(first: ArrayLike, second: ArrayLike) -> list[np.ndarray] | None:
    """Ranks from 1 to N, equal values at their mean; None if the correlation is undefined."""
    from scipy.stats import rankdata

    a, b = (np.asarray(x, np.float64) for x in (first, second))
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"measures must be [N], of the same examples, got {a.shape}, {b.shape}")
    if len(a) < 2 or any(np.isnan(x).any() or np.ptp(x) == 0 for x in (a, b)):
        return None
    return [rankdata(x) for x in (a, b)]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


def _mean_above(key: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each example, the sum of the values of those with a higher key over N; ties count half."""
    order = np.argsort(key)
    sums = np.concatenate([[0.0], np.cumsum(values[order])])
    sides = (np.searchsorted(key[order], key, side=side) for side in ("left", "right"))
    return np.mean([sums[-1] - sums[i] for i in sides], axis=0) / len(key)
