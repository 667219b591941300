"""Shaped features, in NumPy and float64. The energy of their logits is an out-of-distribution score.

>>> from sdd_jax.evaluation import metrics
>>> features, kernel, bias = np.array([[1.0, 4.0]]), np.eye(2), np.zeros(2)
>>> shaped = metrics.react(features, threshold=2.0)
>>> scores = metrics.negative_energy(shaped @ kernel + bias)
"""

import numpy as np
from numpy.typing import ArrayLike


def react(features: ArrayLike, *, threshold: float) -> np.ndarray:
    r"""Clips features from above (ReAct).

    .. math:: \min(x_d, c)

    Args:
      features: ``[N, D]``.
      threshold: c, in the paper the 90th percentile of all elements of the training features:
        ``np.percentile(bank, 90)``. OpenOOD takes the percentile of the validation split; pytorch-ood
        leaves it to the user.

    Returns:
      ``[N, D]``.

    References:
      Sun et al., `ReAct: Out-of-distribution Detection With Rectified Activations
      <https://arxiv.org/abs/2111.12797>`_, 2021, equation 1.

    Examples:
      >>> react([[1.0, 4.0]], threshold=2.0)
      array([[1., 2.]])
    """
    return np.minimum(np.asarray(features, np.float64), threshold)


def ash_s(features: ArrayLike, *, percentile: float = 90.0) -> np.ndarray:
    r"""Sets all but the largest elements of each feature to zero, and scales the rest (ASH-S).

    .. math:: x_d \, e^{s / s'} \; [d \in \text{kept}], \qquad s = \sum_d x_d, \;
        s' = \sum_{d \in \text{kept}} x_d

    Meant for features that are not negative, as after a ReLU.

    Args:
      features: ``[N, D]``.
      percentile: share of elements set to zero, in [0, 100); ``D - round(D * percentile / 100)`` are
        kept, and at least one.

    Returns:
      ``[N, D]``; zero where all kept elements are.

    Raises:
      ValueError: percentile out of range.

    References:
      Djurisic et al., `Extremely Simple Activation Shaping for Out-of-Distribution Detection
      <https://arxiv.org/abs/2209.09858>`_, 2023, algorithm 3; percentile 90 for CIFAR-100 and ImageNet.

    Examples:
      >>> (ash_s([[0.0, 1.0, 1.0, 2.0]], percentile=75) / np.exp(2)).round(6)
      array([[0., 0., 0., 2.]])
    """
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile must be in [0, 100), got {percentile}")
    features = np.asarray(features, np.float64)
    width = features.shape[-1]
    dropped = min(round(width * percentile / 100), width - 1)
    shaped = features.copy()
    smallest = np.argpartition(features, dropped, axis=-1)[:, :dropped]
    np.put_along_axis(shaped, smallest, 0, axis=-1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ratio = features.sum(axis=-1, keepdims=True) / shaped.sum(axis=-1, keepdims=True)
        return np.where(shaped == 0, 0, shaped * np.exp(ratio))
