"""SD-Dropout: a network distils itself between two dropout masks on its penultimate features."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sdd_jax.dropout import Rate, dropout, dropout_samples
from sdd_jax.losses._divergence import kl_divergence, symmetric_kl

HeadFn = Callable[[jax.Array], jax.Array]


def sd_dropout_loss(
    features: jax.Array,
    head_fn: HeadFn,
    key: jax.Array,
    *,
    rate: Rate = 0.5,
    temperature: float = 3.0,
    num_samples: int = 2,
    gradient: str = "both",
    exclusive: bool = False,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""The SD-Dropout loss: symmetric KL divergence between the posteriors of dropped features.

    .. math:: T^2 \left[\mathrm{KL}(p_u \| p_v) + \mathrm{KL}(p_v \| p_u)\right], \qquad
              p_u = \mathrm{softmax}(h(u \odot f) / T)

    with independent dropout masks u and v. Add its mean, times a weight (1 in the paper when used
    alone), to the cross-entropy of the undropped logits. The backbone runs once; the head runs on all
    masks in one call.

    Args:
      features: penultimate features ``[B, ..., D]`` (or ``[D]``, under vmap).
      head_fn: the last layer, features ``[N, ..., D]`` to logits ``[N, ..., K]``; any function.
      key: a PRNG key, or one key per example.
      rate: dropout rate in [0, 1), or ``(low, high)`` for a random rate.
      temperature: T > 0.
      num_samples: number of masks, at least 2; the loss is the mean over their pairs.
      gradient: "both", "forward" or "reverse", see :func:`sdd_jax.symmetric_kl`.
      exclusive: draw disjoint masks, see :func:`sdd_jax.dropout_samples`.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example loss ``[B, ...]`` in nats.

    Raises:
      ValueError: rate outside [0, 1), temperature not positive, fewer than two masks, an unknown
        gradient, or exclusive masks that do not fit.

    Example:
      >>> import jax, sdd_jax
      >>> features, kernel = jax.numpy.ones((4, 8)), jax.numpy.ones((8, 3))
      >>> loss = sdd_jax.sd_dropout_loss(features, lambda f: f @ kernel, jax.random.key(0))
      >>> loss.shape
      (4,)

    References:
      Lee et al., `Self-Knowledge Distillation via Dropout <https://arxiv.org/abs/2208.05642>`_, 2022:
      the loss of section 3.
    """
    logits = dropped_logits(
        features, head_fn, key, rate=rate, num_samples=num_samples, exclusive=exclusive
    )
    divergence = pairwise_symmetric_kl(
        logits, temperature=temperature, gradient=gradient, where=where
    )
    return temperature**2 * divergence


def dropped_logits(
    features: jax.Array,
    head_fn: HeadFn,
    key: jax.Array,
    *,
    rate: Rate = 0.5,
    num_samples: int = 2,
    exclusive: bool = False,
) -> list[jax.Array]:
    """Logits of the head for several dropout masks on the features, in one call of the head.

    Args:
      features: ``[B, ..., D]`` (or ``[D]``, under vmap).
      head_fn: features ``[N, ..., D]`` to logits ``[N, ..., K]``.
      key: a PRNG key, or one key per example.
      rate: dropout rate in [0, 1), or ``(low, high)``.
      num_samples: number of masks.
      exclusive: draw disjoint masks.

    Returns:
      ``num_samples`` arrays of logits ``[B, ..., K]``.

    Raises:
      ValueError: as :func:`sdd_jax.dropout_samples`.
    """
    dropped = dropout_samples(
        key, features, rate=rate, num_samples=num_samples, exclusive=exclusive
    )
    return head_of_each(head_fn, dropped)


def head_of_each(head_fn: HeadFn, samples: Sequence[jax.Array]) -> list[jax.Array]:
    """The logits of several arrays of features, in one call of the head.

    Args:
      head_fn: features ``[N, ..., D]`` to logits ``[N, ..., K]``.
      samples: arrays ``[B, ..., D]`` (or ``[D]``, under vmap).

    Returns:
      As many arrays ``[B, ..., K]``.
    """
    first = samples[0]
    if first.ndim == 1:
        return [head_fn(features) for features in samples]
    # The head sees one batch of rows of the rank it is used to. An example's samples lie next to each
    # other, so a batch that is sharded over devices stays where it is.
    batch, count = first.shape[0], len(samples)
    stacked = jnp.stack(samples, axis=1).reshape(batch * count, *first.shape[1:])
    logits = head_fn(stacked)
    logits = logits.reshape(batch, count, *logits.shape[1:])
    return [logits[:, s] for s in range(count)]


def pairwise_symmetric_kl(
    logits: list[jax.Array],
    *,
    temperature: float = 1.0,
    gradient: str = "both",
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Mean of :func:`sdd_jax.symmetric_kl` over all pairs of several posteriors.

    .. math:: \frac{2}{n (n - 1)} \sum_{i < j}
              \left[\mathrm{KL}(p_i \| p_j) + \mathrm{KL}(p_j \| p_i)\right]

    Args:
      logits: n >= 2 arrays ``[..., K]``.
      temperature: T > 0.
      gradient: "both", "forward" or "reverse".
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example divergence ``[...]`` in nats.

    Raises:
      ValueError: fewer than two posteriors.
    """
    if len(logits) < 2:
        raise ValueError(f"num_samples must be at least 2, got {len(logits)}")
    divergences = [
        symmetric_kl(u, v, temperature=temperature, gradient=gradient, where=where)
        for u, v in itertools.combinations(logits, 2)
    ]
    return sum(divergences[1:], start=divergences[0]) / len(divergences)


def sd_dropout_clean_student_loss(
    features: jax.Array,
    head_fn: HeadFn,
    key: jax.Array,
    *,
    rate: Rate = 0.5,
    temperature: float = 3.0,
    gradient: str = "both",
    where: jax.Array | None = None,
) -> jax.Array:
    r"""The authors' one-mask variant: the dropped posterior teaches the clean one.

    .. math:: T^2\, \mathrm{KL}(p_u \| p), \qquad
              p_u = \mathrm{softmax}(h(u \odot f) / T), \quad p = \mathrm{softmax}(h(f) / T)

    Args:
      features: penultimate features ``[B, ..., D]``.
      head_fn: features to logits ``[B, ..., K]``.
      key: a PRNG key, or one key per example.
      rate: dropout rate in [0, 1), or ``(low, high)``.
      temperature: T > 0.
      gradient: "forward" stops the gradient at the dropped posterior, "reverse" at the clean one.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example loss ``[B, ...]`` in nats.

    Raises:
      ValueError: rate outside [0, 1), temperature not positive, or an unknown gradient.
    """
    teacher = head_fn(dropout(key, features, rate=rate))
    divergence = kl_divergence(
        teacher, head_fn(features), temperature=temperature, gradient=gradient, where=where
    )
    return temperature**2 * divergence
