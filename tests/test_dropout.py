"""Dropout masks: values, distribution, exact expectation, and dependence on keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import sdd_jax
from sdd_jax.dropout import exclusive_masks_fit

# Compiled as a whole, which is much faster than operation by operation.
dropout = jax.jit(sdd_jax.dropout, static_argnames=("rate", "broadcast_dims"))
OPTIONS = ("rate", "broadcast_dims", "exclusive")
dropout_pair = jax.jit(sdd_jax.dropout_pair, static_argnames=OPTIONS)
dropout_samples = jax.jit(sdd_jax.dropout_samples, static_argnames=("num_samples", *OPTIONS))
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 6)
X = jax.random.normal(jax.random.key(1), (6, 16))
one_or_many_keys = pytest.mark.parametrize("keys", [KEY, KEYS], ids=["one key", "key per example"])


def kept(y):
    return np.asarray(y) != 0


def assert_fraction(mask, probability):
    """Within five standard errors."""
    error = np.sqrt(probability * (1 - probability) / mask.size)
    assert abs(mask.mean() - probability) < 5 * error


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_values_are_zero_or_scaled(rate):
    x = jnp.tile(X, (10, 2))
    y = dropout(KEY, x, rate=rate)
    np.testing.assert_allclose(y, np.where(kept(y), x / (1 - rate), 0), rtol=2**-17 / (1 - rate))
    assert_fraction(kept(y), 1 - rate)


def test_masks_are_those_of_earlier_versions():
    def packed(y):
        return np.packbits(kept(y)).tobytes().hex()

    x, keys = jnp.ones((2, 32)), jax.random.split(KEY, 2)
    assert packed(dropout(KEY, x, rate=0.3)) == "aff5b97087ce7aff"
    assert packed(dropout(keys, x, rate=(0.2, 0.6))) == "3dd99d7bfff7eeff"
    pair = map(packed, dropout_pair(keys, x, rate=0.5))
    assert [*pair] == ["ccded0c2b7c8445a", "54436538d158f08c"]
    exclusive = map(packed, dropout_samples(KEY, x, rate=0.7, num_samples=2, exclusive=True))
    assert [*exclusive] == ["2890990083400adc", "85640030040e4000"]


# --------------------------------------------------------------------------- expectation


@pytest.fixture
def every_word(monkeypatch):
    """Replaces random bits by an enumeration of all words of 16 or 24 bits, one per element.

    A single number, which decides a random rate, is 1/4.
    """
    halves = np.arange(2**16, dtype=np.uint16)
    words = {
        (2**15, jnp.uint32): halves,
        (2**23, jnp.uint32): np.repeat(halves, 2**8),
        (2**24, jnp.uint8): np.tile(np.arange(2**8, dtype=np.uint8), 2**16),
        (1, jnp.uint32): np.array([2**14, 0], np.uint16),
    }

    def bits(key, shape, dtype):
        return jnp.asarray(words[math.prod(shape), dtype].view(dtype))

    monkeypatch.setattr(jax.random, "bits", bits)


def assert_expectation_is_one(y, keep_probability):
    y = np.asarray(y)
    scale, mask = y.max(), y > 0
    np.testing.assert_array_equal(y, np.where(mask, scale, 0))
    np.testing.assert_allclose(mask.mean() * np.float64(scale), 1, rtol=2 * np.finfo(y.dtype).eps)
    # The mask has the requested probability, as far as its words resolve it, but never zero.
    resolution = 1 / mask.size
    expected = max(keep_probability, resolution)
    np.testing.assert_allclose(mask.mean(), expected, rtol=0, atol=1.01 * resolution)


@pytest.mark.parametrize(
    ("rate", "bits"),
    [
        *((rate, 16) for rate in (0.01, 0.1, 1 / 3, 0.5, 0.9, 0.99, (0.0, 0.5))),
        *((rate, 24) for rate in (1e-9, 1e-6, 0.999, 0.999999, 1 - 1e-9, (0.99, 0.9999))),
        *((np.array(rate, np.float32), 24) for rate in (0.003, 0.99999)),
    ],
    ids=str,
)
def test_expectation_is_exact_for_every_rate(rate, bits, every_word):
    if isinstance(rate, np.ndarray):
        rate = jnp.asarray(rate)  # an array is unknown when tracing
    y = sdd_jax.dropout(KEY, jnp.ones(2**bits), rate=rate)
    if isinstance(rate, tuple):
        rate = rate[0] + (rate[1] - rate[0]) * (1 / 4 + 2**-17)
    assert_expectation_is_one(y, 1 - float(rate))


@pytest.mark.parametrize(("rate", "bits"), [(0.7, 16), (2 / 3, 16), (0.99995, 24)])
def test_expectation_is_exact_for_exclusive_masks(rate, bits, every_word):
    options = {"rate": rate, "num_samples": 3, "exclusive": True}
    samples = sdd_jax.dropout_samples(KEY, jnp.ones(2**bits), **options)
    for y in samples:
        assert_expectation_is_one(y, 1 - rate)
    assert (np.count_nonzero(samples, axis=0) <= 1).all()


def test_expectation_is_exact_in_float64(every_word):
    with jax.enable_x64(True):
        y = sdd_jax.dropout(KEY, jnp.ones(2**16, jnp.float64), rate=0.3)
    assert_expectation_is_one(y, 0.7)


@pytest.mark.parametrize("rate", [1e-3, 0.3, 0.999])
def test_a_traced_rate_gives_the_masks_of_the_same_rate_known(rate):
    x = jnp.tile(X, (10, 2))
    traced = jax.jit(lambda rate: sdd_jax.dropout(KEY, x, rate=rate))(rate)
    np.testing.assert_allclose(traced, dropout(KEY, x, rate=rate), rtol=1e-6)


def test_zeros_stay_zeros_where_the_scale_exceeds_the_dtype():
    y = dropout(KEY, jnp.zeros(2000, jnp.float16), rate=1 - 1e-6)
    np.testing.assert_array_equal(y, 0)


# --------------------------------------------------------------------------- keys


def test_rate_zero_is_identity():
    for y in (dropout(KEY, X, rate=0.0), *dropout_samples(KEY, X, rate=0, num_samples=3)):
        np.testing.assert_array_equal(y, X)


@pytest.mark.parametrize("dim", [1, -2])
def test_broadcast_dims_share_one_mask(dim):
    y = kept(dropout(KEY, jnp.ones((4, 5, 20)), rate=0.5, broadcast_dims=(dim,)))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    assert len(np.unique(y[:, 0], axis=0)) == 4  # and the other dimensions do not share it


def test_an_example_depends_on_its_own_key_alone():
    y, order = dropout(KEYS, X, rate=(0.2, 0.6)), np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(dropout(KEYS[order], X[order], rate=(0.2, 0.6)), y[order])
    parts = [dropout(KEYS[i : i + 2], X[i : i + 2], rate=(0.2, 0.6)) for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), y)
    rows = [dropout(key, x, rate=(0.2, 0.6)) for key, x in zip(KEYS, X, strict=True)]
    np.testing.assert_array_equal(rows, y)
    in_two_dimensions = dropout(KEYS.reshape(2, 3), X.reshape(2, 3, 16), rate=(0.2, 0.6))
    np.testing.assert_array_equal(in_two_dimensions.reshape(6, 16), y)


@one_or_many_keys
def test_raw_keys_equal_typed_keys(keys):
    raw = jax.random.key_data(keys)
    assert raw.dtype == jnp.uint32
    np.testing.assert_array_equal(dropout(raw, X, rate=0.5), dropout(keys, X, rate=0.5))


def test_random_rate_is_drawn_within_its_bounds_once_per_key():
    keys = jax.random.split(KEY, 200)
    y = np.asarray(dropout(keys, jnp.ones((200, 400)), rate=(0.3, 0.5)))
    scale = y.max(axis=1)
    np.testing.assert_array_equal(y, np.where(y != 0, scale[:, None], 0))  # one rate per key
    rates = 1 - 1 / scale
    assert rates.min() >= 0.3 - 2**-16
    assert rates.max() <= 0.5 + 2**-16
    # Uniform rates: mean 0.4, standard deviation 0.2 / sqrt(12); five standard errors.
    assert abs(rates.mean() - 0.4) < 5 * 0.2 / np.sqrt(12 * 200)
    assert abs(rates.std() - 0.2 / np.sqrt(12)) < 0.01
    # The masks follow the rates that their scales imply.
    deviation = ((y == 0).mean(axis=1) - rates) / np.sqrt(rates * (1 - rates) / 400)
    assert abs(deviation.mean()) < 5 / np.sqrt(200)
    # A list is as good as a tuple.
    expected = sdd_jax.dropout(keys[:6], X, rate=(0.3, 0.5))
    np.testing.assert_array_equal(sdd_jax.dropout(keys[:6], X, rate=[0.3, 0.5]), expected)


def test_random_rate_is_shared_by_all_masks():
    samples = dropout_samples(KEYS, jnp.ones((6, 200)), rate=(0.1, 0.8), num_samples=3)
    scales = np.max(samples, axis=2)
    np.testing.assert_array_equal(scales, np.broadcast_to(scales[0], scales.shape))
    assert len(np.unique(scales[0])) == 6


# --------------------------------------------------------------------------- several masks


@one_or_many_keys
def test_pair_equals_dropout_with_the_split_halves(keys):
    halves = jax.random.split(keys) if keys.ndim == 0 else jax.vmap(jax.random.split)(keys).T
    for y, half in zip(dropout_pair(keys, X, rate=0.4), halves, strict=True):
        np.testing.assert_array_equal(y, dropout(half, X, rate=0.4))


@pytest.mark.parametrize("exclusive", [False, True])
def test_masks_of_a_pair_are_shared_by_the_locations_of_an_example(exclusive):
    options = {"rate": 0.5, "exclusive": exclusive}
    x = jnp.ones((6, 3, 2, 200))
    u, v = (kept(y) for y in dropout_pair(KEYS, x, broadcast_dims=(1, -2), **options))
    for mask in (u, v):
        np.testing.assert_array_equal(mask, np.broadcast_to(mask[:, :1, :1], mask.shape))
        assert_fraction(mask[:, 0, 0], 0.5)
        assert len(np.unique(mask[:, 0, 0], axis=0)) == 6
    # The masks of the channels are those of features without locations.
    for mask, y in zip((u, v), dropout_pair(KEYS, x[:, 0, 0], **options), strict=True):
        np.testing.assert_array_equal(mask[:, 0, 0], kept(y))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_exclusive_pair_at_rate_one_half_is_complementary(dtype):
    x = jnp.tile(X, (10, 2)).astype(dtype)
    u, v = dropout_pair(KEY, x, rate=0.5, exclusive=True)
    np.testing.assert_array_equal(u + v, 2 * x)
    np.testing.assert_array_equal(kept(u), ~kept(v))
    assert_fraction(kept(u), 0.5)


def test_an_exclusive_pair_over_channels_does_not_depend_on_the_number_of_devices():
    x, options = jnp.ones((4, 3, 20)), {"rate": 0.5, "broadcast_dims": (1,), "exclusive": True}
    mesh, batch = jax.make_mesh((4,), ("batch",), (AxisType.Auto,)), PartitionSpec("batch")
    sharded = jax.shard_map(
        lambda keys, x: sdd_jax.dropout_pair(keys, x, **options),
        mesh=mesh,
        in_specs=(batch, batch),
        out_specs=batch,
    )
    expected = dropout_pair(KEYS[:4], x, **options)
    np.testing.assert_array_equal(jax.jit(sharded)(KEYS[:4], x), expected)


def test_masks_of_a_pair_are_independent():
    u, v = (kept(y) for y in dropout_pair(KEYS, jnp.ones((6, 1000)), rate=0.3))
    for joint, p in [(u & v, 0.49), (u & ~v, 0.21), (~u & v, 0.21), (~u & ~v, 0.09)]:
        assert_fraction(joint, p)


@pytest.mark.parametrize(("rate", "num_samples"), [(0.5, 2), (0.75, 3), (0.75, 4), (0.8, 2)])
def test_exclusive_masks_are_disjoint_and_keep_with_the_same_probability(rate, num_samples):
    options = {"rate": rate, "num_samples": num_samples, "exclusive": True}
    samples = dropout_samples(KEYS, jnp.ones((6, 1000)), **options)
    masks = kept(jnp.stack(samples))
    assert masks.sum(axis=0).max() == 1
    if num_samples * (1 - rate) == 1:
        assert masks.sum(axis=0).min() == 1
    for mask, y in zip(masks, samples, strict=True):
        assert_fraction(mask, 1 - rate)
        np.testing.assert_allclose(np.asarray(y)[mask], 1 / (1 - rate), rtol=1e-4)


# --------------------------------------------------------------------------- dtypes, jit, gradient


@pytest.mark.parametrize("rate", [0.1, 0.99, (0.3, 0.5)])
def test_dtype_is_kept_and_changes_only_the_rounding_of_the_scale(rate):
    expected = dropout(KEYS, jnp.ones((6, 200)), rate=rate)
    for dtype in (jnp.float16, jnp.bfloat16):
        y = dropout(KEYS, jnp.ones((6, 200), dtype), rate=rate)
        np.testing.assert_array_equal(y, expected.astype(dtype))
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            y = sdd_jax.dropout(KEYS, jnp.ones((6, 200), dtype), rate=rate)
            assert y.dtype == dtype
            np.testing.assert_allclose(y, np.asarray(expected), rtol=1e-6)


def test_masks_are_the_same_under_jit():
    options = {"rate": (0.2, 0.6), "num_samples": 3}
    jitted = dropout_samples(KEYS, X, **options)
    np.testing.assert_allclose(jitted, sdd_jax.dropout_samples(KEYS, X, **options), rtol=1e-6)


def test_gradient_passes_through_the_kept_elements_only():
    gradient = jax.grad(lambda x: dropout(KEYS, x, rate=0.3).sum())(X)
    expected = np.where(kept(dropout(KEYS, X, rate=0.3)), 1 / 0.7, 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize("call", [dropout, dropout_pair])
@pytest.mark.parametrize(
    ("rate", "message"),
    [
        *((rate, r"rate must be in \[0, 1\), got ") for rate in (-0.1, 1.0, 1.5, float("nan"))),
        *((rate, r"rate must be in \[0, 1\), got ") for rate in ((0.3, 1.0), (-0.1, 0.5))),
        *(
            (rate, r"\(low, high\) with low <= high, got ")
            for rate in ((0.5, 0.3), (0.1,) * 3, (0.1,))
        ),
    ],
)
def test_rate_outside_its_range_is_an_error(call, rate, message):
    with pytest.raises(ValueError, match=message):
        call(KEY, X, rate=rate)


@pytest.mark.parametrize("rate", [0.6, (0.6, 0.9), 0.0])
def test_exclusive_masks_that_do_not_fit_are_an_error(rate):
    assert not exclusive_masks_fit(3, rate)
    with pytest.raises(ValueError, match=r"must be at most 1, got 3 \* \(1 - 0\.[06]\)"):
        dropout_samples(KEY, X, rate=rate, num_samples=3, exclusive=True)


@pytest.mark.parametrize("rate", [2 / 3, 0.9, (2 / 3, 0.9), [0.7, 0.8]])
def test_exclusive_masks_fit_if_their_probabilities_add_up_to_at_most_one(rate):
    assert exclusive_masks_fit(3, rate)


@pytest.mark.parametrize("number", [np.float32, np.int32, jnp.float32, jnp.int32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [-1, 1])
def test_concrete_arrays_and_numpy_scalars_are_checked_as_numbers_are(rate, number):
    for bad in (number(rate), (0.3, number(rate)), (number(rate), 0.3)):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got "):
            sdd_jax.dropout(KEY, X, rate=bad)
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got "):
            jax.jit(lambda x, bad=bad: sdd_jax.dropout_pair(KEY, x, rate=bad))(X)


def test_bounds_of_a_random_rate_may_be_arrays():
    with pytest.raises(ValueError, match=r"\(low, high\) with low <= high, got "):
        sdd_jax.dropout(KEY, X, rate=(jnp.float32(0.5), 0.3))
    expected = sdd_jax.dropout(KEY, X, rate=(0.25, 0.5))
    bounds = jnp.float32(0.25), jnp.float32(0.5)
    np.testing.assert_array_equal(sdd_jax.dropout(KEY, X, rate=bounds), expected)


@pytest.mark.parametrize("rate", ["0.5", None, 1j, ("0.1", 0.5), jnp.array(True)])
def test_a_rate_that_is_not_a_number_is_an_error(rate):
    with pytest.raises(TypeError, match="rate must be a number, got "):
        sdd_jax.dropout(KEY, X, rate=rate)


@pytest.mark.parametrize("rate", [np.array([0.2, 0.5]), jnp.zeros(6), (0.1, jnp.zeros(1))])
def test_a_rate_that_is_not_a_scalar_is_an_error(rate):
    with pytest.raises(ValueError, match="rate must be a scalar, got an array of shape "):
        sdd_jax.dropout(KEY, X, rate=rate)
    with pytest.raises(ValueError, match="rate must be a scalar, got an array of shape "):
        jax.jit(lambda rate: sdd_jax.dropout(KEY, X, rate=rate))(rate)


def test_traced_rates_are_not_checked():
    one = jax.jit(lambda rate: sdd_jax.dropout(KEY, X, rate=(rate, 0.5)))(0.25)
    np.testing.assert_allclose(one, sdd_jax.dropout(KEY, X, rate=(0.25, 0.5)), rtol=1e-6)
    many = jax.vmap(lambda rate: sdd_jax.dropout(KEY, X, rate=rate))(jnp.array([0.3, 1.5]))
    np.testing.assert_allclose(many[0], sdd_jax.dropout(KEY, X, rate=0.3), rtol=1e-6)


def test_exclusive_masks_of_an_array_rate_are_checked():
    assert not exclusive_masks_fit(3, jnp.float32(0.5))
    assert exclusive_masks_fit(3, jnp.float32(2 / 3))
    with pytest.raises(ValueError, match=r"must be at most 1, got 2 \* \(1 - 0\.25\)"):
        sdd_jax.dropout_samples(KEY, X, rate=jnp.float32(0.25), num_samples=2, exclusive=True)


@pytest.mark.parametrize("key", [0, None, [0, 0], np.zeros(2, np.int32), jnp.zeros(2)], ids=str)
def test_a_key_that_is_not_a_prng_key_is_an_error(key):
    with pytest.raises(TypeError, match="key must be a PRNG key or an array of them, got "):
        sdd_jax.dropout(key, X, rate=0.5)
    with pytest.raises(TypeError, match="key must be a PRNG key or an array of them, got "):
        sdd_jax.sd_dropout_loss(X, lambda x: x, key)


def test_other_bad_arguments_are_errors():
    with pytest.raises(ValueError, match=r"keys, \(6,\), must be a prefix of x's, \(4, 3\)"):
        dropout(KEYS, jnp.ones((4, 3)), rate=0.5)
    with pytest.raises(ValueError, match=r"must be a prefix"):
        dropout(KEYS.reshape(2, 3), jnp.ones(2), rate=0.5)
    with pytest.raises(TypeError, match="x must be floating-point, got int32"):
        dropout(KEY, jnp.ones((3,), jnp.int32), rate=0.5)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        dropout_samples(KEY, X, rate=0.5, num_samples=0)
    for dims in [(0,), (2,), (-3,)]:  # examples with their own keys cannot share a mask
        with pytest.raises(ValueError, match="broadcast_dims must be dimensions of x after those"):
            dropout(KEYS, X, rate=0.5, broadcast_dims=dims)
        with pytest.raises(ValueError, match="broadcast_dims must be dimensions of x after those"):
            dropout_samples(KEYS, X, rate=0.0, num_samples=3, broadcast_dims=dims)
    with pytest.raises(ValueError, match=r"must be at most 1, got 2 \* \(1 - 0.4\)"):
        dropout_pair(KEYS, X, rate=0.4, exclusive=True)
