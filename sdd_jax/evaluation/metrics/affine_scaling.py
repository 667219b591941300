"""Vector and Dirichlet scaling: affine maps of logits that minimise the NLL, in NumPy and float64."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import label_log_probs, log_softmax, validated
from sdd_jax.evaluation.metrics.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    fit_temperature,
)

ODIR = (1.0, 10.0, 100.0, 1e3, 1e4)  # candidates
NUM_FOLDS = 3
_EXACT, _ROUGH = (1e-9, 1e-5), (1e-6, 1e-3)  # relative change of the loss, gradient
_LARGEST = 1 / LOWEST_TEMPERATURE  # weight and bias, where the NLL has no minimum
_TINY = np.log(np.finfo(np.float64).tiny)  # least log-probability, as in the authors' code

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]  # value and gradient


class AffineScaling(NamedTuple):
    """An affine map of logits or log-probabilities.

    Attributes:
      weights: ``[K]`` for vector scaling, one factor of each class; ``[K, K]`` for Dirichlet scaling.
      bias: ``[K]``.
    """

    weights: np.ndarray
    bias: np.ndarray


def fit_vector_scaling(logits: ArrayLike, labels: ArrayLike) -> AffineScaling:
    r"""Fits one factor and one bias of each class, which minimise the NLL of ``softmax(w * z + b)``.

    The fit is deterministic: L-BFGS-B in float64, from the fitted temperature. The factors are between
    0.01 and 100, the biases between -100 and 100. The bounds matter only where the NLL has no minimum,
    as if a class is always classified correctly.

    Args:
      logits: ``[N, K]``, of a validation split.
      labels: integers ``[N]`` in [0, K).

    Returns:
      The scaling; everything is nan where :func:`fit_temperature` is.

    Raises:
      ValueError: other shapes, or labels outside [0, K).

    References:
      Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
      section 4.2. torch-uncertainty has no bias.
    """
    logits, labels = validated(logits, labels)
    num_classes = logits.shape[-1]
    finite = np.where(np.isfinite(logits), logits, 0)  # a probability of 0 has no gradient

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat.reshape(2, num_classes)
        loss, gradient = _nll(logits * weights + bias, labels)
        return loss, np.concatenate([np.sum(gradient * finite, axis=0), gradient.sum(axis=0)])

    temperature = fit_temperature(logits, labels)
    start = np.repeat([1 / temperature, 0], num_classes)
    lowest = np.repeat([1 / HIGHEST_TEMPERATURE, -_LARGEST], num_classes)
    return AffineScaling(*_minimum(objective, start, lowest, _EXACT).reshape(2, num_classes))


def vector_scaling(logits: ArrayLike, fitted: AffineScaling) -> np.ndarray:
    """Computes log-probabilities ``[N, K]`` of ``softmax(w * z + b)``.

    Args:
      logits: ``[N, K]``.
      fitted: see :func:`fit_vector_scaling`.
    """
    return log_softmax(np.asarray(logits, np.float64) * fitted.weights + fitted.bias)


def fit_dirichlet_scaling(log_probs: ArrayLike, labels: ArrayLike, *, odir: float) -> AffineScaling:
    r"""Fits Dirichlet scaling with off-diagonal and intercept regularisation (ODIR).

    .. math:: -\frac{1}{N} \sum_n \log \mathrm{softmax}(W \log p_n + b)_{y_n}
        + \frac{\lambda}{K (K - 1)} \sum_{i \ne j} W_{ij}^2 + \frac{\lambda}{K} \sum_j b_j^2

    The paper allows two strengths; one serves for both here. The fit is deterministic, as in
    :func:`fit_vector_scaling`, and no weight or bias exceeds 100.

    Args:
      log_probs: ``[N, K]``, of a validation split; those below log(2.2e-308) are raised to it.
      labels: integers ``[N]`` in [0, K).
      odir: :math:`\lambda`, at least 0; see :func:`select_odir`. It equals both ``lambda_reg`` and
        ``mu_reg`` of torch-uncertainty, and ``reg_lambda`` and ``reg_mu`` of dirichletcal with
        ``reg_norm=True``.

    Returns:
      The scaling; everything is nan if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, labels outside [0, K), or a negative odir.

    References:
      Kull et al., `Beyond Temperature Scaling: Obtaining Well-Calibrated Multiclass Probabilities with
      Dirichlet Calibration <https://arxiv.org/abs/1910.12656>`_, 2019.
    """
    log_probs, labels = validated(log_probs, labels)
    if not odir >= 0:
        raise ValueError(f"odir must be at least 0, got {odir}")
    return _dirichlet(log_probs, labels, odir, _EXACT)


def dirichlet_scaling(log_probs: ArrayLike, fitted: AffineScaling) -> np.ndarray:
    """Computes log-probabilities ``[N, K]`` of ``softmax(W @ log_probs + b)``.

    Args:
      log_probs: ``[N, K]``.
      fitted: see :func:`fit_dirichlet_scaling`.
    """
    log_probs = np.maximum(np.asarray(log_probs, np.float64), _TINY)
    return log_softmax(log_probs @ fitted.weights.T + fitted.bias)


def select_odir(
    log_probs: ArrayLike, labels: ArrayLike, candidates: Sequence[float] = ODIR
) -> float:
    """Selects the strength of ODIR by the NLL of 3-fold cross-validation on the validation split.

    Fold f holds examples f, f + 3, f + 6, ... The strongest candidate comes first, and the search ends
    with the first that is no better than the one before.

    Args:
      log_probs: ``[N, K]``.
      labels: integers ``[N]`` in [0, K).
      candidates: strengths, at least one.

    Returns:
      The strength; the largest if N is 0 or an example has nan.

    Raises:
      ValueError: other shapes, or labels outside [0, K).
    """
    log_probs, labels = validated(log_probs, labels)
    strengths = sorted(candidates, reverse=True)
    selected, smallest = strengths[0], math.inf
    for odir in strengths:
        loss = _held_out_nll(log_probs, labels, odir)
        if not loss < smallest:
            break
        selected, smallest = odir, loss
    return selected


def _held_out_nll(log_probs: np.ndarray, labels: np.ndarray, odir: float) -> float:
    fold, loss = np.arange(len(labels)) % NUM_FOLDS, 0.0
    for f in range(NUM_FOLDS):
        fit, judge = fold != f, fold == f
        fitted = _dirichlet(log_probs[fit], labels[fit], odir, _ROUGH)
        loss -= label_log_probs(dirichlet_scaling(log_probs[judge], fitted), labels[judge]).sum()
    return loss


def _dirichlet(
    log_probs: np.ndarray, labels: np.ndarray, odir: float, precision: tuple[float, float]
) -> AffineScaling:
    num_classes = log_probs.shape[-1]
    others = 1 - np.eye(num_classes)
    strength = odir / np.array([max(num_classes * (num_classes - 1), 1), num_classes])
    log_probs = np.maximum(log_probs, _TINY)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = _split(flat, num_classes)
        loss, gradient = _nll(log_probs @ weights.T + bias, labels)
        off = weights * others
        loss += strength @ [np.sum(off**2), np.sum(bias**2)]
        by_weights = gradient.T @ log_probs + 2 * strength[0] * off
        by_bias = gradient.sum(axis=0) + 2 * strength[1] * bias
        return loss, np.concatenate([by_weights.ravel(), by_bias])

    diagonal = np.eye(num_classes) / fit_temperature(log_probs, labels)
    start = np.concatenate([diagonal.ravel(), np.zeros(num_classes)])
    return _split(
        _minimum(objective, start, np.full(len(start), -_LARGEST), precision), num_classes
    )


def _split(flat: np.ndarray, num_classes: int) -> AffineScaling:
    return AffineScaling(flat[:-num_classes].reshape(num_classes, -1), flat[-num_classes:])


def _nll(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The NLL of ``softmax(scores)`` and its gradient ``[N, K]``."""
    log_probs = log_softmax(scores)
    gradient = np.exp(log_probs)
    gradient[np.arange(len(labels)), labels] -= 1
    return -float(label_log_probs(log_probs, labels).mean()), gradient / len(labels)


def _minimum(
    objective: Objective, start: np.ndarray, lowest: np.ndarray, precision: tuple[float, float]
) -> np.ndarray:
    """The minimum by L-BFGS-B, with no parameter above 100; nan if the start is."""
    from scipy.optimize import Bounds, minimize

    if np.isnan(start).any():
        return np.full_like(start, np.nan)
    ftol, gtol = precision
    options = {"maxiter": 2000, "maxcor": 20, "ftol": ftol, "gtol": gtol}
    bounds = Bounds(lowest, np.full_like(lowest, _LARGEST))
    return minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
