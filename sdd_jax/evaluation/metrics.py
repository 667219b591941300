"""Metrics of predictions, in NumPy and float64, from all logits and labels at once.

Every function takes ``log_probs`` ``[N, K]`` (see :func:`log_softmax`) and ``labels`` ``[N]``, N >= 1.
"""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities ``[N, K]`` in float64."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def top_k_accuracy(log_probs: np.ndarray, labels: np.ndarray, *, k: int = 1) -> float:
    """Share of examples whose label is among the k most probable classes.

    Of equally probable classes the lower one counts as the more probable, as in ``argmax``.
    """
    of_label = np.take_along_axis(log_probs, labels[:, None], axis=-1)
    before = np.arange(log_probs.shape[-1]) < labels[:, None]
    rank = np.sum((log_probs > of_label) | ((log_probs == of_label) & before), axis=-1)
    return float(np.mean(rank < k))


def negative_log_likelihood(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean of ``-log p_y``, in nats."""
    return float(-np.mean(np.take_along_axis(log_probs, labels[:, None], axis=-1)))


def brier_score(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean over examples of ``sum_c (p_c - 1[c = y])^2``, between 0 and 2 (Brier, 1950)."""
    difference = np.exp(log_probs)
    difference[np.arange(len(labels)), labels] -= 1
    return float(np.mean(np.sum(difference**2, axis=-1)))


def expected_calibration_error(
    log_probs: np.ndarray, labels: np.ndarray, *, num_bins: int = 15
) -> float:
    r"""Gap between confidence and accuracy, over bins of equal width.

    .. math:: \sum_b \frac{n_b}{N} \left| \mathrm{acc}(b) - \mathrm{conf}(b) \right|

    Confidence is the largest probability; bin b holds confidences in ``(b / bins, (b + 1) / bins]``.

    References:
      Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
      equation 3.
    """
    confidence = np.exp(log_probs.max(axis=-1))
    correct = log_probs.argmax(axis=-1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))
