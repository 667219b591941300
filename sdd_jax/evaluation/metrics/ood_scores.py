"""Out-of-distribution scores of logits, in NumPy and float64: higher means more in-distribution.

:func:`sdd_jax.evaluation.metrics.detection` measures how well a score separates two data sets.
"""

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import log_softmax


def maximum_softmax_probability(logits: ArrayLike, *, temperature: float = 1.0) -> np.ndarray:
    r"""Computes the log of the largest softmax probability (MSP).

    .. math:: \log \max_c p_c, \qquad p = \mathrm{softmax}(z / T)

    Args:
      logits: ``[N, K]``.
      temperature: T, greater than 0.

    Returns:
      Scores ``[N]``, in the order of the probabilities themselves.

    Raises:
      ValueError: temperature that is not greater than 0.

    References:
      Hendrycks and Gimpel, `A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
      Neural Networks <https://arxiv.org/abs/1610.02136>`_, 2017.

    Examples:
      >>> np.exp(maximum_softmax_probability([[0.0, 0.0], [np.log(4), 0.0]]))
      array([0.5, 0.8])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}")
    return log_softmax(np.asarray(logits, np.float64) / temperature).max(axis=-1)


def negative_energy(logits: ArrayLike) -> np.ndarray:
    r"""Computes the negative free energy, the log of the softmax's denominator.

    .. math:: \log \sum_c e^{z_c}

    Args:
      logits: ``[N, K]``.

    Returns:
      Scores ``[N]``.

    References:
      Liu et al., `Energy-based Out-of-distribution Detection <https://arxiv.org/abs/2010.03759>`_, 2020,
      equation 4 at temperature 1.

    Examples:
      >>> np.exp(negative_energy([[0.0, 0.0], [np.log(4), 0.0]]))
      array([2., 5.])
    """
    with np.errstate(invalid="ignore"):  # nan where a logit is
        return np.logaddexp.reduce(np.asarray(logits, np.float64), axis=-1)


def maximum_logit(logits: ArrayLike) -> np.ndarray:
    """Computes the largest logit.

    Args:
      logits: ``[N, K]``.

    Returns:
      Scores ``[N]``.

    References:
      Hendrycks et al., `Scaling Out-of-Distribution Detection for Real-World Settings
      <https://arxiv.org/abs/1911.11132>`_, 2022.

    Examples:
      >>> maximum_logit([[0.0, 0.0], [3.0, 1.0]])
      array([0., 3.])
    """
    return np.asarray(logits, np.float64).max(axis=-1)
