"""Accuracy, and scores of the whole posterior."""

import numpy as np

from sdd_jax.evaluation.metrics._predictions import checked, mean


def log_softmax(logits: np.ndarray) -> np.ndarray:
    r"""Log-probabilities of ``softmax(logits)``.

    .. math:: z_c - \log \sum_j e^{z_j}

    Args:
      logits: ``[..., K]``.

    Returns:
      ``[..., K]``, float64, in nats; nan in every class of an example of which a logit is nan or +inf,
      or all are -inf.
    """
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        logits = logits - logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def top_k_accuracy(log_probs: np.ndarray, labels: np.ndarray, *, k: int = 1) -> float:
    """Share of examples whose label is among the k most probable classes.

    Of equally probable classes the lower one counts as the more probable, as in ``argmax``.

    Args:
      log_probs: ``[N, K]``; an example of nan counts as wrong.
      labels: integers ``[N]`` in [0, K).
      k: number of classes; from K on every example counts as right.

    Returns:
      The share, in [0, 1]; nan if N is 0.

    Raises:
      ValueError: shapes or labels as the package's docstring says.
    """
    log_probs, labels = checked(log_probs, labels)
    of_label = np.take_along_axis(log_probs, labels[:, None], axis=-1)
    before = np.arange(log_probs.shape[-1]) < labels[:, None]
    rank = np.sum((log_probs > of_label) | ((log_probs == of_label) & before), axis=-1)
    return mean((rank < k) & ~np.isnan(of_label[:, 0]))


def negative_log_likelihood(log_probs: np.ndarray, labels: np.ndarray) -> float:
    r"""Mean negative log-probability of the label.

    .. math:: -\frac{1}{N} \sum_n \log p_{n, y_n}

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      NLL in nats: inf if a label's log-probability is -inf, nan if N is 0 or an example is nan.

    Raises:
      ValueError: shapes or labels as the package's docstring says.
    """
    log_probs, labels = checked(log_probs, labels)
    # from 0, so that certainty is 0.0 and not -0.0
    return 0 - mean(np.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0])


def brier_score(log_probs: np.ndarray, labels: np.ndarray) -> float:
    r"""Mean squared distance between the posterior and the label's indicator.

    .. math:: \frac{1}{N} \sum_n \sum_c (p_{nc} - 1[c = y_n])^2

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      The score, in [0, 2]; nan if N is 0 or an example is nan.

    Raises:
      ValueError: shapes or labels as the package's docstring says.

    References:
      Brier, `Verification of Forecasts Expressed in Terms of Probability
      <https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2>`_, 1950.
    """
    log_probs, labels = checked(log_probs, labels)
    difference = np.exp(log_probs)
    difference[np.arange(len(labels)), labels] -= 1
    return mean(np.sum(difference**2, axis=-1))
