"""Functions shared by the metrics: log-softmax, validated predictions, confidences, means over ties."""

import numpy as np
from numpy.typing import ArrayLike


def log_softmax(logits: ArrayLike) -> np.ndarray:
    r"""Computes the log-probabilities of ``softmax(logits)``.

    .. math:: z_c - \log \sum_j e^{z_j}

    Args:
      logits: ``[..., K]``.

    Returns:
      ``[..., K]``, float64, in nats; nan in every class of an example with a logit of nan or +inf, or
      with all logits -inf.
    """
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        logits = logits - logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def validated(predictions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns float64 ``predictions`` ``[N, K]`` (logits or log-probabilities) and ``labels`` ``[N]``.

    Raises:
      ValueError: other shapes, or labels that are not integers in [0, K).
    """
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels)
    if predictions.ndim != 2 or labels.shape != predictions.shape[:1]:
        raise ValueError(
            f"predictions must be [N, K] and labels [N], got shapes {predictions.shape} and "
            f"{labels.shape}"
        )
    if len(labels) == 0:
        return predictions, labels.astype(int)
    check_labels(labels, predictions.shape[1])
    return predictions, labels


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raises a ValueError unless ``labels`` ``[N]``, at least one, are integers in [0, K)."""
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be integers in [0, {num_classes}), got {labels.dtype} in "
            f"[{labels.min()}, {labels.max()}]"
        )


def label_log_probs(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Selects each example's log-probability (or logit) of its label, ``[N]``."""
    return np.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]


def confidence_and_correctness(
    log_probs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest probability of each example, ``[N]``, and 1.0 where its class is the label.

    The confidence is nan where a log-probability is nan.
    """
    confidence = np.exp(log_probs.max(axis=-1))
    return confidence, (log_probs.argmax(axis=-1) == labels).astype(np.float64)


def mean(values: np.ndarray) -> float:
    """Computes the mean of ``values`` ``[N]``; nan if N is 0."""
    return float(np.mean(values)) if len(values) else float("nan")


def mean_over_ties(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Replaces each of ``values`` ``[N]`` by the mean over all examples with an equal key."""
    _, group = np.unique(keys, return_inverse=True)
    return (np.bincount(group, values) / np.bincount(group))[group]
