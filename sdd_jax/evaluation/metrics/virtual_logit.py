"""Virtual-logit matching (ViM), in NumPy and float64."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics.mahalanobis import FeatureMoments
from sdd_jax.evaluation.metrics.ood_scores import negative_energy


class VirtualLogit(NamedTuple):
    """A virtual logit: the scaled norm of what the principal subspace leaves of a feature.

    Attributes:
      origin: the feature whose logits are 0, ``[D]``.
      residual: orthonormal basis of the complement of the principal subspace, ``[D, D - dim]``.
      scale: mean of the largest logit over mean norm of the residual, on training examples.
    """

    origin: np.ndarray
    residual: np.ndarray
    scale: float


def fit_virtual_logit(
    moments: FeatureMoments,
    bank: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike,
    *,
    dim: int | None = None,
) -> VirtualLogit:
    r"""Fits the virtual logit to training features.

    .. math:: o = -(W^\top)^{+} b, \qquad
        \alpha = \frac{\sum_i \max_c z_{ic}}{\sum_i \lVert R^\top (x_i - o) \rVert_2}

    with the columns of R the eigenvectors of :math:`\mathrm{E}[(x - o)(x - o)^\top]` after the ``dim``
    largest.

    Args:
      moments: those of the training features.
      bank: training features ``[M, D]`` for the scale; a sample is enough.
      kernel: W of the head ``x @ W + b``, ``[D, K]``.
      bias: b, ``[K]``.
      dim: size of the principal subspace, in [0, D). By default the paper's 1000 if D is 2048 or more
        and 512 if it is 768 or more; below, D // 2, which is OpenOOD's for CIFAR.

    Returns:
      The virtual logit; everything is nan if an argument is not finite.

    Raises:
      ValueError: dim out of range.

    References:
      Wang et al., `ViM: Out-Of-Distribution with Virtual-logit Matching
      <https://arxiv.org/abs/2203.10807>`_, 2022, equations 3 to 6.
    """
    kernel, bias, bank = (np.asarray(x, np.float64) for x in (kernel, bias, bank))
    width = len(kernel)
    if dim is None:
        dim = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    if not 0 <= dim < width:
        raise ValueError(f"dim must be in [0, {width}), got {dim}")
    if not all(np.isfinite(x).all() for x in (moments.covariance, bank, kernel, bias)):
        return VirtualLogit(np.full(width, np.nan), np.full((width, 1), np.nan), np.nan)
    origin = -np.linalg.pinv(kernel.T) @ bias
    shift = moments.mean - origin
    _, vectors = np.linalg.eigh(moments.covariance + np.outer(shift, shift))  # ascending
    residual = vectors[:, : width - dim]
    norms = np.linalg.norm((bank - origin) @ residual, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.max(bank @ kernel + bias, axis=-1).mean() / norms.mean()
    return VirtualLogit(origin, residual, float(scale))


@np.errstate(over="ignore", invalid="ignore")
def virtual_logit(features: ArrayLike, logits: ArrayLike, fitted: VirtualLogit) -> np.ndarray:
    r"""Computes the negative energy minus the virtual logit.

    .. math:: \log \sum_c e^{z_c} - \alpha \lVert R^\top (x - o) \rVert_2

    The paper's score is the probability of the virtual logit beside the others, which orders examples in
    the opposite way.

    Args:
      features: ``[N, D]``.
      logits: ``[N, K]``, of these features.
      fitted: see :func:`fit_virtual_logit`.

    Returns:
      Scores ``[N]``: higher means more in-distribution, as in OpenOOD; the opposite sign in pytorch-ood.

    References:
      Wang et al., `ViM: Out-Of-Distribution with Virtual-logit Matching
      <https://arxiv.org/abs/2203.10807>`_, 2022, equation 8.
    """
    shifted = np.asarray(features, np.float64) - fitted.origin
    norms = np.linalg.norm(shifted @ fitted.residual, axis=-1)
    return negative_energy(logits) - fitted.scale * norms
