"""How in-distribution an input looks to a classifier: larger is more so.

Each score is a function of logits ``[N, K]`` alone, in NumPy and float64.
"""

import numpy as np

from sdd_jax.evaluation import metrics


def maximum_softmax_probability(logits: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    r"""``[N]``: :math:`\log \max_c p_c`, where p is the softmax of logits / temperature.

    References:
      Hendrycks and Gimpel, `A Baseline for Detecting Misclassified and Out-of-Distribution Examples
      <https://arxiv.org/abs/1610.02136>`_, 2017.
    """
    return metrics.log_softmax(np.asarray(logits, np.float64) / temperature).max(axis=-1)


def negative_energy(logits: np.ndarray) -> np.ndarray:
    r"""``[N]``: :math:`\log \sum_c e^{z_c}`.

    References:
      Liu et al., `Energy-based Out-of-distribution Detection <https://arxiv.org/abs/2010.03759>`_, 2020,
      equation 4 at temperature 1.
    """
    from scipy.special import logsumexp

    return logsumexp(np.asarray(logits, np.float64), axis=-1)


def maximum_logit(logits: np.ndarray) -> np.ndarray:
    """``[N]``: the largest logit.

    References:
      Hendrycks et al., `Scaling Out-of-Distribution Detection <https://arxiv.org/abs/1911.11132>`_,
      2022.
    """
    return np.asarray(logits, np.float64).max(axis=-1)
