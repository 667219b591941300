"""Calibration errors, and temperature scaling."""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import (
    confidence_and_correctness,
    label_log_probs,
    log_softmax,
    mean,
    mean_over_ties,
    validated,
)

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0

_EDGE_TOLERANCE = 1e-12  # exceeds the rounding error of exp(log p)


@dataclasses.dataclass(frozen=True)
class Bins:
    """A reliability diagram: examples grouped by confidence, lowest first.

    Attributes:
      count: number of examples, float64 ``[num_bins]``.
      confidence: mean confidence ``[num_bins]``; nan in an empty bin.
      accuracy: share of correct examples ``[num_bins]``; nan in an empty bin.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(
    log_probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15, equal_mass: bool = False
) -> Bins:
    """Computes confidence and accuracy by bin, the confidence being the largest probability.

    Bins of equal width: bin b holds confidences in ``(b / num_bins, (b + 1) / num_bins]``, as in Guo et
    al.; torchmetrics and torch-uncertainty close the interval on the left instead. A confidence within
    1e-12 of an edge counts as on the edge.

    Bins of equal mass: the examples sorted by confidence and split as by ``numpy.array_split``, so that
    sizes differ by at most one. A boundary may fall between equally confident examples. Each of those
    counts with their mean accuracy, which is the expectation over a random order.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      num_bins: number of bins, at least 1.
      equal_mass: bins of equally many examples instead of equally wide intervals.

    Returns:
      The bins: all empty if N is 0, all nan (counts too) if an example has nan.

    Raises:
      ValueError: other shapes, labels outside [0, K), or no bins.

    References:
      Equal width: Guo et al., `On Calibration of Modern Neural Networks
      <https://arxiv.org/abs/1706.04599>`_, 2017. Equal mass: Nguyen and O'Connor, `Posterior Calibration
      and Exploratory Analysis for Natural Language Processing Models
      <https://arxiv.org/abs/1508.05154>`_, 2015; Nixon et al., `Measuring Calibration in Deep Learning
      <https://arxiv.org/abs/1904.01685>`_, 2019.

    Examples:
      >>> log_probs = np.log([[0.75, 0.25], [0.375, 0.625], [1.0, 1e-9], [1.0, 1e-9]])
      >>> bins = reliability(log_probs, [0, 0, 0, 1], num_bins=4)
      >>> bins.count.tolist(), bins.accuracy.tolist()
      ([0.0, 0.0, 2.0, 2.0], [nan, nan, 0.5, 0.5])
    """
    confidence, correct = confidence_and_correctness(*validated(log_probs, labels))
    _check_num_bins(num_bins)
    if np.isnan(confidence).any():
        return Bins(*np.full((3, num_bins), np.nan))
    if equal_mass:
        correct = mean_over_ties(correct, confidence)
        order = np.argsort(confidence, kind="stable")
        confidence, correct = confidence[order], correct[order]
        sizes = [len(part) for part in np.array_split(order, num_bins)]
        index = np.repeat(np.arange(num_bins), sizes)
    else:
        index = equal_width_index(confidence, num_bins)
    count, confidence, correct = (
        np.bincount(index, weights, num_bins)
        for weights in (np.ones_like(confidence), confidence, correct)
    )
    with np.errstate(invalid="ignore"):
        return Bins(count, confidence / count, correct / count)


def expected_calibration_error(
    log_probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15, equal_mass: bool = False
) -> float:
    r"""Computes the mean gap between confidence and accuracy (ECE) over the bins of :func:`reliability`.

    .. math:: \sum_b \frac{n_b}{N} \left| \mathrm{acc}(b) - \mathrm{conf}(b) \right|

    ECE looks at the predicted class alone; :func:`classwise_calibration_error` at all classes. The
    estimate depends on the bins and is biased upwards on few examples; it is not debiased here. Compare
    figures with the same number and kind of bins: 15 of equal width is usual, some libraries default to
    10.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      num_bins: number of bins, at least 1.
      equal_mass: bins of equally many examples instead of equally wide intervals.

    Returns:
      The error, in [0, 1]; nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, labels outside [0, K), or no bins.

    References:
      Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
      equation 3.

    Examples:
      >>> log_probs = np.log([[0.75, 0.25], [0.375, 0.625], [1.0, 1e-9], [1.0, 1e-9]])
      >>> expected_calibration_error(log_probs, [0, 0, 0, 1], num_bins=4)
      0.34375
    """
    bins = reliability(log_probs, labels, num_bins=num_bins, equal_mass=equal_mass)
    gaps = np.abs(bins.accuracy - bins.confidence)
    with np.errstate(invalid="ignore"):
        return float(np.nansum(bins.count * gaps) / bins.count.sum())


def maximum_calibration_error(
    log_probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15, equal_mass: bool = False
) -> float:
    r"""Computes the largest gap between confidence and accuracy (MCE) over :func:`reliability`'s bins.

    .. math:: \max_{b : n_b > 0} \left| \mathrm{acc}(b) - \mathrm{conf}(b) \right|

    A bin of a single example counts as much as any other, so MCE is noisy with bins of equal width.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      num_bins: number of bins, at least 1.
      equal_mass: bins of equally many examples instead of equally wide intervals.

    Returns:
      The error, in [0, 1]; nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, labels outside [0, K), or no bins.

    References:
      Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
      equation 5.

    Examples:
      >>> log_probs = np.log([[0.75, 0.25], [0.375, 0.625], [1.0, 1e-9], [1.0, 1e-9]])
      >>> maximum_calibration_error(log_probs, [0, 0, 0, 1], num_bins=4)
      0.5
    """
    bins = reliability(log_probs, labels, num_bins=num_bins, equal_mass=equal_mass)
    # fmax skips the nan of empty bins; it is nan if all are
    return float(np.fmax.reduce(np.abs(bins.accuracy - bins.confidence)))


def classwise_calibration_error(
    log_probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15
) -> float:
    r"""Computes the mean gap between probability and frequency over all classes and bins.

    .. math:: \frac{1}{K} \sum_k \sum_b \frac{n_{bk}}{N} \left| \mathrm{freq}_k(b) - \bar p_k(b) \right|

    Class k has bins of equal width over its own probability, as in :func:`reliability`, the first of
    which includes 0; freq is the share of a bin's examples that have label k. Every probability counts:
    there is no threshold below which it is ignored.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      num_bins: number of bins, at least 1.

    Returns:
      The error, in [0, 1]; nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, labels outside [0, K), or no bins.

    References:
      Kull et al., `Beyond Temperature Scaling: Obtaining Well-Calibrated Multiclass Probabilities with
      Dirichlet Calibration <https://arxiv.org/abs/1910.12656>`_, 2019.

    Examples:
      >>> round(classwise_calibration_error(np.log([[0.7, 0.3], [0.6, 0.4]]), [0, 1]), 4)
      0.45
    """
    log_probs, labels = validated(log_probs, labels)
    _check_num_bins(num_bins)
    probs = np.exp(log_probs)
    if not probs.size or np.isnan(probs).any():
        return math.nan
    num_examples, num_classes = probs.shape
    index = equal_width_index(probs, num_bins) + num_bins * np.arange(num_classes)
    probs[np.arange(num_examples), labels] -= 1
    gaps = np.bincount(index.ravel(), probs.ravel())
    return float(np.abs(gaps).sum() / probs.size)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    r"""Fits the temperature T that minimises the NLL of ``softmax(logits / T)``.

    The NLL is convex in :math:`\beta = 1 / T`, so T is the root of its derivative,

    .. math:: \frac{1}{N} \sum_n \left( \sum_c p_{nc}(\beta) z_{nc} - z_{n, y_n} \right) = 0

    Args:
      logits: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      T, between two bounds. It is 0.01 if every example is classified correctly, since larger margins
      then always lower the NLL; 100 if the labels' logits are on average no larger than the mean logit,
      since equal probabilities are then best; 1 if T makes no difference (in float64), as with constant
      logits; nan if N is 0, if :func:`log_softmax` is nan, or if a label's logit is -inf (the NLL is
      then inf at every T).

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    References:
      Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
      section 4.2.

    Examples:
      Logits that are twice those of the frequencies 3/4 and 1/4:

      >>> round(fit_temperature([[2 * np.log(3), 0.0]] * 4, [0, 0, 0, 1]), 6)
      2.0
    """
    from scipy.optimize import root_scalar

    logits, labels = validated(logits, labels)
    log_probs = log_softmax(logits)
    # relative to the largest, equal logits are exactly 0, and so is the slope
    margins = log_probs - log_probs.max(axis=-1, keepdims=True)
    label_margins = label_log_probs(margins, labels)
    if not np.isfinite(mean(label_margins)):
        return math.nan

    def slope(log_temperature: float) -> float:
        probs = np.exp(log_softmax(margins / math.exp(log_temperature)))
        expected = np.sum(probs * np.where(probs > 0, margins, 0), axis=-1)
        return mean(expected - label_margins)

    lowest, highest = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    falls_to_lowest, falls_to_highest = slope(lowest) <= 0, slope(highest) >= 0
    if falls_to_lowest and falls_to_highest:
        return 1.0
    if falls_to_lowest:
        return LOWEST_TEMPERATURE
    if falls_to_highest:
        return HIGHEST_TEMPERATURE
    return math.exp(root_scalar(slope, bracket=(lowest, highest), xtol=1e-12).root)


def equal_width_index(probs: np.ndarray, num_bins: int) -> np.ndarray:
    """Returns the bin b with ``b / num_bins < p <= (b + 1) / num_bins`` of every probability p."""
    # Compared with the edges, because p * num_bins may round past one (7 / 25 * 25 > 7).
    edges = np.arange(1, num_bins) / num_bins
    return np.searchsorted(edges + _EDGE_TOLERANCE, probs, side="left")


def _check_num_bins(num_bins: int) -> None:
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
