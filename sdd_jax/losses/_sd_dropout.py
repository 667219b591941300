"""SD-Dropout: a network distils itself between dropout masks on its penultimate features."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from sdd_jax.dropout import Rate, dropout, dropout_samples
from sdd_jax.losses._arguments import HeadFn, check_samples, logits_of_head
from sdd_jax.losses._divergence import kl_divergence, pairwise_symmetric_kl, symmetric_kl

# (z_u, z_v, *, temperature, gradient, where) to one value per location.
Divergence = Callable[..., jax.Array]


def sd_dropout_loss(
    features: jax.Array,
    head_fn: HeadFn,
    key: jax.Array,
    *,
    rate: Rate = 0.5,
    temperature: float | jax.Array = 3.0,
    num_samples: int = 2,
    gradient: str = "both",
    broadcast_dims: Sequence[int] = (),
    exclusive: bool = False,
    where: jax.Array | None = None,
    divergence: Divergence = symmetric_kl,
) -> jax.Array:
    r"""Computes the SD-Dropout loss: the symmetric KL divergence of posteriors of dropped features.

    .. math:: T^2 \left[\mathrm{KL}(p_u \| p_v) + \mathrm{KL}(p_v \| p_u)\right], \qquad
              p_u = \mathrm{softmax}(h(u \odot f) / T)

    with independent dropout masks u and v. Add its mean, times a weight (1 in the paper when used
    alone), to the cross-entropy of the undropped logits. The backbone runs once; the head runs on all
    masks in one call.

    Args:
      features: penultimate features ``[B, ..., D]`` (or ``[D]``, under vmap).
      head_fn: the last layer, any function of features ``[N, ..., D]`` to logits ``[N, ..., K]``.
      key: a PRNG key, or one key per example.
      rate: dropout rate in [0, 1), or ``(low, high)`` for a random rate.
      temperature: T > 0.
      num_samples: number of masks, at least 2; the loss is the mean over their pairs.
      gradient: "both", "forward" or "reverse", see :func:`sdd_jax.symmetric_kl`.
      broadcast_dims: dimensions of the features along which a mask is shared: ``(1, 2)`` drops whole
        channels of ``[B, H, W, D]``.
      exclusive: draw disjoint masks, see :func:`sdd_jax.dropout_samples`.
      where: boolean, broadcast to the logits; what is False is ignored. ``[K]`` selects classes, and
        ``[B, ..., 1]`` locations: at the others the loss is zero, and so is the gradient with respect to
        the logits, whatever these are.
      divergence: of two logits, to be multiplied by T^2: :func:`sdd_jax.symmetric_kl` for softmax heads,
        :func:`sdd_jax.symmetric_bernoulli_kl` for sigmoids, :func:`sdd_jax.squared_error` for regression
        and embeddings, or another function with the same arguments.

    Returns:
      Loss ``[B, ...]`` in nats, one per example or, if its features have locations, per location. See
      :func:`sdd_jax.sum_and_count` for the mean where some are padding.

    Raises:
      ValueError: rate outside [0, 1), temperature not positive, fewer than two masks, an unknown
        gradient, exclusive masks that do not fit, or another number of examples from head_fn.
      TypeError: key not a PRNG key, features not floating-point, or head_fn returns no array.

    Example:
      >>> import jax, sdd_jax
      >>> features, kernel = jax.numpy.ones((4, 8)), jax.numpy.ones((8, 3))
      >>> loss = sdd_jax.sd_dropout_loss(features, lambda f: f @ kernel, jax.random.key(0))
      >>> loss.shape
      (4,)

    References:
      Lee et al., `Self-Knowledge Distillation via Dropout <https://arxiv.org/abs/2208.05642>`_, 2022,
      section 3.
    """
    logits = dropped_logits(
        features,
        head_fn,
        key,
        rate=rate,
        num_samples=num_samples,
        broadcast_dims=broadcast_dims,
        exclusive=exclusive,
    )
    return sd_dropout_loss_from_logits(
        logits, temperature=temperature, gradient=gradient, where=where, divergence=divergence
    )


def sd_dropout_loss_from_logits(
    logits: Sequence[jax.Array],
    *,
    temperature: float | jax.Array = 3.0,
    gradient: str = "both",
    where: jax.Array | None = None,
    divergence: Divergence = symmetric_kl,
) -> jax.Array:
    r"""Computes the SD-Dropout loss from the logits of dropped features.

    .. math:: \frac{2 T^2}{n (n - 1)} \sum_{i < j}
              \left[\mathrm{KL}(p_i \| p_j) + \mathrm{KL}(p_j \| p_i)\right], \qquad
              p = \mathrm{softmax}(z / T)

    :func:`sdd_jax.sd_dropout_loss` draws the masks, calls the head and returns this. Call it directly
    where the logits come from elsewhere: masks inside the network, or one mask on each of two views.

    Args:
      logits: n >= 2 arrays ``[..., K]``, one for each mask.
      temperature: T > 0.
      gradient: "both", "forward" or "reverse", see :func:`sdd_jax.symmetric_kl`.
      where: boolean, broadcast to the logits; what is False is ignored.
      divergence: of a pair of logits, see :func:`sdd_jax.sd_dropout_loss`.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: fewer than two masks, shapes that differ, temperature not positive, or an unknown
        gradient.

    Example:
      >>> import jax, sdd_jax
      >>> features, kernel = jax.numpy.ones((4, 8)), jax.numpy.ones((8, 3))
      >>> u, v = sdd_jax.dropout_pair(jax.random.key(0), features, rate=0.5)
      >>> sdd_jax.sd_dropout_loss_from_logits([u @ kernel, v @ kernel]).shape
      (4,)

    References:
      Lee et al., `Self-Knowledge Distillation via Dropout <https://arxiv.org/abs/2208.05642>`_, 2022,
      section 3.
    """
    options = {"temperature": temperature, "gradient": gradient, "where": where}
    if divergence is symmetric_kl:  # whose mean over pairs takes no loop over pairs
        mean = pairwise_symmetric_kl(logits, **options)
    else:
        mean = _mean_over_pairs(partial(divergence, **options), logits)
    return temperature**2 * mean


def sd_dropout_clean_student_loss(
    features: jax.Array,
    head_fn: HeadFn,
    key: jax.Array,
    *,
    rate: Rate = 0.5,
    temperature: float | jax.Array = 3.0,
    gradient: str = "both",
    broadcast_dims: Sequence[int] = (),
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the authors' one-mask variant, where the dropped posterior teaches the clean one.

    .. math:: T^2\, \mathrm{KL}(p_u \| p), \qquad
              p_u = \mathrm{softmax}(h(u \odot f) / T), \quad p = \mathrm{softmax}(h(f) / T)

    Args:
      features: penultimate features ``[B, ..., D]`` (or ``[D]``, under vmap).
      head_fn: features ``[N, ..., D]`` to logits ``[N, ..., K]``.
      key: a PRNG key, or one key per example.
      rate: dropout rate in [0, 1), or ``(low, high)``.
      temperature: T > 0.
      gradient: "forward" stops the gradient at the dropped posterior, "reverse" at the clean one.
      broadcast_dims: dimensions of the features along which a mask is shared.
      where: boolean, broadcast to the logits; what is False is ignored.

    Returns:
      Per-example loss ``[B, ...]`` in nats.

    Raises:
      ValueError, TypeError: as :func:`sdd_jax.sd_dropout_loss`.

    Example:
      >>> import jax, sdd_jax
      >>> features, kernel = jax.numpy.ones((4, 8)), jax.numpy.ones((8, 3))
      >>> head_fn = lambda f: f @ kernel
      >>> sdd_jax.sd_dropout_clean_student_loss(features, head_fn, jax.random.key(0)).shape
      (4,)
    """
    dropped = dropout(key, features, rate=rate, broadcast_dims=broadcast_dims)
    teacher = logits_of_head(head_fn, dropped)
    # Not stacked: XLA shares these with the cross-entropy's logits.
    student = logits_of_head(head_fn, features)
    divergence = kl_divergence(
        teacher, student, temperature=temperature, gradient=gradient, where=where
    )
    return temperature**2 * divergence


def dropped_logits(
    features: jax.Array,
    head_fn: HeadFn,
    key: jax.Array,
    *,
    rate: Rate = 0.5,
    num_samples: int = 2,
    broadcast_dims: Sequence[int] = (),
    exclusive: bool = False,
) -> list[jax.Array]:
    """Computes the head's logits for several dropout masks on the features, in one call of the head.

    Args:
      features: ``[B, ..., D]`` (or ``[D]``, under vmap).
      head_fn: features ``[N, ..., D]`` to logits ``[N, ..., K]``.
      key: a PRNG key, or one key per example.
      rate: dropout rate in [0, 1), or ``(low, high)``.
      num_samples: number of masks.
      broadcast_dims: dimensions of the features along which a mask is shared.
      exclusive: draw disjoint masks.

    Returns:
      ``num_samples`` arrays of logits ``[B, ..., K]``.

    Raises:
      ValueError, TypeError: as :func:`sdd_jax.dropout_samples`; also if head_fn returns no array, or
        another number of examples.

    Example:
      >>> import jax, sdd_jax
      >>> features, kernel = jax.numpy.ones((4, 8)), jax.numpy.ones((8, 3))
      >>> logits = sdd_jax.dropped_logits(features, lambda f: f @ kernel, jax.random.key(0))
      >>> [z.shape for z in logits]
      [(4, 3), (4, 3)]
    """
    dropped = dropout_samples(
        key,
        features,
        rate=rate,
        num_samples=num_samples,
        broadcast_dims=broadcast_dims,
        exclusive=exclusive,
    )
    return head_of_each(head_fn, dropped)


def head_of_each(head_fn: HeadFn, samples: Sequence[jax.Array]) -> list[jax.Array]:
    """Computes the logits of n arrays of features in one call of the head.

    The head gets one batch of the usual rank, ``[B * n, ..., D]``, in which the n samples of an example
    are adjacent, so that a batch sharded over devices stays in place. (Single features, ``[D]``, take
    one call each.)

    Args:
      head_fn: features ``[N, ..., D]`` to logits ``[N, ..., K]``.
      samples: n arrays ``[B, ..., D]`` (or ``[D]``, under vmap).

    Returns:
      n arrays ``[B, ..., K]``.

    Raises:
      TypeError: head_fn returns something else than an array.
      ValueError: head_fn returns another number of examples.

    Example:
      >>> import jax.numpy as jnp
      >>> from sdd_jax import losses
      >>> kernel = jnp.ones((8, 3))
      >>> logits = losses.head_of_each(lambda f: f @ kernel, [jnp.ones((4, 8)), jnp.zeros((4, 8))])
      >>> [z.shape for z in logits]
      [(4, 3), (4, 3)]
    """
    first = samples[0]
    if first.ndim == 1:
        return [logits_of_head(head_fn, features) for features in samples]
    batch, count = first.shape[0], len(samples)
    stacked = jnp.stack(samples, axis=1).reshape(batch * count, *first.shape[1:])
    logits = logits_of_head(head_fn, stacked)
    logits = logits.reshape(batch, count, *logits.shape[1:])
    return [logits[:, s] for s in range(count)]


def _mean_over_pairs(divergence: Divergence, logits: Sequence[jax.Array]) -> jax.Array:
    check_samples(logits)
    if len(logits) == 2:
        return divergence(*logits)
    first, second = zip(*itertools.combinations(logits, 2), strict=True)
    return jnp.mean(jax.vmap(divergence)(jnp.stack(first), jnp.stack(second)), axis=0)
