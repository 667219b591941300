"""Does confidence mean what it says, and which temperature makes it?"""

import dataclasses
import math

import numpy as np

from sdd_jax.evaluation.metrics._predictions import checked, mean, mean_over_ties, top_class
from sdd_jax.evaluation.metrics.classification import log_softmax

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0


@dataclasses.dataclass(frozen=True)
class Bins:
    """A reliability diagram: examples grouped by confidence, lowest first.

    Attributes:
      count: number of examples, float64 ``[num_bins]``.
      confidence: their mean confidence ``[num_bins]``; nan in an empty bin.
      accuracy: the share of them that is right ``[num_bins]``; nan in an empty bin.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(
    log_probs: np.ndarray, labels: np.ndarray, *, num_bins: int = 15, equal_mass: bool = False
) -> Bins:
    """Confidence and accuracy, bin by bin. Confidence is the largest probability.

    Bins of equal width: bin b holds confidences in ``(b / num_bins, (b + 1) / num_bins]``. Bins of equal
    mass: the examples in order of confidence, split as ``numpy.array_split`` does, so that sizes differ
    by at most one. A boundary may then part examples of equal confidence; so that their order does not
    matter, each of these counts as right by the share of them that is: what a random order gives on
    average.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      num_bins: number of bins, at least 1.
      equal_mass: whether bins hold equally many examples, rather than equally wide intervals.

    Returns:
      The bins: all empty if N is 0, nan throughout (counts too) if an example is nan.

    Raises:
      ValueError: shapes or labels as the package's docstring says; no bins.

    References:
      Equal mass: Nguyen and O'Connor, `Posterior Calibration and Exploratory Analysis for Natural
      Language Processing Models <https://arxiv.org/abs/1508.05154>`_, 2015; Nixon et al., `Measuring
      Calibration in Deep Learning <https://arxiv.org/abs/1904.01685>`_, 2019.
    """
    confidence, correct = top_class(*checked(log_probs, labels))
    _check_bins(num_bins)
    if np.isnan(confidence).any():
        return Bins(*np.full((3, num_bins), np.nan))
    if equal_mass:
        correct = mean_over_ties(correct, confidence)
        order = np.argsort(confidence, kind="stable")
        confidence, correct = confidence[order], correct[order]
        sizes = [len(part) for part in np.array_split(order, num_bins)]
        index = np.repeat(np.arange(num_bins), sizes)
    else:
        index = _equal_width(confidence, num_bins)
    count, confidence, correct = (
        np.bincount(index, weights, num_bins)
        for weights in (np.ones_like(confidence), confidence, correct)
    )
    with np.errstate(invalid="ignore"):
        return Bins(count, confidence / count, correct / count)


def expected_calibration_error(
    log_probs: np.ndarray, labels: np.ndarray, *, num_bins: int = 15, equal_mass: bool = False
) -> float:
    r"""Mean gap between confidence and accuracy (ECE), over the bins of :func:`reliability`.

    .. math:: \sum_b \frac{n_b}{N} \left| \mathrm{acc}(b) - \mathrm{conf}(b) \right|

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      num_bins: number of bins, at least 1.
      equal_mass: whether bins hold equally many examples, rather than equally wide intervals.

    Returns:
      The error, in [0, 1]; nan if N is 0 or an example is nan.

    Raises:
      ValueError: as :func:`reliability`.

    References:
      Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
      equation 3.
    """
    bins = reliability(log_probs, labels, num_bins=num_bins, equal_mass=equal_mass)
    gaps = np.abs(bins.accuracy - bins.confidence)
    with np.errstate(invalid="ignore"):
        return float(np.nansum(bins.count * gaps) / bins.count.sum())


def maximum_calibration_error(
    log_probs: np.ndarray, labels: np.ndarray, *, num_bins: int = 15, equal_mass: bool = False
) -> float:
    r"""Largest gap between confidence and accuracy (MCE), over the bins of :func:`reliability`.

    .. math:: \max_{b : n_b > 0} \left| \mathrm{acc}(b) - \mathrm{conf}(b) \right|

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      num_bins: number of bins, at least 1.
      equal_mass: whether bins hold equally many examples, rather than equally wide intervals.

    Returns:
      The error, in [0, 1]; nan if N is 0 or an example is nan.

    Raises:
      ValueError: as :func:`reliability`.

    References:
      Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
      equation 5.
    """
    bins = reliability(log_probs, labels, num_bins=num_bins, equal_mass=equal_mass)
    # fmax passes over the nan of empty bins, and is nan if there is nothing else
    return float(np.fmax.reduce(np.abs(bins.accuracy - bins.confidence)))


def classwise_calibration_error(
    log_probs: np.ndarray, labels: np.ndarray, *, num_bins: int = 15
) -> float:
    r"""Mean gap between a class's probability and its frequency, over all classes and bins.

    .. math:: \frac{1}{K} \sum_k \sum_b \frac{n_{bk}}{N} \left| \mathrm{freq}_k(b) - \bar p_k(b) \right|

    Class k's bins are of equal width on its own probability, as in :func:`reliability`, a probability of
    0 in the first; freq is the share of their examples that have label k.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      num_bins: number of bins, at least 1.

    Returns:
      The error, in [0, 1]; nan if N is 0 or an example is nan.

    Raises:
      ValueError: as :func:`reliability`.

    References:
      Kull et al., `Beyond Temperature Scaling: Obtaining Well-Calibrated Multiclass Probabilities with
      Dirichlet Calibration <https://arxiv.org/abs/1910.12656>`_, 2019.
    """
    log_probs, labels = checked(log_probs, labels)
    _check_bins(num_bins)
    probs = np.exp(log_probs)
    if not probs.size or np.isnan(probs).any():
        return math.nan
    num_examples, num_classes = probs.shape
    index = _equal_width(probs, num_bins) + num_bins * np.arange(num_classes)
    probs[np.arange(num_examples), labels] -= 1
    gaps = np.bincount(index.ravel(), probs.ravel())
    return float(np.abs(gaps).sum() / probs.size)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    r"""The temperature T that minimises the NLL of ``softmax(logits / T)``.

    The NLL is convex in :math:`\beta = 1 / T`, so T is where its derivative is zero,

    .. math:: \frac{1}{N} \sum_n \left( \sum_c p_{nc}(\beta) z_{nc} - z_{n, y_n} \right) = 0

    Args:
      logits: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      T in [0.01, 100]. The lower bound if every example is right, since larger margins are then always
      better; the upper bound if the labels' logits are on average no larger than the mean logit, since
      chance is then better. 1 if T makes no difference (in float64), as with constant logits. nan if N
      is 0, a label's logit is -inf (the NLL is then inf at every T), or :func:`log_softmax` is nan.

    Raises:
      ValueError: shapes or labels as the package's docstring says.

    References:
      Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
      section 4.2.
    """
    from scipy.optimize import brentq

    logits, labels = checked(logits, labels)
    # measured from the largest, equal logits are exactly 0, and then so is the slope
    logits = log_softmax(logits)
    logits -= logits.max(axis=-1, keepdims=True)
    of_label = np.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    if not np.isfinite(mean(of_label)):
        return math.nan

    def slope(log_temperature):
        probs = np.exp(log_softmax(logits / math.exp(log_temperature)))
        expected = np.sum(probs * np.where(probs > 0, logits, 0), axis=-1)
        return mean(expected - of_label)

    lowest, highest = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    falls_to_lowest, falls_to_highest = slope(lowest) <= 0, slope(highest) >= 0
    if falls_to_lowest and falls_to_highest:
        return 1.0
    if falls_to_lowest:
        return LOWEST_TEMPERATURE
    if falls_to_highest:
        return HIGHEST_TEMPERATURE
    return math.exp(brentq(slope, lowest, highest, xtol=1e-12))


def _equal_width(probs: np.ndarray, num_bins: int) -> np.ndarray:
    return np.clip(np.ceil(probs * num_bins).astype(int) - 1, 0, num_bins - 1)


def _check_bins(num_bins: int) -> None:
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
