"""Moments of training features, and the Mahalanobis scores, in NumPy and float64."""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.evaluation.metrics._predictions import check_labels


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMoments:
    """Means and covariances of features of N training examples, with the divisor N.

    Attributes:
      counts: number of examples of each class, ``[K]``.
      class_means: ``[K, D]``; zero for a class without examples.
      within: covariance about the mean of the example's class, ``[D, D]``.
    """

    counts: np.ndarray
    class_means: np.ndarray
    within: np.ndarray

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Mean of all examples, ``[D]``."""
        return self.counts @ self.class_means / self.counts.sum()

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """Covariance about the mean of all examples, ``[D, D]``."""
        shifts = self.class_means - self.mean
        return self.within + (self.counts * shifts.T) @ shifts / self.counts.sum()

    @functools.cached_property
    def within_whitening(self) -> np.ndarray:
        """A matrix A with ``A @ A.T`` the pseudo-inverse of ``within``."""
        return _whitening(self.within)

    @functools.cached_property
    def whitening(self) -> np.ndarray:
        """A matrix A with ``A @ A.T`` the pseudo-inverse of ``covariance``."""
        return _whitening(self.covariance)


@np.errstate(over="ignore", invalid="ignore")
def feature_moments(
    batches: Iterable[tuple[ArrayLike, ArrayLike]], num_classes: int
) -> FeatureMoments:
    """Accumulates the moments of training features batch by batch.

    The memory is that of a batch, of ``[K, D]`` and of ``[D, D]``. No two large numbers are subtracted:
    the covariance within the classes is accurate even if they are far apart.

    Args:
      batches: pairs of features ``[B, D]`` and integer labels ``[B]`` in [0, K).
      num_classes: K.

    Returns:
      The moments, all nan if a feature is not finite.

    Raises:
      ValueError: other shapes or labels, or no example at all.

    References:
      Chan et al., `Updating Formulae and a Pairwise Algorithm for Computing Sample Variances
      <https://doi.org/10.1007/978-3-642-51461-6_3>`_, 1982.

    Examples:
      >>> moments = feature_moments([([[1.0], [3.0]], [0, 0]), ([[8.0]], [1])], num_classes=2)
      >>> moments.class_means.ravel(), moments.mean
      (array([2., 8.]), array([4.]))
      >>> moments.covariance * 3  # (1 - 4)^2 + (3 - 4)^2 + (8 - 4)^2
      array([[26.]])
    """
    counts, means, scatter = np.zeros(num_classes, int), None, None
    for features, labels in batches:
        features, labels = np.asarray(features, np.float64), np.asarray(labels)
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"features must be [B, D] and labels [B], got shapes {features.shape} and {labels.shape}"
            )
        if not len(labels):
            continue
        check_labels(labels, num_classes)
        if means is None or scatter is None:
            means = np.zeros((num_classes, features.shape[1]))
            scatter = np.zeros((features.shape[1],) * 2)
        present, index, added = np.unique(labels, return_inverse=True, return_counts=True)
        batch_means = np.stack([features[index == i].mean(axis=0) for i in range(len(present))])
        shifts = batch_means - means[present]
        weights = added / (counts[present] + added)
        merged = np.sqrt(weights * counts[present])[:, None] * shifts
        rows = np.concatenate([features - batch_means[index], merged])
        scatter += rows.T @ rows
        means[present] += weights[:, None] * shifts
        counts[present] += added
    if means is None or scatter is None:
        raise ValueError("batches must hold at least one example")
    if not np.isfinite(scatter).all():
        means, scatter = np.full_like(means, np.nan), np.full_like(scatter, np.nan)
    return FeatureMoments(counts, means, scatter / counts.sum())


@np.errstate(over="ignore", invalid="ignore")
def mahalanobis(features: ArrayLike, moments: FeatureMoments) -> np.ndarray:
    r"""Computes the negative squared Mahalanobis distance to the nearest class.

    .. math:: -\min_c \; (x - \mu_c)^\top \Sigma^{+} (x - \mu_c)

    with the covariance :math:`\Sigma` within the classes and its pseudo-inverse. Only the penultimate
    features are used, without the paper's perturbation of the input and its sum over layers.

    Args:
      features: ``[N, D]``.
      moments: those of the training features.

    Returns:
      Scores ``[N]``: higher means more in-distribution. OpenOOD returns the same; pytorch-ood the
      opposite sign, half of it, and with N times the covariance plus 1e-6 times the identity.

    References:
      Lee et al., `A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
      Attacks <https://arxiv.org/abs/1807.03888>`_, 2018, equation 2.

    Examples:
      >>> moments = feature_moments([([[-1.0], [1.0], [7.0], [9.0]], [0, 0, 1, 1])], num_classes=2)
      >>> mahalanobis([[2.0], [8.0]], moments)
      array([-4., -0.])
    """
    return -_class_distances(np.asarray(features, np.float64), moments)


@np.errstate(over="ignore", invalid="ignore")
def relative_mahalanobis(features: ArrayLike, moments: FeatureMoments) -> np.ndarray:
    r"""Computes the Mahalanobis score minus that of one Gaussian for all classes.

    .. math::
        (x - \mu)^\top \Sigma_0^{+} (x - \mu) - \min_c \; (x - \mu_c)^\top \Sigma^{+} (x - \mu_c)

    with the mean :math:`\mu` and the covariance :math:`\Sigma_0` of all training features.

    Args:
      features: ``[N, D]``.
      moments: those of the training features.

    Returns:
      Scores ``[N]``: higher means more in-distribution, as in OpenOOD; the opposite sign in pytorch-ood.

    References:
      Ren et al., `A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection
      <https://arxiv.org/abs/2106.09022>`_, 2021, equations 3 and 4.

    Examples:
      >>> moments = feature_moments([([[-1.0], [1.0], [7.0], [9.0]], [0, 0, 1, 1])], num_classes=2)
      >>> relative_mahalanobis([[4.0], [8.0]], moments).round(2)
      array([-16.  ,   0.94])
    """
    features = np.asarray(features, np.float64)
    background = np.sum(((features - moments.mean) @ moments.whitening) ** 2, axis=-1)
    return background - _class_distances(features, moments)


def _class_distances(features: np.ndarray, moments: FeatureMoments) -> np.ndarray:
    """Squared Mahalanobis distance to the nearest class that has examples, ``[N]``."""
    centres = moments.class_means[moments.counts > 0] - moments.mean
    whitened, centres = (
        values @ moments.within_whitening for values in (features - moments.mean, centres)
    )
    squares = [np.sum(values**2, axis=-1) for values in (whitened, centres)]
    distances = squares[0][:, None] + squares[1] - 2 * whitened @ centres.T
    return np.maximum(distances.min(axis=-1), 0)


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """Eigenvectors of a covariance ``[D, D]`` over the square roots of their eigenvalues.

    Eigenvalues that :func:`scipy.linalg.pinvh` takes for 0 are left out.
    """
    if not np.isfinite(covariance).all():
        return np.full((len(covariance), 1), np.nan)
    values, vectors = np.linalg.eigh(covariance)
    kept = values > np.abs(values).max() * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] / np.sqrt(values[kept])
