"""The SD-Dropout loss: what it computes, in expectation and for each draw of the masks."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import (
    dropout,
    dropout_samples,
    dropped_logits,
    kl_divergence,
    sd_dropout_clean_student_loss,
    sd_dropout_loss,
    symmetric_kl,
)

RANDOM = np.random.default_rng(0)
FEATURES = jnp.asarray(RANDOM.normal(size=(6, 16)), jnp.float32)
KERNEL = jnp.asarray(RANDOM.normal(size=(16, 5)), jnp.float32)
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 6)


def head(features):
    return features @ KERNEL


@partial(jax.jit, static_argnames=("rate", "num_samples", "exclusive"))
def samples_of(keys, rate, num_samples=2, exclusive=False):
    """Dropped features, by the function whose own tests are in test_dropout."""
    return dropout_samples(keys, FEATURES, rate=rate, num_samples=num_samples, exclusive=exclusive)


def numpy_symmetric_kl(u, v, temperature):
    """In float64: sum (p - q)(log p - log q), equal to the sum of the two divergences."""
    p, q = (np.exp(np.asarray(z, np.float64) / temperature) for z in (u, v))
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    return ((p - q) * (np.log(p) - np.log(q))).sum(axis=-1)


@pytest.mark.parametrize("keys", [KEY, KEYS], ids=["one key", "a key per example"])
@pytest.mark.parametrize(
    "options",
    [{"rate": 0.5}, {"rate": 0.3}, {"rate": (0.3, 0.5)}, {"rate": 0.6, "exclusive": True}],
    ids=str,
)
def test_loss_equals_the_equation_on_dropped_features(keys, options):
    u, v = samples_of(keys, **options)
    loss = sd_dropout_loss(FEATURES, head, keys, temperature=3.0, **options)
    expected = 9 * numpy_symmetric_kl(head(u), head(v), 3.0)
    assert loss.shape == (6,)
    assert (expected > 0.1).any()
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


def test_defaults_are_the_papers():
    np.testing.assert_array_equal(
        sd_dropout_loss(FEATURES, head, KEY),
        sd_dropout_loss(
            FEATURES, head, KEY, rate=0.5, temperature=3.0, num_samples=2, gradient="both"
        ),
    )


@pytest.mark.parametrize(
    "options", [{"rate": 0.5}, {"rate": (0.3, 0.5)}, {"rate": 0.7, "exclusive": True}], ids=str
)
def test_three_masks_give_the_mean_over_their_pairs(options):
    a, b, c = (head(f) for f in samples_of(KEYS, num_samples=3, **options))
    loss = sd_dropout_loss(FEATURES, head, KEYS, temperature=2.0, num_samples=3, **options)
    expected = 4 * np.mean(
        [numpy_symmetric_kl(u, v, 2.0) for u, v in [(a, b), (a, c), (b, c)]], axis=0
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


def test_rate_zero_gives_zero():
    np.testing.assert_array_equal(sd_dropout_loss(FEATURES, head, KEY, rate=0.0), 0)
    np.testing.assert_array_equal(sd_dropout_clean_student_loss(FEATURES, head, KEY, rate=0.0), 0)


def enumerated_loss(features, kernel, rate, exclusive):
    """The expectation over all pairs of masks, weighted by their probabilities."""
    masks = np.array(list(itertools.product([0, 1], repeat=len(features))))
    kept = masks.sum(axis=1)
    probability = (1 - rate) ** kept * rate ** (len(features) - kept)
    logits = (features * masks / (1 - rate)) @ kernel
    if exclusive:  # at rate 1/2, the second mask keeps exactly what the first one drops
        assert rate == 0.5
        return (probability * 9 * numpy_symmetric_kl(logits, logits[::-1], 3.0)).sum()
    loss = 9 * numpy_symmetric_kl(logits[:, None], logits[None, :], 3.0)
    return probability @ loss @ probability


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0.5},
        {"rate": 0.3},
        {"rate": 0.3, "num_samples": 3},
        {"rate": 0.5, "exclusive": True},
    ],
    ids=str,
)
def test_mean_over_keys_is_the_expectation_by_enumeration(options):
    draws = 8192
    features, kernel = RANDOM.normal(size=4) * 2, RANDOM.normal(size=(4, 3))
    expected = enumerated_loss(features, kernel, options["rate"], options.get("exclusive", False))
    loss = jax.jit(
        lambda keys: sd_dropout_loss(
            jnp.broadcast_to(jnp.asarray(features, jnp.float32), (draws, 4)),
            lambda f: f @ jnp.asarray(kernel, jnp.float32),
            keys,
            **options,
        )
    )(jax.random.split(jax.random.key(7), draws))
    standard_error = np.std(loss) / np.sqrt(draws)
    assert abs(np.mean(loss) - expected) < 4 * standard_error
    assert standard_error < 0.05 * expected  # so that the line above says something


def test_single_features_under_vmap_equal_the_batch():
    single = jax.vmap(lambda f, key: sd_dropout_loss(f, head, key, rate=0.4))
    np.testing.assert_allclose(
        jax.jit(single)(FEATURES, KEYS),
        sd_dropout_loss(FEATURES, head, KEYS, rate=0.4),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("loss", [sd_dropout_loss, sd_dropout_clean_student_loss])
def test_features_of_sequences_give_a_loss_for_each_position(loss):
    """Positions of a sequence are dropped like examples of a batch, by a key each."""
    keys = jax.random.split(KEY, (2, 3))
    sequences = FEATURES.reshape(2, 3, 16)
    value = loss(sequences, head, keys)
    assert value.shape == (2, 3)
    flat = loss(FEATURES, head, keys.reshape(6))
    np.testing.assert_allclose(value, flat.reshape(2, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("shape", [(6, 16), (2, 3, 16)])
def test_head_is_called_once_on_all_masks(num_samples, shape):
    seen = []

    def recording_head(features):
        seen.append(features.shape)
        return head(features)

    loss = sd_dropout_loss(FEATURES.reshape(shape), recording_head, KEY, num_samples=num_samples)
    assert seen == [(shape[0] * num_samples, *shape[1:])]
    assert loss.shape == shape[:-1]


def test_dropped_logits_are_the_heads_of_dropped_features():
    for logits, sample in zip(
        dropped_logits(FEATURES, head, KEYS, rate=0.4, num_samples=3),
        samples_of(KEYS, 0.4, num_samples=3),
        strict=True,
    ):
        np.testing.assert_allclose(logits, head(sample), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", ["both", "forward", "reverse"])
def test_gradient_reaches_the_features_as_that_of_symmetric_kl(gradient):
    # The masks as numbers: what the loss multiplies the features with.
    scales = [np.asarray(s / FEATURES) for s in samples_of(KEYS, 0.5)]

    def by_hand(features):
        u, v = (head(features * scale) for scale in scales)
        return 4 * symmetric_kl(u, v, temperature=2.0, gradient=gradient).sum()

    def loss(features):
        return sd_dropout_loss(features, head, KEYS, temperature=2.0, gradient=gradient).sum()

    expected = jax.grad(by_hand)(FEATURES)
    np.testing.assert_allclose(jax.grad(loss)(FEATURES), expected, rtol=1e-4, atol=1e-5)


def test_clean_student_is_taught_by_the_dropped_posterior():
    teacher = head(dropout(KEYS, FEATURES, rate=0.4))
    loss = sd_dropout_clean_student_loss(FEATURES, head, KEYS, rate=0.4, temperature=2.0)
    expected = 4 * kl_divergence(teacher, head(FEATURES), temperature=2.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [sd_dropout_loss, sd_dropout_clean_student_loss])
def test_classes_that_are_masked_equal_a_head_without_them(loss):
    keep = np.array([True, False, True, True, False])
    masked = loss(FEATURES, head, KEYS, where=jnp.asarray(keep))
    removed = loss(FEATURES, lambda f: f @ KERNEL[:, keep], KEYS)
    np.testing.assert_allclose(masked, removed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [sd_dropout_loss, sd_dropout_clean_student_loss])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_features_give_a_float32_loss(loss, dtype):
    value = loss(FEATURES.astype(dtype), lambda f: f @ KERNEL.astype(dtype), KEYS)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss(FEATURES, head, KEYS), rtol=0.2, atol=0.1)


@pytest.mark.parametrize("loss", [sd_dropout_loss, sd_dropout_clean_student_loss])
def test_float64_stays_and_has_the_same_masks(loss):
    single = loss(FEATURES, head, KEYS)
    with jax.enable_x64(True):
        kernel = jnp.asarray(KERNEL, jnp.float64)
        double = loss(jnp.asarray(FEATURES, jnp.float64), lambda f: f @ kernel, KEYS)
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        ({"temperature": 0.0}, r"temperature must be greater than 0 and finite, got 0.0"),
        ({"temperature": -2}, r"temperature must be greater than 0 and finite, got -2"),
        ({"gradient": "none"}, r"gradient must be one of both, forward, reverse, got 'none'"),
    ],
    ids=str,
)
def test_bad_arguments_are_errors(options, message):
    for loss in (sd_dropout_loss, sd_dropout_clean_student_loss):
        with pytest.raises(ValueError, match=message):
            loss(FEATURES, head, KEY, **options)


@pytest.mark.parametrize("num_samples", [0, 1])
def test_fewer_than_two_masks_are_an_error(num_samples):
    with pytest.raises(ValueError, match=rf"num_samples must be at least \d, got {num_samples}"):
        sd_dropout_loss(FEATURES, head, KEY, num_samples=num_samples)


def test_exclusive_masks_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"must be at most 1, got 2 \* \(1 - 0.3\)"):
        sd_dropout_loss(FEATURES, head, KEY, rate=0.3, exclusive=True)
