"""Losses of a linear head with many classes, which never hold an array of examples times classes.

The classes pass by in chunks, once forward and once backward. Forward, what is known of the classes
seen so far (for each example a normaliser and a divergence, or the logit of the label) is joined with
what the next chunk says. Backward, the logits of a chunk are computed again, become their own gradient
in closed form, and are summed into the gradients of features and head. A matrix product more than the
plain loss, for a memory that grows with the chunk and not with the number of classes.

References:
  Milakov and Gimelshein, `Online normalizer calculation for softmax
  <https://arxiv.org/abs/1805.02867>`_, 2018.

  Wijmans et al., `Cut Your Losses in Large-Vocabulary Language Models
  <https://arxiv.org/abs/2411.09009>`_, 2025: the cross-entropy by recomputed blocks of logits.
"""

import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.dropout import Rate, dropout_samples
from sdd_jax.losses._divergence import GRADIENTS

CHUNK_SIZE = 4096


def linear_cross_entropy(
    features: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> jax.Array:
    r"""The cross-entropy of a linear head, in the memory of one chunk of its classes.

    .. math:: -\log p_y, \qquad p = \mathrm{softmax}(f W + b)

    Equal to ``cross_entropy(features @ kernel + bias, labels)`` in value and gradients.

    Args:
      features: ``[..., D]``.
      kernel: W, ``[D, K]``.
      bias: b, ``[K]``, or None.
      labels: integers ``[...]`` in [0, K). The loss at another number, such as the -100 of positions
        that do not count, means nothing but is finite, as are its gradients: leave it out of the mean.
      chunk_size: classes at a time. The largest temporary arrays are ``[..., chunk_size]``.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: shapes that do not fit, or chunk_size below 1.
      TypeError: features or head not floating-point, or labels not integers.

    References:
      Wijmans et al., `Cut Your Losses in Large-Vocabulary Language Models
      <https://arxiv.org/abs/2411.09009>`_, 2025, sections 3 and 4, without its filter of small
      gradients.
    """
    _check(features, kernel, bias, chunk_size)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != features.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of features without the last axis, {features.shape[:-1]}, "
            f"got {labels.shape}"
        )
    features, head, labels = _vary_alike((features, (kernel, bias), labels.astype(jnp.int32)))
    return _cross_entropy(features, head, labels, chunk_size)


def linear_sd_dropout_loss(
    features: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    key: jax.Array,
    *,
    rate: Rate = 0.5,
    temperature: float = 3.0,
    gradient: str = "both",
    exclusive: bool = False,
    chunk_size: int = CHUNK_SIZE,
) -> jax.Array:
    r"""The SD-Dropout loss of a linear head, in the memory of one chunk of its classes.

    .. math:: T^2 \left[\mathrm{KL}(p_u \| p_v) + \mathrm{KL}(p_v \| p_u)\right], \qquad
              p_u = \mathrm{softmax}\left(((u \odot f) W + b) / T\right)

    Equal to :func:`sdd_jax.sd_dropout_loss` with the head ``lambda f: f @ kernel + bias``, the same key
    and two masks, in value and gradients; for vocabularies so large that the logits of a batch do not
    fit. Add its mean, times a weight, to that of :func:`sdd_jax.linear_cross_entropy`.

    Differentiate it in reverse (``grad``), not forward (``jvp``). Call it on batches: ``vmap`` over
    single examples is right, but its gradient by the kernel first holds one kernel for each of them.

    Args:
      features: penultimate features ``[..., D]``.
      kernel: W, ``[D, K]``. Of an embedding table ``[K, D]``, its transpose. Products are taken in the
        wider dtype of features and kernel, and summed in float32 if that is half precision.
      bias: b, ``[K]``, or None. To leave a class out, make it a large negative number such as -1e9,
        not minus infinity.
      key: a PRNG key, or one key per example.
      rate: dropout rate in [0, 1), or ``(low, high)`` for a random rate.
      temperature: T > 0; may be traced, but has no gradient.
      gradient: "both", "forward" or "reverse", see :func:`sdd_jax.symmetric_kl`.
      exclusive: draw disjoint masks, see :func:`sdd_jax.dropout_samples`.
      chunk_size: classes at a time; K need not be a multiple. The largest temporary arrays are
        ``[2, ..., chunk_size]``.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: rate outside [0, 1), temperature not positive, an unknown gradient, exclusive masks
        that do not fit, shapes that do not fit, or chunk_size below 1.
      TypeError: features or head not floating-point.

    Example:
      >>> import jax, sdd_jax
      >>> features, kernel = jax.numpy.ones((4, 8)), jax.numpy.ones((8, 50_000))
      >>> loss = sdd_jax.linear_sd_dropout_loss(features, kernel, None, jax.random.key(0))
      >>> loss.shape
      (4,)

    References:
      Lee et al., `Self-Knowledge Distillation via Dropout <https://arxiv.org/abs/2208.05642>`_, 2022:
      the loss of section 3.
    """
    _check(features, kernel, bias, chunk_size)
    if isinstance(temperature, numbers.Real) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be greater than 0 and finite, got {temperature}")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
    # Outside of the custom derivative: the masks are differentiated like any others.
    pair = jnp.stack(dropout_samples(key, features, rate=rate, num_samples=2, exclusive=exclusive))
    temperature = jnp.asarray(temperature, _dtypes(features, kernel)[1])
    pair, head, temperature = _vary_alike((pair, (kernel, bias), temperature))
    temperature = jax.lax.stop_gradient(temperature)
    return temperature**2 * _symmetric_kl(pair, head, temperature, gradient, chunk_size)


# --------------------------------------------------------------------------- cross-entropy


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(features, head, labels, chunk_size):
    return _cross_entropy_forward(features, head, labels, chunk_size)[0]


def _cross_entropy_forward(features, head, labels, chunk_size):
    def statistics(logits, start):
        at_label = jnp.where(_is_label(labels, start, logits), logits, 0)
        return _normaliser(logits), jnp.sum(at_label, axis=-1)

    def join(seen, new):
        return _join(seen[0], new[0])[0], seen[1] + new[1]

    normaliser, label_logit = _fold(features, head, statistics, join, chunk_size)
    loss = normaliser.log_sum - (label_logit - normaliser.largest)
    return loss, (features, head, labels, normaliser)


def _cross_entropy_backward(chunk_size, residuals, cotangent):
    features, head, labels, normaliser = residuals

    def logit_gradient(logits, start):
        posterior = jnp.exp(_log_posterior(logits, normaliser))
        label = _is_label(labels, start, logits).astype(logits.dtype)
        return cotangent[..., None] * (posterior - label)

    return *_gradients(features, head, logit_gradient, chunk_size), None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _is_label(labels, start, logits):
    """Whether a class of the chunk is the label, ``[..., C]``."""
    return jax.nn.one_hot(labels - start, logits.shape[-1], dtype=bool)


# --------------------------------------------------------------------------- SD-Dropout


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _symmetric_kl(pair, head, temperature, gradient, chunk_size):
    """Of the posteriors of ``pair``, features ``[2, ..., D]``, without the factor T^2: ``[...]``."""
    return _symmetric_kl_forward(pair, head, temperature, gradient, chunk_size)[0]


def _symmetric_kl_forward(pair, head, temperature, gradient, chunk_size):
    """The value; residuals of the size of the features: they, two normalisers, two divergences."""

    def statistics(logits, start):
        normaliser = _normaliser(logits / temperature)
        log_p = _log_posterior(logits / temperature, normaliser)
        return normaliser, jnp.sum(jnp.exp(log_p) * (log_p - _other(log_p)), axis=-1)

    def join(seen, new):
        # The chain rule of the divergence: within each set of classes, and between the sets.
        normaliser, log_shares = _join(seen[0], new[0])
        divergence = sum(
            jnp.exp(log_share) * (within + log_share - _other(log_share))
            for log_share, within in zip(log_shares, (seen[1], new[1]), strict=True)
        )
        return normaliser, divergence

    normaliser, kl = _fold(pair, head, statistics, join, chunk_size)
    return kl[0] + kl[1], (pair, head, temperature, normaliser, kl)


def _symmetric_kl_backward(gradient, chunk_size, residuals, cotangent):
    r"""Of each posterior p and the other, q, by the logits :math:`z = T \log p + \ldots` of p.

    .. math:: T \, \partial\, \mathrm{KL}(q \| p) / \partial z_c = p_c - q_c, \qquad
              T \, \partial\, \mathrm{KL}(p \| q) / \partial z_c =
              p_c \left(\log p_c - \log q_c - \mathrm{KL}(p \| q)\right)

    the first with p as the prediction, "forward", the second with p as the target, "reverse".
    """
    pair, head, temperature, normaliser, kl = residuals
    scale = (cotangent / temperature)[None, ..., None]

    def logit_gradient(logits, start):
        log_p = _log_posterior(logits / temperature, normaliser)
        p = jnp.exp(log_p)
        as_prediction = p - _other(p)
        as_target = p * (log_p - _other(log_p) - kl[..., None])
        of = {"forward": as_prediction, "reverse": as_target, "both": as_prediction + as_target}
        return scale * of[gradient]

    return *_gradients(pair, head, logit_gradient, chunk_size), None


_symmetric_kl.defvjp(_symmetric_kl_forward, _symmetric_kl_backward)


def _other(x):
    """Of a pair ``[2, ...]``, for each the other."""
    return x[::-1]


# --------------------------------------------------------------------------- chunks of a linear head

_Head = tuple[jax.Array, jax.Array | None]  # kernel [D, K], bias [K]


def _fold(
    features: jax.Array, head: _Head, statistics: Callable, join: Callable, chunk_size: int
) -> Any:
    """Joins ``statistics(logits, start)`` of all chunks, where ``start`` is a chunk's first class."""

    def step(seen, start, size):
        new = statistics(_logits(features, _chunk(head, start, size)), start)
        return new if seen is None else join(seen, new)

    return _over_chunks(step, None, head, chunk_size)


def _gradients(
    features: jax.Array, head: _Head, logit_gradient: Callable, chunk_size: int
) -> tuple[jax.Array, _Head]:
    """Gradients by features and head, given ``logit_gradient(logits, start)`` of each chunk."""
    rows = tuple(range(features.ndim - 1))
    narrow, wide = _dtypes(features, head[0])

    def step(sums, start, size):
        of_features, of_head = sums
        kernel, bias = chunk = _chunk(head, start, size)
        of_logits = logit_gradient(_logits(features, chunk), start)
        of_bias = None if bias is None else jnp.sum(of_logits, axis=rows)
        of_logits = of_logits.astype(narrow)
        product = partial(jnp.tensordot, preferred_element_type=wide)
        of_kernel = product(features.astype(narrow), of_logits, (rows, rows))
        of_features += product(of_logits, kernel.astype(narrow), (-1, -1))
        of_head = jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(
                whole, part.astype(whole.dtype), start, axis=-1
            ),
            of_head,
            (of_kernel, of_bias),
        )
        return of_features, of_head

    zeros = jnp.zeros_like(features, wide), jax.tree.map(jnp.zeros_like, head)
    of_features, of_head = _over_chunks(step, zeros, head, chunk_size)
    return of_features.astype(features.dtype), of_head


def _over_chunks(step: Callable, state: Any, head: _Head, chunk_size: int) -> Any:
    """Passes ``state`` through ``step(state, start, size)``; the first chunk takes up what is over."""
    num_classes = head[0].shape[-1]
    chunk_size = min(chunk_size, num_classes)
    first = (num_classes - 1) % chunk_size + 1
    state = step(state, 0, first)
    starts = np.arange(first, num_classes, chunk_size, dtype=np.int32)
    if not starts.size:
        return state
    state, _ = jax.lax.scan(lambda s, start: (step(s, start, chunk_size), None), state, starts)
    return state


def _chunk(head: _Head, start: int | jax.Array, size: int) -> _Head:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=-1), head)


def _logits(features: jax.Array, head: _Head) -> jax.Array:
    kernel, bias = head
    narrow, wide = _dtypes(features, kernel)
    logits = jnp.tensordot(
        features.astype(narrow), kernel.astype(narrow), 1, preferred_element_type=wide
    )
    if bias is None:
        return logits
    return logits + jnp.broadcast_to(bias.astype(wide), logits.shape)


class _Normaliser(NamedTuple):
    """log sum exp of logits, in two parts: together, large logits would cost digits."""

    largest: jax.Array
    log_sum: jax.Array  # of exp(logits - largest)


def _normaliser(logits: jax.Array) -> _Normaliser:
    largest = jnp.max(logits, axis=-1)
    return _Normaliser(largest, jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)))


def _join(*parts: _Normaliser) -> tuple[_Normaliser, list[jax.Array]]:
    """The normaliser of two sets of classes, and the logarithms of their shares of the posterior."""
    largest = jnp.maximum(*(part.largest for part in parts))
    log_sums = [part.log_sum + (part.largest - largest) for part in parts]
    log_sum = jnp.logaddexp(*log_sums)
    return _Normaliser(largest, log_sum), [part - log_sum for part in log_sums]


def _log_posterior(logits: jax.Array, normaliser: _Normaliser) -> jax.Array:
    return (logits - normaliser.largest[..., None]) - normaliser.log_sum[..., None]


def _dtypes(features: jax.Array, kernel: jax.Array) -> tuple[jnp.dtype, jnp.dtype]:
    """Those of the factors of a product with the kernel, and of its sum."""
    with jax.numpy_dtype_promotion("standard"):
        narrow = jnp.promote_types(features.dtype, kernel.dtype)
        return narrow, jnp.promote_types(narrow, jnp.float32)


def _vary_alike(arrays: Any) -> Any:
    """Inside ``shard_map``, where a gradient must differ between devices just as its array does."""
    axes = frozenset.union(*(jax.typeof(x).mat.varying for x in jax.tree.leaves(arrays)))

    def cast(x):
        return jax.lax.pcast(x, tuple(axes - jax.typeof(x).mat.varying), to="varying")

    return jax.tree.map(cast, arrays) if axes else arrays


def _check(features, kernel, bias, chunk_size):
    for array in jax.tree.leaves((features, kernel, bias)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"features, kernel and bias must be floating-point, got {array.dtype}")
    if kernel.ndim != 2 or features.ndim < 1 or features.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"features must be [..., D] and kernel [D, K], got {features.shape} and {kernel.shape}"
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias must be [K], {kernel.shape[1:]}, or None, got {bias.shape}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
