"""What the metrics share: checked predictions, their top class, and means that are always defined."""

import numpy as np


def checked(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64 ``predictions`` ``[N, K]`` (logits or log-probabilities) and integer ``labels`` ``[N]``.

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
    num_classes = predictions.shape[1]
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be integers in [0, {num_classes}), got {labels.dtype} in "
            f"[{labels.min()}, {labels.max()}]"
        )
    return predictions, labels


def mean(values: np.ndarray) -> float:
    """Mean of ``values`` ``[N]``; nan if N is 0."""
    return float(np.mean(values)) if len(values) else float("nan")


def mean_over_ties(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Each of ``values`` ``[N]`` replaced by the mean over all examples whose key equals its own."""
    _, run = np.unique(keys, return_inverse=True)
    return (np.bincount(run, values) / np.bincount(run))[run]


def top_class(log_probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence ``[N]``, the largest probability, and ``[N]``, 1 where its class is the label, else 0.

    Confidence is nan where a log-probability is.
    """
    confidence = np.exp(log_probs.max(axis=-1))
    return confidence, (log_probs.argmax(axis=-1) == labels).astype(np.float64)
