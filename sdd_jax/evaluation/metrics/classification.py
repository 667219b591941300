"""Accuracy, proper scoring rules, and the usual metrics by name."""

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import label_log_probs, mean, validated
from sdd_jax.evaluation.metrics.calibration import expected_calibration_error


def top_k_accuracy(log_probs: ArrayLike, labels: ArrayLike, *, k: int = 1) -> float:
    """Computes the share of examples whose label is among the k most probable classes.

    Among equally probable classes the lower one ranks first, as in ``argmax``.

    Args:
      log_probs: ``[N, K]``; an example with nan counts as wrong.
      labels: integers ``[N]`` in [0, K).
      k: number of classes; with K or more, every example counts as correct.

    Returns:
      The accuracy, in [0, 1]; nan if N is 0.

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    Examples:
      >>> log_probs = np.log([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
      >>> top_k_accuracy(log_probs, [0, 1]), top_k_accuracy(log_probs, [0, 1], k=2)
      (0.5, 1.0)
    """
    log_probs, labels = validated(log_probs, labels)
    label_value = label_log_probs(log_probs, labels)[:, None]
    is_lower = np.arange(log_probs.shape[-1]) < labels[:, None]
    rank = np.sum((log_probs > label_value) | ((log_probs == label_value) & is_lower), axis=-1)
    return mean((rank < k) & ~np.isnan(label_value[:, 0]))


def negative_log_likelihood(log_probs: ArrayLike, labels: ArrayLike) -> float:
    r"""Computes the mean negative log-probability of the label (NLL).

    .. math:: -\frac{1}{N} \sum_n \log p_{n, y_n}

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      The NLL in nats; inf if a label's log-probability is -inf, nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    Examples:
      >>> round(negative_log_likelihood(np.log([[0.8, 0.2], [0.5, 0.5]]), [0, 1]), 4)
      0.4581
    """
    log_probs, labels = validated(log_probs, labels)
    # 0 minus the mean, so that certainty gives 0.0, not -0.0
    return 0 - mean(label_log_probs(log_probs, labels))


def brier_score(log_probs: ArrayLike, labels: ArrayLike) -> float:
    r"""Computes the mean squared distance between the posterior and the one-hot label.

    .. math:: \frac{1}{N} \sum_n \sum_c (p_{nc} - 1[c = y_n])^2

    This is Brier's definition, summed over classes. The score of the positive class alone, usual for two
    classes, is half of it; some libraries divide by K.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      The score, in [0, 2]; nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    References:
      Brier, `Verification of Forecasts Expressed in Terms of Probability
      <https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2>`_, 1950.

    Examples:
      >>> round(brier_score(np.log([[0.8, 0.2], [0.5, 0.5]]), [0, 1]), 4)
      0.29
    """
    log_probs, labels = validated(log_probs, labels)
    difference = np.exp(log_probs)
    difference[np.arange(len(labels)), labels] -= 1
    return mean(np.sum(difference**2, axis=-1))


METRICS = {
    "accuracy": top_k_accuracy,
    "nll": negative_log_likelihood,
    "brier": brier_score,
    "ece": expected_calibration_error,
}


def compute(log_probs: ArrayLike, labels: ArrayLike, *names: str) -> dict[str, float]:
    """Computes several metrics by name, with their default options.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      *names: keys of `METRICS`: "accuracy", "nll", "brier" or "ece" (15 bins of equal width).

    Returns:
      ``{name: value}``, in the order of ``names``.

    Raises:
      ValueError: other names or shapes, or labels outside [0, K).

    Examples:
      >>> compute(np.log([[0.75, 0.25], [0.5, 0.5]]), [0, 1], "accuracy", "ece")
      {'accuracy': 0.5, 'ece': 0.375}
    """
    for name in names:
        if name not in METRICS:
            raise ValueError(f"names must be among {', '.join(METRICS)}, got {name!r}")
    return {name: METRICS[name](log_probs, labels) for name in names}
