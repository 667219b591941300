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


def negative_generalized_entropy(
    logits: ArrayLike, *, gamma: float = 0.1, num_probabilities: int = 100
) -> np.ndarray:
    r"""Computes the negative generalised entropy of the largest probabilities (GEN).

    .. math:: -\sum_{m \le M} p_{(m)}^\gamma (1 - p_{(m)})^\gamma, \qquad p = \mathrm{softmax}(z)

    The complement of the largest probability is the sum of the others, which a confident prediction does
    not round to zero. OpenOOD subtracts from one in float32; pytorch-ood limits probabilities
    to [1e-7, 1 - 1e-7] and returns the mean over M in place of the sum.

    Args:
      logits: ``[N, K]``.
      gamma: greater than 0.
      num_probabilities: M, the number of largest probabilities; all of them if K is less.

    Returns:
      Scores ``[N]``, as in OpenOOD; pytorch-ood has the opposite sign.

    Raises:
      ValueError: gamma out of range, or num_probabilities less than 1.

    References:
      Liu et al., `GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection
      <https://doi.org/10.1109/CVPR52729.2023.02293>`_, 2023, equation 5; the defaults are the paper's
      for ImageNet, and OpenOOD's.

    Examples:
      >>> negative_generalized_entropy([[0.0, 0.0], [3.0, 0.0]], gamma=0.5).round(4)
      array([-1.    , -0.4251])
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be greater than 0, got {gamma}")
    if num_probabilities < 1:
        raise ValueError(f"num_probabilities must be 1 or more, got {num_probabilities}")
    probs = np.sort(np.exp(log_softmax(logits)), axis=-1)[:, ::-1]
    complements = 1 - probs
    complements[:, 0] = probs[:, 1:].sum(axis=-1)
    products = (probs * complements)[:, :num_probabilities]
    return -np.sum(products**gamma, axis=-1)
