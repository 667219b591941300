"""Intervals of a network's metrics, and of the difference between two networks on the same test images.

Every metric here is the mean of one contribution per image. For ECE, AURC and AUROC, whose images depend
on each other, these are the values of the influence function plus the metric, so that the variance of
their mean is that of the metric to first order.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import (
    confidence_and_correctness,
    label_log_probs,
    mean_over_ties,
    validated,
)
from sdd_jax.evaluation.metrics.calibration import equal_width_index
from sdd_jax.evaluation.metrics.detection import ranked
from sdd_jax.evaluation.metrics.selective import risk_coverage

NUM_BINS = 15
RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
CHUNK = 2**22  # resampled images in memory at a time


def contributions(log_probs: ArrayLike, labels: ArrayLike, *names: str) -> dict[str, np.ndarray]:
    r"""Computes what each image contributes to metrics: arrays whose means are the metrics.

    For ECE, with :math:`g_b` the mean of correctness minus confidence in bin b,

    .. math:: \mathrm{sign}(g_{b(n)}) (1[\hat y_n = y_n] - \max_c p_{nc})

    for AURC, with images in the order of falling confidence, errors :math:`e` and risks :math:`r`,

    .. math:: r_n + \sum_{i \ge n} \frac{e_n - r_i}{i}

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      *names: "accuracy", "nll", "brier", "ece" (15 bins of equal width) or "aurc".

    Returns:
      ``{name: [N]}``, in the order of ``names``.

    Raises:
      ValueError: other names or shapes, or labels outside [0, K).

    Examples:
      >>> contributions(np.log([[0.75, 0.25], [0.5, 0.5]]), [0, 1], "accuracy", "ece")
      {'accuracy': array([1., 0.]), 'ece': array([0.25, 0.5 ])}
    """
    log_probs, labels = validated(log_probs, labels)
    for name in names:
        if name not in _CONTRIBUTIONS:
            raise ValueError(f"names must be among {', '.join(_CONTRIBUTIONS)}, got {name!r}")
    return {name: _CONTRIBUTIONS[name](log_probs, labels) for name in names}


def auroc_contributions(scores_in: ArrayLike, scores_out: ArrayLike) -> tuple[np.ndarray, ...]:
    """Computes what each image contributes to the AUROC of :func:`detection`.

    Args:
      scores_in: ``[N]``, of in-distribution examples; a higher score means more in-distribution.
      scores_out: ``[M]``, of out-of-distribution examples.

    Returns:
      Two arrays, ``[N]`` and ``[M]``, each with the AUROC as its mean: the share of the other side's
      examples that score lower, or higher, ties counting half; both empty if undefined.

    Raises:
      ValueError: scores that are not one-dimensional.

    References:
      DeLong et al., `Comparing the Areas under Two or More Correlated Receiver Operating Characteristic
      Curves <https://doi.org/10.2307/2531595>`_, 1988.

    Examples:
      >>> auroc_contributions([3.0, 2.0, 2.0, 0.0], [2.0, 1.0])
      (array([1.  , 0.75, 0.75, 0.  ]), array([0.5 , 0.75]))
    """
    is_in, ranks = ranked(scores_in, scores_out)
    sides = ranks[is_in], ranks[~is_in]
    if not len(ranks):
        return sides
    below = [_share_below(of, other) for of, other in (sides, sides[::-1])]
    return below[0], 1 - below[1]


def bootstrap_interval(groups: Sequence[np.ndarray]) -> tuple[float, float] | None:
    r"""Computes a 95 % bootstrap interval of a metric over the test images.

    The percentiles 2.5 and 97.5 of 2,000 values

    .. math:: \bar c_1 + \sum_g (\bar c_g^* - \bar c_g)

    with the mean :math:`\bar c_g` of the contributions in each group of images and that of as many
    images drawn with replacement, :math:`\bar c_g^*`. The draws have a fixed seed. They are of
    contributions, not of predictions: an ECE of predictions that repeat images is biased upwards. For
    contributions of 0 and 1, as of an accuracy, two images of each value are added; otherwise a network
    without errors would have an interval of length zero.

    Args:
      groups: contributions, an array ``[n_g]`` for each group of images that were sampled separately.

    Returns:
      ``(low, high)``; None if there are fewer than two images, or a contribution is not finite.

    References:
      Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3; Agresti and Coull,
      `Approximate Is Better than "Exact" for Interval Estimation of Binomial Proportions
      <https://doi.org/10.1080/00031305.1998.10480550>`_, 1998, for the added images.

    Examples:
      >>> low, high = bootstrap_interval([np.arange(360) < 350])
      >>> print(f"{low:.3f} {high:.3f}")
      0.948 0.986
    """
    groups = [np.asarray(group, np.float64) for group in groups]
    return _interval(groups, (0, 1), [0, 0, 0, 0, 1, 1, 1, 1])


def paired_interval(
    first: Sequence[np.ndarray], other: Sequence[np.ndarray]
) -> tuple[float, float] | None:
    r"""Computes a 95 % bootstrap interval of the difference ``other - first`` of a metric.

    As :func:`bootstrap_interval`, of the differences of the images' contributions, so both networks have
    the same resampled images. For contributions of 0 and 1, the four outcomes each count half an image
    more; otherwise few differing images would give too short an interval.

    Args:
      first: contributions, an array ``[n_g]`` for each group of images that were sampled separately.
      other: contributions of the other network for the same images.

    Returns:
      ``(low, high)``; None if the images are not the same or fewer than two, or a contribution is not
      finite.

    References:
      Agresti and Min, `Simple Improved Confidence Intervals for Comparing Matched Proportions
      <https://doi.org/10.1002/sim.1781>`_, 2005, for the added halves.

    Examples:
      One image of 360 more is no evidence, ten are:

      >>> few, many = (np.arange(360) < correct for correct in (351, 360))
      >>> low, high = paired_interval([np.arange(360) < 350], [few])
      >>> low < 0 < high
      True
      >>> low, high = paired_interval([np.arange(360) < 350], [many])
      >>> low > 0
      True
    """
    if [np.shape(group) for group in first] != [np.shape(group) for group in other]:
        return None
    differences = [np.subtract(b, a, dtype=np.float64) for a, b in zip(first, other, strict=True)]
    return _interval(differences, (-1, 0, 1), [-1, 0, 0, 1])


def _interval(
    groups: Sequence[np.ndarray], outcomes: Sequence[int], halves: Sequence[int]
) -> tuple[float, float] | None:
    """Percentiles of the resampled metric; ``halves`` are added to groups of ``outcomes`` alone."""
    if min(map(len, groups), default=0) < 2 or not all(np.isfinite(g).all() for g in groups):
        return None
    resampled = np.zeros(RESAMPLES)
    for i, values in enumerate(groups):
        count, rng = len(values), np.random.default_rng([0, i])
        if np.isin(values, outcomes).all():
            count += len(halves) // 2
            values = np.concatenate([values, values, halves])
        drawn = _resampled_means(values, count, rng)
        resampled += drawn if i == 0 else drawn - values.mean()
    low, high = np.percentile(resampled, PERCENTILES)
    return float(low), float(high)


def _resampled_means(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Means of ``count`` values drawn with replacement, ``[RESAMPLES]``."""
    distinct, occurrences = np.unique(values, return_counts=True)
    if len(distinct) <= 4:
        drawn = rng.multinomial(count, occurrences / len(values), RESAMPLES)
        return drawn @ distinct / count
    rows = max(1, CHUNK // count)
    means = [
        values[rng.integers(len(values), size=(min(rows, RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(means)


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each value, the share of the others that are smaller, ties counting half."""
    ordered = np.sort(others)
    sides = [np.searchsorted(ordered, values, side) for side in ("left", "right")]
    return (sides[0] + sides[1]) / (2 * len(others))


def _accuracy(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    known = ~np.isnan(label_log_probs(log_probs, labels))
    return (known & (log_probs.argmax(axis=-1) == labels)).astype(np.float64)


def _brier(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    difference = np.exp(log_probs)
    difference[np.arange(len(labels)), labels] -= 1
    return np.sum(difference**2, axis=-1)


def _ece(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    confidence, correct = confidence_and_correctness(log_probs, labels)
    gaps = correct - confidence
    if np.isnan(gaps).any():
        return gaps
    index = equal_width_index(confidence, NUM_BINS)
    return np.sign(np.bincount(index, gaps, NUM_BINS))[index] * gaps


def _aurc(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    confidence, correct = confidence_and_correctness(log_probs, labels)
    risks = risk_coverage(log_probs, labels)
    if np.isnan(risks).any():
        return risks
    order = np.argsort(-confidence, kind="stable")
    wrong = mean_over_ties(1 - correct, confidence)[order]
    rank = np.arange(1, len(wrong) + 1)
    from_here = [np.cumsum(terms[::-1])[::-1] for terms in (1 / rank, risks / rank)]
    values = np.empty(len(wrong))
    values[order] = risks + wrong * from_here[0] - from_here[1]
    return values


_CONTRIBUTIONS = {
    "accuracy": _accuracy,
    "nll": lambda log_probs, labels: -label_log_probs(log_probs, labels),
    "brier": _brier,
    "ece": _ece,
    "aurc": _aurc,
}
