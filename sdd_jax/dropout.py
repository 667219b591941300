"""Dropout masks as pure functions of PRNG keys.

Every function takes either one key, or an array of keys whose shape is a prefix of ``x.shape``. With one
key per example, an example's mask depends on its own key alone, so it stays the same however the batch
is sharded over devices.

Most of a mask's cost is its random bits, so a mask takes 16 per element: the probability of keeping an
element is rounded to a multiple of 2^-16. Rates below 2^-7 or above 1 - 2^-7, for which that is too
coarse, take 24 bits and a multiple of 2^-24, at least one. So do traced rates, without changing their
masks. The scale is the reciprocal of the rounded probability, so that the expectation is exact for every
rate.
"""

import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# A number (or a scalar array, which may be traced), or the bounds of a random rate.
Rate = float | jax.Array | tuple[float | jax.Array, float | jax.Array]

_EXTREME = 2**-7  # rates this close to 0 or 1 take 24 bits


def dropout(
    key: jax.Array, x: jax.Array, *, rate: Rate, broadcast_dims: Sequence[int] = ()
) -> jax.Array:
    r"""Sets elements of ``x`` to zero at random and scales up the rest (inverted dropout).

    .. math:: y_i = x_i m_i / (1 - \beta), \qquad m_i \sim \mathrm{Bernoulli}(1 - \beta)

    The expectation over masks is ``x``, for every rate: :math:`1 - \beta` is rounded to a multiple of
    :math:`2^{-16}` (:math:`2^{-24}` for rates near 0 or 1) in the mask and in the scale alike.

    Args:
      key: a PRNG key, or an array of keys whose shape is a prefix of ``x.shape``.
      x: floating-point array.
      rate: probability beta in [0, 1) with which an element becomes zero; or ``(low, high)``, from
        which one rate is drawn uniformly for each key. May be traced; its value is then not checked.
      broadcast_dims: dimensions of ``x`` along which one mask is shared: ``(1, 2)`` drops whole channels
        of ``[B, H, W, D]``. An example with its own key shares its mask with no other.

    Returns:
      Array of the shape and dtype of ``x``.

    Raises:
      ValueError: rate outside [0, 1) or not a scalar, or keys whose shape is not a prefix of
        ``x.shape``.
      TypeError: rate is not a number, key not a PRNG key, or ``x`` not floating-point.

    Example:
      >>> import jax, sdd_jax
      >>> y = sdd_jax.dropout(jax.random.key(0), jax.numpy.ones(1000), rate=0.75)
      >>> sorted(set(y.tolist()))
      [0.0, 4.0]

    References:
      Srivastava et al., `Dropout <https://jmlr.org/papers/v15/srivastava14a.html>`_, 2014, section 4.
    """
    key, rate = _check(key, x, rate)
    shape = _mask_shape(key, x, broadcast_dims)
    if _is_zero(rate):
        return x
    fine = _needs_24_bits(rate)
    probability = _cumulative_probability(1, _draw_rate(key, rate), fine)
    mask = _uniform(key, shape, fine) < _expand(probability, x)
    return _apply(mask, x, probability)


def dropout_pair(
    key: jax.Array,
    x: jax.Array,
    *,
    rate: Rate,
    broadcast_dims: Sequence[int] = (),
    exclusive: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Draws two dropout masks, ``u`` and ``v``, from one key and applies both to ``x``.

    They are independent: equal to ``dropout`` with each half of ``jax.random.split(key)``. With
    ``exclusive``, no element is kept by both; at rate 1/2 they are complementary, so that
    ``x_u + x_v == 2 * x``. UniMatch V2 draws such a pair for each image, over its channels:
    ``rate=0.5, broadcast_dims=(1, 2), exclusive=True`` for ``[B, H, W, D]``.

    Args:
      key: a PRNG key, or an array of keys whose shape is a prefix of ``x.shape``.
      x: floating-point array, for SD-Dropout the penultimate features ``[..., D]``.
      rate: as in :func:`dropout`; a ``(low, high)`` rate is drawn once and shared by the pair.
      broadcast_dims: as in :func:`dropout`.
      exclusive: draw disjoint masks, which takes a rate of at least 1/2.

    Returns:
      ``(x_u, x_v)``, each of the shape and dtype of ``x``.

    Raises:
      ValueError, TypeError: as :func:`dropout`; also if exclusive masks do not fit.

    Example:
      >>> import jax, sdd_jax
      >>> u, v = sdd_jax.dropout_pair(jax.random.key(0), jax.numpy.ones((4, 8)), rate=0.5)
      >>> bool((u != v).any())
      True

    References:
      Lee et al., `Self-Knowledge Distillation via Dropout <https://arxiv.org/abs/2208.05642>`_, 2022.

      Yang et al., `UniMatch V2 <https://arxiv.org/abs/2410.10777>`_, 2024: complementary masks.
    """
    x_u, x_v = dropout_samples(
        key, x, rate=rate, num_samples=2, broadcast_dims=broadcast_dims, exclusive=exclusive
    )
    return x_u, x_v


def dropout_samples(
    key: jax.Array,
    x: jax.Array,
    *,
    rate: Rate,
    num_samples: int,
    broadcast_dims: Sequence[int] = (),
    exclusive: bool = False,
) -> list[jax.Array]:
    """Applies ``num_samples`` dropout masks, drawn from one key, to ``x``.

    Args:
      key: a PRNG key, or an array of keys whose shape is a prefix of ``x.shape``.
      x: floating-point array.
      rate: as in :func:`dropout`; a ``(low, high)`` rate is drawn once and shared by all masks.
      num_samples: number of masks, at least 1.
      broadcast_dims: as in :func:`dropout`.
      exclusive: draw disjoint masks, so that no element is kept by two of them. Each still keeps an
        element with probability ``1 - rate``, so ``num_samples * (1 - rate)`` must not exceed 1.

    Returns:
      ``num_samples`` arrays of the shape and dtype of ``x``.

    Raises:
      ValueError, TypeError: as :func:`dropout`; also if exclusive masks do not fit.

    Example:
      >>> import jax, sdd_jax
      >>> x, key = jax.numpy.ones((4, 8)), jax.random.key(0)
      >>> u, v = sdd_jax.dropout_samples(key, x, rate=0.5, num_samples=2, exclusive=True)
      >>> bool((u + v == 2).all())
      True
    """
    key, rate = _check(key, x, rate)
    shape = _mask_shape(key, x, broadcast_dims)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if exclusive and not exclusive_masks_fit(num_samples, rate):
        raise ValueError(
            f"exclusive masks must not overlap: num_samples * (1 - rate) must be at most 1, got "
            f"{num_samples} * (1 - {_bounds(rate)[0]})"
        )
    if _is_zero(rate):
        return [x] * num_samples
    fine = _needs_24_bits(rate)
    rate_per_key = _draw_rate(key, rate)
    if exclusive:
        # One uniform number per element; mask s keeps the elements in the s-th interval.
        uniform = _uniform(key, shape, fine)
        ends = [_cumulative_probability(s, rate_per_key, fine) for s in range(num_samples + 1)]
        return [
            _apply((uniform >= _expand(low, x)) & (uniform < _expand(high, x)), x, high - low)
            for low, high in itertools.pairwise(ends)
        ]
    probability = _cumulative_probability(1, rate_per_key, fine)
    keys = _over_keys(key, lambda k: jax.random.split(k, num_samples))
    masks = [
        _uniform(keys[..., s], shape, fine) < _expand(probability, x) for s in range(num_samples)
    ]
    return [_apply(mask, x, probability) for mask in masks]


def exclusive_masks_fit(num_samples: int, rate: Rate) -> bool:
    """Returns whether ``num_samples`` disjoint masks exist: ``num_samples * (1 - rate) <= 1``.

    Args:
      num_samples: number of masks.
      rate: dropout rate in [0, 1), or ``(low, high)``, of which the lower bound decides. Traced rates
        pass, for their values are unknown.

    Example:
      >>> from sdd_jax.dropout import exclusive_masks_fit
      >>> (
      ...     exclusive_masks_fit(2, 0.5),
      ...     exclusive_masks_fit(3, 0.5),
      ...     exclusive_masks_fit(2, (0.4, 0.9)),
      ... )
      (True, False, False)
    """
    lowest = known_number("rate", _bounds(rate)[0])
    return lowest is None or num_samples * (1 - lowest) <= 1 + 1e-6


def known_number(name: str, value: Any) -> float | None:
    """Returns a number or scalar array as a float, or None if it is traced.

    Args:
      name: that of the argument, for the message.
      value: the argument.

    Raises:
      TypeError: not a real number.
      ValueError: an array that is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from sdd_jax.dropout import known_number
      >>> known_number("rate", jnp.float32(0.5))
      0.5
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None and not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if dtype is not None and not jnp.isdtype(dtype, ("real floating", "integral")):
        raise TypeError(f"{name} must be a number, got an array of {dtype}")
    if getattr(value, "shape", ()):
        raise ValueError(f"{name} must be a scalar, got an array of shape {value.shape}")
    return None if isinstance(value, jax.core.Tracer) else float(value)


def _bounds(rate: Rate) -> Sequence[float | jax.Array]:
    return rate if isinstance(rate, (tuple, list)) else (rate,)


def _is_zero(rate: Rate) -> bool:
    return isinstance(rate, numbers.Real) and float(rate) == 0


def _check(key: jax.Array, x: jax.Array, rate: Any) -> tuple[jax.Array, Rate]:
    """Checks the shared arguments; returns the key in typed form, and bounds as a tuple."""
    if isinstance(rate, list):
        rate = tuple(rate)
    known = [known_number("rate", b) for b in _bounds(rate)]
    numeric = [b for b in known if b is not None]
    if not all(0 <= b < 1 for b in numeric):
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    if isinstance(rate, tuple) and (len(rate) != 2 or numeric != sorted(numeric)):
        raise ValueError(f"a random rate must be (low, high) with low <= high, got {rate}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating-point, got {x.dtype}")
    key_dtype = getattr(key, "dtype", None)
    if key_dtype == jnp.uint32:
        key = jax.random.wrap_key_data(key)  # a legacy key
    elif key_dtype is None or not jnp.issubdtype(key_dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"key must be a PRNG key or an array of them, got {key_dtype or type(key).__name__}"
        )
    if key.shape != x.shape[: key.ndim]:
        raise ValueError(f"the shape of the keys, {key.shape}, must be a prefix of x's, {x.shape}")
    return key, rate


def _mask_shape(key: jax.Array, x: jax.Array, broadcast_dims: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of ``x`` with 1 at the dimensions that share a mask."""
    shared = {d + x.ndim if d < 0 else d for d in broadcast_dims}
    if not all(key.ndim <= d < x.ndim for d in shared):
        raise ValueError(
            f"broadcast_dims must be dimensions of x after those of the keys, [{key.ndim}, {x.ndim}), "
            f"got {tuple(broadcast_dims)}"
        )
    return tuple(1 if d in shared else n for d, n in enumerate(x.shape))


def _over_keys(key: jax.Array, fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Maps ``fn``, a function of one key, over an array of keys of any rank."""
    for _ in range(key.ndim):
        fn = jax.vmap(fn)
    return fn(key)


def _needs_24_bits(rate: Rate) -> bool:
    # A random rate is judged by its upper bound: rounding merges its rates near 0, which harms nothing.
    highest = _bounds(rate)[-1]
    return not (isinstance(highest, numbers.Real) and _EXTREME <= float(highest) <= 1 - _EXTREME)


def _draw_rate(key: jax.Array, rate: Rate) -> jax.Array:
    """Draws the rate of each key: float32 of shape ``key.shape``, or a scalar when the rate is fixed."""
    if not isinstance(rate, tuple):
        return jnp.asarray(rate, jnp.float32)
    low, high = rate
    rate_keys = _over_keys(key, lambda k: jax.random.fold_in(k, 0x7A7E))  # separate from the masks
    middle = _uniform(rate_keys, key.shape, fine=False) + 2**-17  # of an interval of 2^-16
    return jnp.asarray(low + (high - low) * middle, jnp.float32)


def _uniform(key: jax.Array, shape: tuple[int, ...], fine: bool) -> jax.Array:
    """Draws uniform multiples of 2^-16 (if fine, 2^-24) in [0, 1), float32 even in x64.

    Each key fills its own slice of ``shape``. The fine numbers extend the coarse ones.
    """
    shape_per_key = shape[key.ndim :]
    size = math.prod(shape_per_key)

    def fill(key):
        words = jax.random.bits(key, ((size + 1) // 2,), jnp.uint32)
        halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size]
        uniform = halves.astype(jnp.float32) / 2**16
        if fine:
            low_bits = jax.random.bits(jax.random.fold_in(key, 0xB175), (size,), jnp.uint8)
            uniform += low_bits.astype(jnp.float32) / 2**24
        return uniform.reshape(shape_per_key)

    return _over_keys(key, fill)


def _cumulative_probability(count: int, rate: jax.Array, fine: bool) -> jax.Array:
    """Computes ``count * (1 - rate)``, rounded to a multiple of what ``_uniform`` resolves."""
    keep = 1 - rate
    probability = jnp.ceil(count * keep * 2**16 - 0.5) / 2**16
    if fine:
        extreme = (rate < _EXTREME) | (rate > 1 - _EXTREME)
        keep = jnp.maximum(keep, 2**-24)
        probability = jnp.where(extreme, jnp.round(count * keep * 2**24) / 2**24, probability)
    return jnp.minimum(probability, 1.0)


def _expand(per_key: jax.Array, x: jax.Array) -> jax.Array:
    return per_key.reshape(per_key.shape + (1,) * (x.ndim - per_key.ndim))


def _apply(mask: jax.Array, x: jax.Array, probability: jax.Array) -> jax.Array:
    """Scales ``x`` by ``1 / probability``, rounded to its dtype once, where ``mask`` is True."""
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    scaled = x.astype(wide) * _expand(1 / probability.astype(wide), x)
    return jnp.where(mask, scaled.astype(x.dtype), jnp.zeros((), x.dtype))
