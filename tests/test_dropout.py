"""Dropout masks: values, distribution, exact expectation, and dependence on keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdd_jax
from sdd_jax.dropout import exclusive_masks_fit

# Compiled as a whole, which is much faster than operation by operation.
dropout = jax.jit(sdd_jax.dropout, static_argnames=("rate", "broadcast_dims"))
dropout_pair = jax.jit(sdd_jax.dropout_pair, static_argnames="rate")
dropout_samples = jax.jit(
    sdd_jax.dropout_samples, static_argnames=("rate", "num_samples", "exclusive")
)
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 6)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def normal(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), shape, dtype)


def kept(y):
    return np.asarray(y) != 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_values_are_zero_or_scaled(rate):
    x = normal(50, 40)
    y = dropout(KEY, x, rate=rate)
    np.testing.assert_allclose(y, np.where(kept(y), x / (1 - rate), 0), rtol=2**-17 / (1 - rate))
    # 2000 elements: five standard errors of the fraction that is kept.
    assert abs(kept(y).mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / 2000)


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


USUAL_RATES = [0.01, 0.1, 1 / 3, 0.5, 0.9, 0.99]
EXTREME_RATES = [1e-9, 1e-6, 0.003, 0.999, 0.99999, 0.999999, 1 - 1e-9]


def assert_expectation_is_one(y, keep_probability):
    y = np.asarray(y)
    scale, mask = y.max(), y > 0
    np.testing.assert_array_equal(y, np.where(mask, scale, 0))
    np.testing.assert_allclose(mask.mean() * np.float64(scale), 1, rtol=2**-23)
    # The mask has the probability it was asked for, as far as its words resolve it; never zero.
    resolution = 1 / mask.size
    np.testing.assert_allclose(
        mask.mean(), max(keep_probability, resolution), rtol=0, atol=1.01 * resolution
    )


@pytest.mark.parametrize(
    ("rate", "bits"), [*((r, 16) for r in USUAL_RATES), *((r, 24) for r in EXTREME_RATES)]
)
def test_expectation_is_exact_for_every_rate(rate, bits, every_word):
    assert_expectation_is_one(sdd_jax.dropout(KEY, jnp.ones(2**bits), rate=rate), 1 - rate)


@pytest.mark.parametrize("rate", [0.003, 0.3, 0.99999])
def test_expectation_is_exact_for_traced_rates(rate, every_word):
    y = sdd_jax.dropout(KEY, jnp.ones(2**24), rate=jnp.float32(rate))  # unknown as if traced
    if rate == 0.3:  # a usual rate keeps its resolution of 16 bits
        y = y.reshape(2**16, 2**8)
        np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1], y.shape))
        y = y[:, 0]
    assert_expectation_is_one(y, 1 - rate)


@pytest.mark.parametrize(("rate", "bits"), [((0.0, 0.5), 16), ((0.99, 0.9999), 24)])
def test_expectation_is_exact_for_random_rates(rate, bits, every_word):
    drawn = rate[0] + (rate[1] - rate[0]) * (1 / 4 + 2**-17)
    assert_expectation_is_one(sdd_jax.dropout(KEY, jnp.ones(2**bits), rate=rate), 1 - drawn)


@pytest.mark.parametrize(("rate", "bits"), [(0.7, 16), (2 / 3, 16), (0.99995, 24)])
def test_expectation_is_exact_for_exclusive_masks(rate, bits, every_word):
    options = {"rate": rate, "num_samples": 3, "exclusive": True}
    samples = sdd_jax.dropout_samples(KEY, jnp.ones(2**bits), **options)
    for y in samples:
        assert_expectation_is_one(y, 1 - rate)
    assert (np.count_nonzero(samples, axis=0) <= 1).all()


def test_expectation_is_exact_in_float64(every_word):
    with jax.enable_x64(True):
        y = np.asarray(sdd_jax.dropout(KEY, jnp.ones(2**16, jnp.float64), rate=0.3))
    np.testing.assert_allclose(y.mean(), 1, rtol=1e-14)


@pytest.mark.parametrize("rate", [1e-3, 0.3, 0.999])
def test_a_traced_rate_gives_the_masks_of_the_same_rate_known(rate):
    x = normal(50, 40)
    traced = jax.jit(lambda rate: sdd_jax.dropout(KEY, x, rate=rate))(rate)
    np.testing.assert_allclose(traced, dropout(KEY, x, rate=rate), rtol=1e-6)


def test_zeros_stay_zeros_where_the_scale_exceeds_the_dtype():
    y = dropout(KEY, jnp.zeros(2000, jnp.float16), rate=1 - 1e-6)
    np.testing.assert_array_equal(y, 0)


def test_rate_zero_is_identity():
    x = normal(3, 4)
    np.testing.assert_array_equal(dropout(KEY, x, rate=0.0), x)
    for y in dropout_samples(KEY, x, rate=0, num_samples=3):
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("dim", [1, -2])
def test_broadcast_dims_share_one_mask(dim):
    y = kept(dropout(KEY, jnp.ones((4, 5, 20)), rate=0.5, broadcast_dims=(dim,)))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    assert len(np.unique(y[:, 0], axis=0)) == 4  # and the other dimensions do not share it


def test_different_keys_give_different_masks():
    x = jnp.ones((100,))
    a, b = (kept(dropout(key, x, rate=0.5)) for key in jax.random.split(KEY))
    assert 20 < (a == b).sum() < 80  # independent masks agree on half of the elements


def test_keys_per_example_permute_with_their_rows():
    x, order = normal(6, 16), np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(
        dropout(KEYS[order], x[order], rate=0.5), dropout(KEYS, x, rate=0.5)[order]
    )


def test_keys_per_example_give_the_same_masks_in_parts_of_the_batch():
    x = normal(6, 16)
    parts = [dropout(KEYS[i : i + 2], x[i : i + 2], rate=(0.2, 0.6)) for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), dropout(KEYS, x, rate=(0.2, 0.6)))


def test_keys_per_example_equal_one_key_each():
    x = normal(6, 16)
    rows = [dropout(key, row, rate=0.5) for key, row in zip(KEYS, x, strict=True)]
    np.testing.assert_array_equal(np.stack(rows), dropout(KEYS, x, rate=0.5))


def test_keys_may_have_two_dimensions():
    x, keys = normal(2, 3, 16), KEYS.reshape(2, 3)
    flat = dropout(KEYS, x.reshape(6, 16), rate=0.5)
    np.testing.assert_array_equal(dropout(keys, x, rate=0.5), flat.reshape(2, 3, 16))


@pytest.mark.parametrize("keys", [KEY, KEYS], ids=["one key", "a key per example"])
def test_raw_keys_equal_typed_keys(keys):
    x = normal(6, 16)
    raw = jax.random.key_data(keys)
    assert raw.dtype == jnp.uint32
    np.testing.assert_array_equal(dropout(raw, x, rate=0.5), dropout(keys, x, rate=0.5))


def test_random_rate_is_drawn_within_its_bounds_once_per_key():
    keys = jax.random.split(KEY, 200)
    y = np.asarray(dropout(keys, jnp.ones((200, 400)), rate=(0.3, 0.5)))
    scale = y.max(axis=1)
    np.testing.assert_array_equal(y, np.where(y != 0, scale[:, None], 0))  # one rate a key
    rates = 1 - 1 / scale
    assert rates.min() >= 0.3 - 1e-6
    assert rates.max() <= 0.5 + 1e-6
    # Uniform rates: mean 0.4, standard deviation 0.2 / sqrt(12); five standard errors.
    assert abs(rates.mean() - 0.4) < 5 * 0.2 / np.sqrt(12 * 200)
    assert abs(rates.std() - 0.2 / np.sqrt(12)) < 0.01
    # The masks follow the rates that their scales imply.
    deviation = ((y == 0).mean(axis=1) - rates) / np.sqrt(rates * (1 - rates) / 400)
    assert abs(deviation.mean()) < 5 / np.sqrt(200)


def test_random_rate_is_shared_by_all_masks():
    samples = dropout_samples(KEYS, jnp.ones((6, 200)), rate=(0.1, 0.8), num_samples=3)
    scales = np.stack([np.asarray(y).max(axis=1) for y in samples])
    np.testing.assert_array_equal(scales, np.broadcast_to(scales[0], scales.shape))
    assert len(np.unique(scales[0])) == 6


@pytest.mark.parametrize("keys", [KEY, KEYS], ids=["one key", "a key per example"])
def test_pair_equals_dropout_with_the_split_halves(keys):
    x = normal(6, 16)
    halves = jax.random.split(keys) if keys.ndim == 0 else jax.vmap(jax.random.split)(keys).T
    for y, half in zip(dropout_pair(keys, x, rate=0.4), halves, strict=True):
        np.testing.assert_array_equal(y, dropout(half, x, rate=0.4))


def test_masks_of_a_pair_are_independent():
    u, v = (kept(y) for y in dropout_pair(KEYS, jnp.ones((6, 1000)), rate=0.3))
    for joint, p in [(u & v, 0.49), (u & ~v, 0.21), (~u & v, 0.21), (~u & ~v, 0.09)]:
        assert abs(joint.mean() - p) < 5 * np.sqrt(p * (1 - p) / 6000)


@pytest.mark.parametrize(("rate", "num_samples"), [(0.5, 2), (0.75, 3), (0.75, 4), (0.8, 2)])
def test_exclusive_masks_are_disjoint_and_keep_with_the_same_probability(rate, num_samples):
    x = jnp.ones((6, 1000))
    samples = dropout_samples(KEYS, x, rate=rate, num_samples=num_samples, exclusive=True)
    masks = np.stack([kept(y) for y in samples])
    assert masks.sum(axis=0).max() == 1
    if num_samples * (1 - rate) == 1:
        assert masks.sum(axis=0).min() == 1
    for mask, y in zip(masks, samples, strict=True):
        assert abs(mask.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / 6000)
        np.testing.assert_allclose(np.asarray(y)[mask], 1 / (1 - rate), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("rate", [0.5, (0.3, 0.5)])
def test_dtype_is_kept_and_the_masks_do_not_depend_on_it(dtype, rate):
    x = jnp.ones((6, 32), dtype)
    y = dropout(KEYS, x, rate=rate)
    assert y.dtype == dtype
    np.testing.assert_array_equal(kept(y), kept(dropout(KEYS, jnp.ones((6, 32)), rate=rate)))


@pytest.mark.parametrize("rate", [0.1, 0.9, 0.99])
def test_scale_in_bfloat16_is_the_rounded_true_scale(rate):
    y = dropout(KEY, jnp.ones((2000,), jnp.bfloat16), rate=rate)
    true = jnp.asarray(1 / (1 - rate), jnp.bfloat16)
    np.testing.assert_allclose(
        np.asarray(y[y != 0], np.float32), np.asarray(true, np.float32), rtol=2**-7
    )


def test_masks_are_the_same_under_jit():
    x = normal(6, 16)
    jitted = dropout_samples(KEYS, x, rate=(0.2, 0.6), num_samples=3)
    eager = sdd_jax.dropout_samples(KEYS, x, rate=(0.2, 0.6), num_samples=3)
    for a, b in zip(jitted, eager, strict=True):
        np.testing.assert_array_equal(kept(a), kept(b))
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_masks_are_the_same_in_x64():
    x = np.ones((6, 64), np.float32)
    single = [kept(y) for y in dropout_pair(KEYS, jnp.asarray(x), rate=0.3)]
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            double = dropout_pair(KEYS, jnp.asarray(x, dtype), rate=0.3)
            for a, b in zip(single, double, strict=True):
                assert b.dtype == dtype
                np.testing.assert_array_equal(a, kept(b))


def test_gradient_passes_through_the_kept_elements_only():
    x = normal(6, 16)
    y = dropout(KEYS, x, rate=0.3)
    gradient = jax.grad(lambda x: dropout(KEYS, x, rate=0.3).sum())(x)
    np.testing.assert_allclose(gradient, np.where(kept(y), 1 / 0.7, 0), rtol=1e-5)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), (0.3, 1.0), (-0.1, 0.5)])
def test_rate_outside_its_range_is_an_error(rate):
    for call in (dropout, dropout_pair):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got .*"):
            call(KEY, normal(2, 3), rate=rate)


@pytest.mark.parametrize("rate", [(0.5, 0.3), (0.1, 0.2, 0.3), (0.1,)])
def test_random_rate_that_is_not_an_interval_is_an_error(rate):
    with pytest.raises(ValueError, match=r"must be \(low, high\) with low <= high, got \(0"):
        dropout(KEY, normal(2, 3), rate=rate)


def test_keys_that_are_not_a_prefix_are_an_error():
    with pytest.raises(ValueError, match=r"keys, \(6,\), must be a prefix of x's, \(4, 3\)"):
        dropout(KEYS, normal(4, 3), rate=0.5)
    with pytest.raises(ValueError, match=r"must be a prefix"):
        dropout(KEYS.reshape(2, 3), normal(2), rate=0.5)


def test_integer_input_is_an_error():
    with pytest.raises(TypeError, match="x must be floating-point, got int32"):
        dropout(KEY, jnp.ones((3,), jnp.int32), rate=0.5)


def test_no_masks_is_an_error():
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        dropout_samples(KEY, normal(2, 3), rate=0.5, num_samples=0)


@pytest.mark.parametrize("rate", [0.6, (0.6, 0.9), 0.0])
def test_exclusive_masks_that_do_not_fit_are_an_error(rate):
    assert not exclusive_masks_fit(3, rate)
    with pytest.raises(ValueError, match=r"must be at most 1, got 3 \* \(1 - 0\.[06]\)"):
        dropout_samples(KEY, normal(2, 3), rate=rate, num_samples=3, exclusive=True)


@pytest.mark.parametrize("rate", [2 / 3, 0.9, (2 / 3, 0.9), [0.7, 0.8]])
def test_exclusive_masks_fit_if_their_probabilities_add_up_to_at_most_one(rate):
    assert exclusive_masks_fit(3, rate)


def test_a_random_rate_may_be_a_list():
    x = normal(8, 8)
    expected = sdd_jax.dropout(KEY, x, rate=(0.3, 0.5))
    np.testing.assert_array_equal(sdd_jax.dropout(KEY, x, rate=[0.3, 0.5]), expected)


@pytest.mark.parametrize("dims", [(0,), (2,), (-3,)])
def test_examples_with_their_own_keys_cannot_share_a_mask(dims):
    keys = jax.random.split(jax.random.key(0), 4)
    with pytest.raises(ValueError, match="broadcast_dims must be dimensions of x after those"):
        dropout(keys, jnp.ones((4, 8)), rate=0.5, broadcast_dims=dims)
