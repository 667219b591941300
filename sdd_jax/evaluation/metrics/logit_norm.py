"""Normalised logits as a confidence for selective classification, in NumPy and float64."""

import math

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import log_softmax, validated
from sdd_jax.evaluation.metrics.selective import area_under_risk_coverage

NORMS = range(1, 9)  # the reference's grid, without its 0 (centred logits that are not divided)


def normalized_maximum_logit(logits: ArrayLike, *, p: float) -> np.ndarray:
    r"""Computes the largest centred logit relative to the p-norm of all.

    .. math:: \frac{\max_c \tilde z_c}{\lVert \tilde z \rVert_p},
       \qquad \tilde z = z - \frac{1}{K} \sum_c z_c

    Label smoothing lowers the largest logit more where the prediction is right than where it is wrong,
    which spoils the order of the confidences; the norm restores it. With two classes the score is the
    same for all examples.

    Args:
      logits: ``[N, K]``.
      p: order of the norm, at least 1; see :func:`fit_logit_norm`.

    Returns:
      Scores ``[N]`` in [0, 1], higher for a more confident prediction; they order examples and are no
      probabilities. 0 where all logits are equal; nan where one is not finite.

    Raises:
      ValueError: p below 1.

    References:
      Xia et al., `Towards Understanding Why Label Smoothing Degrades Selective Classification and How to
      Fix It <https://arxiv.org/abs/2403.14715>`_, 2025, section 5; Cattelan and Silva, `How to Fix a
      Broken Confidence Estimator <https://arxiv.org/abs/2305.15508>`_, 2024.

    Examples:
      >>> normalized_maximum_logit([[4.0, 1.0, 1.0], [2.0, 2.0, -1.0]], p=1).round(2)
      array([0.5 , 0.25])
    """
    if not p >= 1:
        raise ValueError(f"p must be at least 1, got {p}")
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        centred = logits - logits.mean(axis=-1, keepdims=True)
        largest = np.abs(centred).max(axis=-1, keepdims=True)
        relative = centred / np.where(largest == 0, 1, largest)  # no power of it overflows
        norm = np.sum(np.abs(relative) ** p, axis=-1) ** (1 / p)
        return relative.max(axis=-1) / np.where(norm == 0, 1, norm)


def fit_logit_norm(logits: ArrayLike, labels: ArrayLike) -> float:
    """Finds the norm whose scores have the smallest AURC, on a validation split.

    Args:
      logits: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).

    Returns:
      p for :func:`normalized_maximum_logit`, a whole number from 1 to 8, the smallest of equally good
      ones; nan if N is 0 or a logit is not finite.

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    References:
      Cattelan and Silva, `How to Fix a Broken Confidence Estimator <https://arxiv.org/abs/2305.15508>`_,
      2024, which also falls back to the largest probability where that is better.
    """
    logits, labels = validated(logits, labels)
    if not len(labels) or not np.isfinite(logits).all():
        return math.nan
    log_probs = log_softmax(logits)
    areas = [
        area_under_risk_coverage(
            log_probs, labels, confidence=normalized_maximum_logit(logits, p=p)
        )
        for p in NORMS
    ]
    return float(NORMS[int(np.argmin(areas))])
