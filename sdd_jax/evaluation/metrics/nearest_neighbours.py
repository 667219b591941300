"""The score of the k-th nearest neighbour. Neighbours are found with JAX, in chunks."""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 4096  # features, and features of the bank, on the device at a time


def negative_neighbour_distance(features: ArrayLike, bank: ArrayLike, *, k: int = 50) -> np.ndarray:
    r"""Computes the negative distance to the k-th nearest training feature (kNN), both normalised.

    .. math:: -\lVert z - z_{(k)} \rVert_2, \qquad z = x / \lVert x \rVert_2

    A feature of zeros stays zero. Memory on the device does not grow with N or M.

    Args:
      features: ``[N, D]``.
      bank: training features ``[M, D]``; may be memory-mapped.
      k: which neighbour, from 1 to M. The paper has 50 for CIFAR-10, 200 for CIFAR-100 and 1000 for
        ImageNet, each with all training images; fewer images want a smaller one in proportion.

    Returns:
      Scores ``[N]``: higher means more in-distribution; nan if the bank is not finite. OpenOOD returns
      the negative square; pytorch-ood the distance.

    Raises:
      ValueError: other shapes, or k out of range.

    References:
      Sun et al., `Out-of-Distribution Detection with Deep Nearest Neighbors
      <https://arxiv.org/abs/2204.06507>`_, 2022, section 3.

    Examples:
      >>> bank = [[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]
      >>> negative_neighbour_distance([[5.0, 0.0]], bank, k=2) == 0
      array([ True])
      >>> negative_neighbour_distance([[5.0, 0.0]], bank, k=3).round(4)
      array([-1.4142])
    """
    features, bank = np.asarray(features), np.asanyarray(bank)
    if features.ndim != 2 or bank.ndim != 2 or features.shape[1] != bank.shape[1]:
        raise ValueError(
            f"features must be [N, D] and bank [M, D], got shapes {features.shape} and {bank.shape}"
        )
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must be in [1, {len(bank)}], the size of the bank, got {k}")
    parts = [_scores(features[i : i + CHUNK], bank, k) for i in range(0, len(features), CHUNK)]
    return np.concatenate([np.empty(0), *parts])


def _scores(features: np.ndarray, bank: np.ndarray, k: int) -> np.ndarray:
    queries = _normalised(features).astype(np.float32)
    size, merge = min(CHUNK, len(bank)), _compiled_merge()
    nearness = np.full((len(features), k), -np.inf, np.float32)
    neighbours = np.zeros((len(features), k), np.int32)
    for start in range(0, len(bank), size):
        part = _normalised(bank[start : start + size])
        if not np.isfinite(part).all():
            return np.full(len(features), np.nan)
        padded = np.pad(part, ((0, size - len(part)), (0, 0))).astype(np.float32)
        nearness, neighbours = merge(
            nearness, neighbours, queries, padded, np.int32(start), np.int32(len(part))
        )
    kth = np.asarray(neighbours[:, -1])
    # again in float64: a small distance is a difference of inner products near 1
    return -np.linalg.norm(_normalised(features) - _normalised(bank[kth]), axis=-1)


@functools.cache
def _compiled_merge() -> Callable:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def merge(nearness, neighbours, queries, part, start, length):
        """The k nearest of the k found so far and of the first ``length`` rows of a part of the bank."""
        row = jnp.arange(len(part), dtype=jnp.int32)
        inner = jnp.matmul(queries, part.T, precision="highest")
        near = inner - jnp.sum(part**2, axis=-1)[None, :] / 2  # a feature of zeros has no unit norm
        near = jnp.where((row < length)[None, :], near, -jnp.inf)
        index = jnp.broadcast_to((start + row)[None, :], near.shape)
        near = jnp.concatenate([nearness, near], axis=1)
        best, position = jax.lax.top_k(near, nearness.shape[1])
        index = jnp.concatenate([neighbours, index], axis=1)
        return best, jnp.take_along_axis(index, position, axis=1)

    return merge


@np.errstate(invalid="ignore")
def _normalised(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(norms == 0, 1, norms)
