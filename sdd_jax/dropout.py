"""Dropout masks as pure functions of PRNG keys.

Every function takes either one key, or an array of keys whose shape is a prefix of ``x.shape``: with
one key per example, an example's mask depends on its own key alone, so it stays the same however the
batch is divided over devices.
"""

import itertools
import math
import numbers
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Array = jax.Array
Rate = float | tuple[float, float]


def dropout(key: Array, x: Array, *, rate: Rate, broadcast_dims: Sequence[int] = ()) -> Array:
    r"""Sets elements of ``x`` to zero at random and scales up the rest (inverted dropout).

    .. math:: y_i = x_i m_i / (1 - \beta), \qquad m_i \sim \mathrm{Bernoulli}(1 - \beta)

    so that the expectation over masks is ``x``.

    Args:
      key: a PRNG key, or an array of keys whose shape is a prefix of ``x.shape``.
      x: floating-point array.
      rate: probability beta in [0, 1) with which an element becomes zero; or ``(low, high)``, from
        which one rate is drawn uniformly for each key.
      broadcast_dims: dimensions of ``x`` along which one mask is shared.

    Returns:
      Array of the shape and dtype of ``x``.

    Raises:
      ValueError: rate outside [0, 1), or keys that are no prefix of ``x.shape``.
      TypeError: ``x`` is not floating-point.

    References:
      Srivastava et al., `Dropout <https://jmlr.org/papers/v15/srivastava14a.html>`_, 2014, section 4.
    """
    key, rate = _check(key, x, rate)
    shared = {d + x.ndim if d < 0 else d for d in broadcast_dims}
    if not all(key.ndim <= d < x.ndim for d in shared):
        raise ValueError(
            f"broadcast_dims must be dimensions of x after those of the keys, [{key.ndim}, {x.ndim}), "
            f"got {tuple(broadcast_dims)}"
        )
    if _is_zero(rate):
        return x
    rate_of_key = _draw_rate(key, rate)
    shape = tuple(1 if d in shared else n for d, n in enumerate(x.shape))
    keep = _uniform(key, shape) < _expand(1 - rate_of_key, x)
    return _keep(x, keep, _scale(x, rate, rate_of_key))


def dropout_pair(key: Array, x: Array, *, rate: Rate) -> tuple[Array, Array]:
    """Draws two independent dropout masks, ``u`` and ``v``, from one key and applies both to ``x``.

    Equal to ``dropout`` with each half of ``jax.random.split(key)``.

    Args:
      key: a PRNG key, or an array of keys whose shape is a prefix of ``x.shape``.
      x: floating-point array, for SD-Dropout the penultimate features ``[..., D]``.
      rate: as in :func:`dropout`; a ``(low, high)`` rate is drawn once and shared by the pair.

    Returns:
      ``(x_u, x_v)``, each of the shape and dtype of ``x``.

    Raises:
      ValueError, TypeError: as :func:`dropout`.

    References:
      Lee et al., `Self-Knowledge Distillation via Dropout <https://arxiv.org/abs/2208.05642>`_, 2022.
    """
    x_u, x_v = dropout_samples(key, x, rate=rate, num_samples=2)
    return x_u, x_v


def dropout_samples(
    key: Array, x: Array, *, rate: Rate, num_samples: int, exclusive: bool = False
) -> list[Array]:
    """Applies ``num_samples`` dropout masks, drawn from one key, to ``x``.

    Args:
      key: a PRNG key, or an array of keys whose shape is a prefix of ``x.shape``.
      x: floating-point array.
      rate: as in :func:`dropout`; a ``(low, high)`` rate is drawn once and shared by all masks.
      num_samples: number of masks, at least 1.
      exclusive: draw disjoint masks, so that no element is kept by two of them. Each still keeps an
        element with probability ``1 - rate``, so ``num_samples * (1 - rate)`` must not exceed 1.

    Returns:
      ``num_samples`` arrays of the shape and dtype of ``x``.

    Raises:
      ValueError, TypeError: as :func:`dropout`; also if exclusive masks do not fit.
    """
    key, rate = _check(key, x, rate)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    lowest = rate[0] if isinstance(rate, tuple) else rate
    if exclusive and _is_number(lowest) and num_samples * (1 - lowest) > 1 + 1e-6:
        raise ValueError(
            f"exclusive masks must not overlap: num_samples * (1 - rate) must be at most 1, got "
            f"{num_samples} * (1 - {lowest})"
        )
    if _is_zero(rate):
        return [x] * num_samples
    rate_of_key = _draw_rate(key, rate)
    keep_probability = _expand(1 - rate_of_key, x)
    scale = _scale(x, rate, rate_of_key)
    if exclusive:
        # One uniform number an element; mask s keeps those that fall into the s-th interval.
        uniform = _uniform(key, x.shape)
        ends = [s * keep_probability for s in range(num_samples + 1)]
        return [
            _keep(x, (uniform >= start) & (uniform < end), scale)
            for start, end in itertools.pairwise(ends)
        ]
    keys = _over_keys(key, lambda k: jax.random.split(k, num_samples))
    return [
        _keep(x, _uniform(keys[..., s], x.shape) < keep_probability, scale)
        for s in range(num_samples)
    ]


def _is_number(rate) -> bool:
    """Whether the value is known now, and not a traced array."""
    return isinstance(rate, numbers.Real)


def _is_zero(rate) -> bool:
    return _is_number(rate) and rate == 0


def _check(key: Array, x: Array, rate: Rate) -> tuple[Array, Rate]:
    """Validates what all functions share; returns the key in typed form, and a pair as a tuple."""
    if isinstance(rate, list):
        rate = tuple(rate)
    bounds = rate if isinstance(rate, tuple) else (rate,)
    if not all(0 <= b < 1 for b in bounds if _is_number(b)):
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    if isinstance(rate, tuple) and (
        len(rate) != 2 or (all(map(_is_number, rate)) and rate[0] > rate[1])
    ):
        raise ValueError(f"a random rate must be (low, high) with low <= high, got {rate}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating-point, got {x.dtype}")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # a key of the older, raw uint32 kind
    if key.shape != x.shape[: key.ndim]:
        raise ValueError(f"the shape of the keys, {key.shape}, must be a prefix of x's, {x.shape}")
    return key, rate


def _over_keys(key: Array, fn: Callable[[Array], Array]) -> Array:
    """Maps ``fn``, a function of one key, over an array of keys of any rank."""
    for _ in range(key.ndim):
        fn = jax.vmap(fn)
    return fn(key)


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform numbers of ``shape``, float32 also in x64; each key fills its own slice.

    They lie in the middles of 2^16 intervals. Two come of one random word, whose making is what a mask
    costs; a probability is off by 2^-17 at most.
    """
    of_key = shape[key.ndim :]
    size = math.prod(of_key)

    def fill(key):
        words = jax.random.bits(key, (size + 1) // 2, jnp.uint32)
        halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size]
        return (halves.reshape(of_key).astype(jnp.float32) + 0.5) / 2**16

    return _over_keys(key, fill)


def _draw_rate(key: Array, rate: Rate) -> Array:
    """The rate of each key, float32 of shape ``key.shape`` (or a scalar when the rate is fixed)."""
    if not isinstance(rate, tuple):
        return jnp.asarray(rate, jnp.float32)
    low, high = rate
    of_rate = _over_keys(key, lambda k: jax.random.fold_in(k, 0x7A7E))  # not the masks' own stream
    return low + (high - low) * _uniform(of_rate, key.shape)


def _expand(rate: Array, x: Array) -> Array:
    return rate.reshape(rate.shape + (1,) * (x.ndim - rate.ndim))


def _scale(x: Array, rate: Rate, rate_of_key: Array) -> Array:
    """``1 / (1 - rate)``, rounded to the dtype of ``x`` only once."""
    if _is_number(rate):
        return jnp.asarray(1 / (1 - rate), x.dtype)
    return _expand((1 / (1 - rate_of_key)).astype(x.dtype), x)


def _keep(x: Array, mask: Array, scale: Array) -> Array:
    return jnp.where(mask, x * scale, jnp.zeros((), x.dtype))
