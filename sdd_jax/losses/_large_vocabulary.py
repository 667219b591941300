"""Losses of a linear head with many classes, without an array of examples times classes.

The classes are processed in chunks, in one pass forward and one backward. The forward pass keeps running
statistics per example (a normaliser, and a divergence or the logit of the label) and joins those of each
chunk to them, and likewise those of devices that have other classes. The backward pass recomputes the
logits of a chunk, turns them into their gradient in closed form, and adds its products to the gradients
of features and head. This costs one more matrix product than the plain loss; memory grows with the chunk
instead of the number of classes. In between, ``kept_classes`` keeps the logits of some chunks.

References:
  Milakov and Gimelshein, `Online normalizer calculation for softmax
  <https://arxiv.org/abs/1805.02867>`_, 2018.

  Wijmans et al., `Cut Your Losses in Large-Vocabulary Language Models
  <https://arxiv.org/abs/2411.09009>`_, 2025: the cross-entropy by recomputed blocks of logits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from sdd_jax.dropout import Rate, dropout_pair
from sdd_jax.losses._arguments import check_gradient, check_temperature, stop_gradients

CHUNK_SIZE = 4096


def linear_cross_entropy(
    features: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    *,
    axis_name: str | None = None,
    chunk_size: int = CHUNK_SIZE,
    kept_classes: int = 0,
) -> jax.Array:
    r"""Computes the cross-entropy of a linear head, in the memory of one chunk of its classes.

    .. math:: -\log p_y, \qquad p = \mathrm{softmax}(f W + b)

    Equal to ``cross_entropy(features @ kernel + bias, labels)`` in value and derivatives. Its gradient
    is custom: differentiate it in reverse mode (``grad``); JAX refuses forward mode (``jvp``). Higher
    derivatives (``jvp`` or ``grad`` of ``grad``) are exact, but take memory for examples times classes.

    On an explicit mesh, within ``jax.set_mesh``, the examples and the kernel's D may be sharded; the
    gradients have the shardings of their arrays.

    Args:
      features: ``[..., D]``.
      kernel: W, ``[D, K]``.
      bias: b, ``[K]``, or None. To exclude a class, set it to a large negative number such as -1e9, not
        to minus infinity.
      labels: integers ``[...]`` in [0, K). At ignored positions, another number such as -100 gives a
        finite loss and finite gradients, without meaning: exclude them from the mean.
      axis_name: name of the mesh axis that the classes are sharded over, for a call within ``shard_map``
        or ``pmap``: each device has the kernel ``[D, K/n]`` and bias of its classes, in order, and all
        have the same features and
        labels. None: each has all classes.
      chunk_size: number of classes per chunk. The largest temporary arrays are ``[..., chunk_size]``.
      kept_classes: number of classes whose logits are kept for the gradient, in whole chunks, instead of
        being computed twice: an array ``[..., kept_classes]`` in addition. K or more: all.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: shapes that do not fit, chunk_size below 1, or kept_classes below 0.
      TypeError: features or head not floating-point, or labels not integers.

    Example:
      >>> import jax, sdd_jax
      >>> features, kernel = jax.numpy.ones((4, 8)), jax.numpy.ones((8, 50_000))
      >>> labels = jax.numpy.zeros(4, int)
      >>> print(sdd_jax.linear_cross_entropy(features, kernel, None, labels)[0])  # log 50,000
      10.819778

    References:
      Wijmans et al., `Cut Your Losses in Large-Vocabulary Language Models
      <https://arxiv.org/abs/2411.09009>`_, 2025, sections 3 and 4, without gradient filtering.
    """
    _check(features, kernel, bias, chunk_size, kept_classes)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != features.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of features without the last axis, {features.shape[:-1]}, "
            f"got {labels.shape}"
        )
    labels = labels.astype(jnp.int32)
    features, head, labels = _vary_alike((features, (kernel, bias), labels), axis_name)
    if axis_name is not None:  # the index among this device's classes
        labels -= jax.lax.axis_index(axis_name) * kernel.shape[-1]
    return _cross_entropy(features, head, labels, axis_name, _Chunks(chunk_size, kept_classes))


def linear_sd_dropout_loss(
    features: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    key: jax.Array,
    *,
    rate: Rate = 0.5,
    temperature: float | jax.Array = 3.0,
    gradient: str = "both",
    broadcast_dims: Sequence[int] = (),
    exclusive: bool = False,
    axis_name: str | None = None,
    chunk_size: int = CHUNK_SIZE,
    kept_classes: int = 0,
) -> jax.Array:
    r"""Computes the SD-Dropout loss of a linear head, in the memory of one chunk of its classes.

    .. math:: T^2 \left[\mathrm{KL}(p_u \| p_v) + \mathrm{KL}(p_v \| p_u)\right], \qquad
              p_u = \mathrm{softmax}\left(((u \odot f) W + b) / T\right)

    Equal to :func:`sdd_jax.sd_dropout_loss` with the head ``lambda f: f @ kernel + bias``, the same key
    and two masks, in value and derivatives; for vocabularies so large that the logits of a batch do not
    fit. Add its mean, times a weight, to that of :func:`sdd_jax.linear_cross_entropy`.

    Differentiate it in reverse mode; higher derivatives and explicit meshes are as for
    :func:`sdd_jax.linear_cross_entropy`, and what "forward" or "reverse" stops stays constant in every
    derivative. Call it on batches: ``vmap`` over single examples is correct, but its gradient with
    respect to the kernel allocates one kernel per example.

    Args:
      features: penultimate features ``[..., D]``.
      kernel: W, ``[D, K]``; for an embedding table ``[K, D]``, its transpose. Products are taken in the
        wider dtype of features and kernel, and summed in float32 if that is half precision.
      bias: b, ``[K]``, or None. To exclude a class, set it to a large negative number such as -1e9, not
        to minus infinity.
      key: a PRNG key, or one key per example.
      rate: dropout rate in [0, 1), or ``(low, high)`` for a random rate.
      temperature: T > 0; may be traced, but its gradient is zero.
      gradient: "both", "forward" or "reverse", see :func:`sdd_jax.symmetric_kl`.
      broadcast_dims: dimensions of the features along which a mask is shared: ``(1,)`` for all tokens of
        ``[B, S, D]``.
      exclusive: draw disjoint masks, see :func:`sdd_jax.dropout_samples`.
      axis_name: name of the mesh axis that the classes are sharded over, for a call within ``shard_map``
        or ``pmap``: each device has the kernel ``[D, K/n]`` and bias of its classes, in order, and all
        have the same features and
        key. None: each has all classes.
      chunk_size: number of classes per chunk; K need not be a multiple. The largest temporary arrays
        are ``[2, ..., chunk_size]``.
      kept_classes: number of classes whose logits are kept for the gradient, in whole chunks, instead of
        being computed twice: an array ``[2, ..., kept_classes]`` in addition. K or more: all.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: rate outside [0, 1), temperature not positive, an unknown gradient, exclusive masks
        that do not fit, shapes that do not fit, chunk_size below 1, or kept_classes below 0.
      TypeError: features or head not floating-point.

    Example:
      >>> import jax, sdd_jax
      >>> features, kernel = jax.numpy.ones((4, 8)), jax.numpy.ones((8, 50_000))
      >>> loss = sdd_jax.linear_sd_dropout_loss(features, kernel, None, jax.random.key(0))
      >>> loss.shape
      (4,)

    References:
      Lee et al., `Self-Knowledge Distillation via Dropout <https://arxiv.org/abs/2208.05642>`_, 2022,
      section 3.
    """
    _check(features, kernel, bias, chunk_size, kept_classes)
    check_temperature(temperature)
    check_gradient(gradient)
    # Outside the custom gradient: JAX differentiates the masks.
    pair = jnp.stack(
        dropout_pair(key, features, rate=rate, broadcast_dims=broadcast_dims, exclusive=exclusive)
    )
    temperature = jnp.asarray(temperature, _dtypes(features, kernel)[1])
    pair, head, temperature = _vary_alike((pair, (kernel, bias), temperature), axis_name)
    temperature = jax.lax.stop_gradient(temperature)
    chunks = _Chunks(chunk_size, kept_classes)
    return temperature**2 * _symmetric_kl(pair, head, temperature, gradient, axis_name, chunks)


# --------------------------------------------------------------------------- cross-entropy


def _cross_entropy_primal(features, head, labels, axis_name, chunks):
    return _cross_entropy_forward(features, head, labels, axis_name, chunks)[0]


def _cross_entropy_forward(features, head, labels, axis_name, chunks):
    def chunk_statistics(logits, start):
        at_label = jnp.where(_is_label(labels, start, logits), logits, 0)
        return _normaliser(logits), jnp.sum(at_label, axis=-1)

    def join(old, new):
        return _join(old[0], new[0])[0], old[1] + new[1]

    (normaliser, label_logit), kept = _fold(features, head, chunk_statistics, join, chunks)
    if axis_name is not None:
        normaliser, _ = _join_devices(normaliser, axis_name)
        label_logit = jax.lax.psum(label_logit, axis_name)
    loss = normaliser.log_sum - (label_logit - normaliser.largest)
    return loss, (features, head, labels, normaliser, kept)


def _cross_entropy_backward(axis_name, chunks, residuals, cotangent):
    features, head, labels, normaliser, kept = residuals

    def logits_gradient(logits, start):
        posterior = jnp.exp(_log_posterior(logits, normaliser))
        label = _is_label(labels, start, logits).astype(logits.dtype)
        return cotangent[..., None] * (posterior - label)

    return *_gradients(features, head, logits_gradient, axis_name, chunks, kept), None


_cross_entropy = jax.custom_vjp(_cross_entropy_primal, nondiff_argnums=(3, 4))
_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _is_label(labels, start, logits):
    """One-hot labels within the chunk, ``[..., C]``; all False where the label is in another chunk."""
    return jax.nn.one_hot(labels - start, logits.shape[-1], dtype=bool)


# --------------------------------------------------------------------------- SD-Dropout


def _symmetric_kl_primal(pair, head, temperature, gradient, axis_name, chunks):
    """Computes the divergence ``[...]`` of a pair of features ``[2, ..., D]``, without factor T^2."""
    return _symmetric_kl_forward(pair, head, temperature, gradient, axis_name, chunks)[0]


def _symmetric_kl_forward(pair, head, temperature, gradient, axis_name, chunks):
    """Returns the value, and residuals: some of the size of the features, and the logits to keep.

    JAX differentiates this and the backward pass for higher derivatives, so both stop what ``gradient``
    excludes.
    """

    def chunk_statistics(logits, start):
        normaliser = _normaliser(logits / temperature)
        log_p = _log_posterior(logits / temperature, normaliser)
        log_u, log_v = log_p[0], log_p[1]

        # Each direction by itself: on a CPU, XLA is slower with the difference to a reversed pair.
        def within(target, prediction):
            target, prediction = stop_gradients(target, prediction, gradient)
            return jnp.sum(jnp.exp(target) * (target - prediction), axis=-1)

        return normaliser, jnp.stack([within(log_u, log_v), within(log_v, log_u)])

    # Chain rule of the KL divergence: within each set of classes, plus between the sets.
    def share(log_mass, within):
        target, prediction = stop_gradients(log_mass, _other(log_mass), gradient)
        return jnp.exp(target) * (within + target - prediction)

    def join(old, new):
        normaliser, log_masses = _join(old[0], new[0])
        return normaliser, share(log_masses[0], old[1]) + share(log_masses[1], new[1])

    (normaliser, kl), kept = _fold(pair, head, chunk_statistics, join, chunks)
    if axis_name is not None:
        normaliser, log_mass = _join_devices(normaliser, axis_name)
        kl = jax.lax.psum(share(log_mass, kl), axis_name)
    return kl[0] + kl[1], (pair, head, temperature, normaliser, kl, kept)


def _symmetric_kl_backward(gradient, axis_name, chunks, residuals, cotangent):
    r"""Computes the gradients of both divergences with respect to the logits z of either posterior p.

    .. math:: T \, \partial\, \mathrm{KL}(q \| p) / \partial z_c = p_c - q_c, \qquad
              T \, \partial\, \mathrm{KL}(p \| q) / \partial z_c =
              p_c \left(\log p_c - \log q_c - \mathrm{KL}(p \| q)\right)

    where q is the other posterior: p is the prediction in the first ("forward"), the target in the
    second ("reverse").
    """
    pair, head, temperature, normaliser, kl, kept = residuals
    scale = (cotangent / temperature)[None, ..., None]

    def logits_gradient(logits, start):
        log_p = _log_posterior(logits / temperature, normaliser)
        p = jnp.exp(log_p)
        q, log_q = _other(p), _other(log_p)
        if gradient != "both":
            q, log_q = jax.lax.stop_gradient((q, log_q))
        forward = p - q
        reverse = p * (log_p - log_q - kl[..., None])
        return scale * {"forward": forward, "reverse": reverse, "both": forward + reverse}[gradient]

    return *_gradients(pair, head, logits_gradient, axis_name, chunks, kept), None


_symmetric_kl = jax.custom_vjp(_symmetric_kl_primal, nondiff_argnums=(3, 4, 5))
_symmetric_kl.defvjp(_symmetric_kl_forward, _symmetric_kl_backward)


def _other(x):
    """Swaps the two members of a pair ``[2, ...]``."""
    return x[::-1]


# --------------------------------------------------------------------------- chunks of a linear head

_Head = tuple[jax.Array, jax.Array | None]  # kernel [D, K], bias [K]
_Kept = tuple[jax.Array | None, jax.Array | None]  # logits [..., first], of others [n, ..., size]


class _Chunks(NamedTuple):
    """Division of the classes into chunks, of which the first may be smaller, and the first are kept."""

    size: int
    kept_classes: int

    def divide(self, num_classes: int) -> tuple[int, bool, np.ndarray, np.ndarray]:
        """Size of the first chunk; whether it is kept; starts of the others that are kept, or not."""
        size = min(self.size, num_classes)
        first = (num_classes - 1) % size + 1
        starts = np.arange(first, num_classes, size, dtype=np.int32)
        kept = max(0, self.kept_classes - first) // size
        return first, self.kept_classes >= first, starts[:kept], starts[kept:]


def _fold(
    features: jax.Array, head: _Head, chunk_statistics: Callable, join: Callable, chunks: _Chunks
) -> tuple[Any, _Kept]:
    """Joins ``chunk_statistics(logits, start)`` of all chunks; ``start`` is a chunk's first class.

    Returns also the logits to keep.
    """

    def step(old, start, size, logits):
        logits = _logits(features, _chunk(head, start, size))
        new = chunk_statistics(logits, start)
        return (new if old is None else join(old, new)), logits

    return _over_chunks(step, None, head, chunks, (None, None))


def _gradients(
    features: jax.Array,
    head: _Head,
    logits_gradient: Callable,
    axis_name: str | None,
    chunks: _Chunks,
    kept: _Kept,
) -> tuple[jax.Array, _Head]:
    """Gradients of features and head from ``logits_gradient(logits, start)`` of each chunk."""
    rows = tuple(range(features.ndim - 1))
    narrow, wide = _dtypes(features, head[0])
    product = partial(jnp.tensordot, preferred_element_type=wide)
    features_sharding, kernel_sharding = _shardings(features, head[0])

    def step(grads, start, size, logits):
        features_grad, head_grad = grads
        kernel, bias = chunk = _chunk(head, start, size)
        if logits is None:
            logits = _logits(features, chunk)
        logits_grad = logits_gradient(logits, start)
        bias_grad = None if bias is None else jnp.sum(logits_grad, axis=rows)
        logits_grad = logits_grad.astype(narrow)
        kernel_grad = product(
            features.astype(narrow), logits_grad, (rows, rows), out_sharding=kernel_sharding
        )
        features_grad += product(
            logits_grad, kernel.astype(narrow), (-1, -1), out_sharding=features_sharding
        )
        head_grad = jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(
                whole, part.astype(whole.dtype), start, axis=-1
            ),
            head_grad,
            (kernel_grad, bias_grad),
        )
        return (features_grad, head_grad), None

    zeros = jnp.zeros_like(features, wide), jax.tree.map(jnp.zeros_like, head)
    (features_grad, head_grad), _ = _over_chunks(step, zeros, head, chunks, kept)
    if axis_name is not None:
        features_grad = jax.lax.psum(features_grad, axis_name)
    return features_grad.astype(features.dtype), head_grad


def _over_chunks(
    step: Callable, state: Any, head: _Head, chunks: _Chunks, kept: _Kept
) -> tuple[Any, _Kept]:
    """Folds ``step(state, start, size, logits) -> (state, logits)`` over the chunks.

    Takes the logits that were kept, or returns those to keep; at other chunks they are None, or dropped.
    """
    first, keep_first, keeping, others = chunks.divide(head[0].shape[-1])
    state, first_logits = step(state, 0, first, kept[0])
    next_logits = None
    if keeping.size:
        state, next_logits = jax.lax.scan(
            lambda s, x: step(s, x[0], chunks.size, x[1]), state, (keeping, kept[1])
        )
    if others.size:
        state, _ = jax.lax.scan(
            lambda s, start: (step(s, start, chunks.size, None)[0], None), state, others
        )
    return state, (first_logits if keep_first else None, next_logits)


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
    """The log-sum-exp of logits in two parts, whose sum would lose digits where logits are large."""

    largest: jax.Array
    log_sum: jax.Array  # of exp(logits - largest)


def _normaliser(logits: jax.Array) -> _Normaliser:
    largest = jnp.max(logits, axis=-1)
    return _Normaliser(largest, jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)))


def _join(*parts: _Normaliser) -> tuple[_Normaliser, list[jax.Array]]:
    """Joins the normalisers of two sets of classes; returns also the logarithm of each set's mass."""
    largest = jnp.maximum(*(part.largest for part in parts))
    log_sums = [part.log_sum + (part.largest - largest) for part in parts]
    log_sum = jnp.logaddexp(*log_sums)
    return _Normaliser(largest, log_sum), [part - log_sum for part in log_sums]


def _join_devices(part: _Normaliser, axis_name: str) -> tuple[_Normaliser, jax.Array]:
    """Joins the normalisers of the devices' classes; returns also the logarithm of this one's mass."""
    largest = jax.lax.pmax(jax.lax.stop_gradient(part.largest), axis_name)
    log_sum_here = part.log_sum + (part.largest - largest)
    log_sum = jnp.log(jax.lax.psum(jnp.exp(log_sum_here), axis_name))
    return _Normaliser(largest, log_sum), log_sum_here - log_sum


def _log_posterior(logits: jax.Array, normaliser: _Normaliser) -> jax.Array:
    return (logits - normaliser.largest[..., None]) - normaliser.log_sum[..., None]


def _dtypes(features: jax.Array, kernel: jax.Array) -> tuple[jnp.dtype, jnp.dtype]:
    """Returns the dtypes of the factors of a product with the kernel, and of its sum."""
    with jax.numpy_dtype_promotion("standard"):
        narrow = jnp.promote_types(features.dtype, kernel.dtype)
        return narrow, jnp.promote_types(narrow, jnp.float32)


def _shardings(*arrays: jax.Array) -> list[NamedSharding | None]:
    """Shardings over an explicit mesh, where a sum over a sharded axis needs that of its result."""
    shardings = [jax.typeof(x).sharding for x in arrays]
    if not any(axis for sharding in shardings for axis in sharding.spec):
        return [None] * len(arrays)
    mesh = next(sharding.mesh for sharding in shardings if any(sharding.spec))
    return [NamedSharding(mesh, sharding.spec) for sharding in shardings]  # some may be on no mesh


def _vary_alike(arrays: Any, axis_name: str | None) -> Any:
    """Casts arrays to the same varying axes: in ``shard_map``, gradients must vary as their arrays.

    Over ``axis_name``, of the classes, only the head varies.
    """
    axes = frozenset.union(*(jax.typeof(x).mat.varying for x in jax.tree.leaves(arrays)))
    axes -= {axis_name}

    def cast(x):
        return jax.lax.pcast(x, tuple(axes - jax.typeof(x).mat.varying), to="varying")

    return jax.tree.map(cast, arrays) if axes else arrays


def _check(features, kernel, bias, chunk_size, kept_classes):
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
    if kept_classes < 0:
        raise ValueError(f"kept_classes must be at least 0, got {kept_classes}")
