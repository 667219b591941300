"""The SD-Dropout loss in expectation and for each draw of the masks."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from sdd_jax import (
    dropout,
    dropout_samples,
    dropped_logits,
    sd_dropout_clean_student_loss,
    sd_dropout_loss,
)

RANDOM = np.random.default_rng(0)
FEATURES = jnp.asarray(RANDOM.normal(size=(6, 16)), jnp.float32)
KERNEL = jnp.asarray(RANDOM.normal(size=(16, 5)), jnp.float32)
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 6)


def head(features):
    return features @ KERNEL


def numpy_kl(target, prediction, temperature):
    p, q = (softmax(np.asarray(z, np.float64) / temperature, -1) for z in (target, prediction))
    return rel_entr(p, q).sum(axis=-1)


def numpy_symmetric_kl(u, v, temperature):
    return numpy_kl(u, v, temperature) + numpy_kl(v, u, temperature)


@partial(jax.jit, static_argnames="options")
def loss_and_logits(keys, temperature, options):
    """The loss, and the logits of features dropped by the function that test_dropout tests."""
    options = dict(options)
    loss = sd_dropout_loss(FEATURES, head, keys, temperature=temperature, **options)
    options = {"rate": 0.5, "num_samples": 2} | options
    logits = dropped_logits(FEATURES, head, keys, **options)
    return loss, logits, [head(x) for x in dropout_samples(keys, FEATURES, **options)]


@pytest.mark.parametrize("keys", [KEY, KEYS], ids=["one key", "key per example"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rate": (0.3, 0.5)},
        {"rate": 0.6, "exclusive": True},
        {"rate": 0.3, "num_samples": 3},
        {"rate": 0.7, "num_samples": 3, "exclusive": True},
    ],
    ids=str,
)
def test_loss_is_the_mean_of_the_equation_over_pairs_of_dropped_features(keys, options):
    loss, logits, expected_logits = loss_and_logits(keys, 2.0, tuple(options.items()))
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-5)
    pairs = itertools.combinations(logits, 2)
    expected = 4 * np.mean([numpy_symmetric_kl(u, v, 2.0) for u, v in pairs], axis=0)
    assert (expected > 0.1).any()
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


def test_defaults_are_those_of_the_paper():
    options = {"rate": 0.5, "temperature": 3.0, "num_samples": 2, "gradient": "both"}
    expected = sd_dropout_loss(FEATURES, head, KEY, **options)
    np.testing.assert_array_equal(sd_dropout_loss(FEATURES, head, KEY), expected)


def test_clean_student_is_taught_by_the_dropped_posterior():
    teacher = head(dropout(KEYS, FEATURES, rate=0.4))
    loss = sd_dropout_clean_student_loss(FEATURES, head, KEYS, rate=0.4, temperature=2.0)
    np.testing.assert_allclose(loss, 4 * numpy_kl(teacher, head(FEATURES), 2.0), rtol=1e-4)


def test_rate_zero_gives_zero():
    for loss in (sd_dropout_loss, sd_dropout_clean_student_loss):
        np.testing.assert_array_equal(loss(FEATURES, head, KEY, rate=0.0), 0)


def enumerated_loss(features, kernel, rate, exclusive=False, num_samples=2):
    """The expectation over all pairs of masks, weighted by their probabilities."""
    masks = np.array(list(itertools.product([0, 1], repeat=len(features))))
    probability = np.prod(np.where(masks, 1 - rate, rate), axis=1)
    logits = (features * masks / (1 - rate)) @ kernel
    if exclusive:  # at rate 1/2, the second mask is the complement of the first
        assert rate == 0.5
        return (probability * 9 * numpy_symmetric_kl(logits, logits[::-1], 3.0)).sum()
    loss = 9 * numpy_symmetric_kl(logits[:, None], logits[None, :], 3.0)
    return probability @ loss @ probability


@pytest.mark.parametrize(
    "options",
    [{"rate": 0.5}, {"rate": 0.3, "num_samples": 3}, {"rate": 0.5, "exclusive": True}],
    ids=str,
)
def test_mean_over_keys_is_the_expectation_by_enumeration(options):
    features, kernel = RANDOM.normal(size=4) * 2, RANDOM.normal(size=(4, 3))
    expected = enumerated_loss(features, kernel, **options)
    repeated = jnp.tile(jnp.asarray(features, jnp.float32), (8192, 1))
    to_logits = lambda f: f @ jnp.asarray(kernel, jnp.float32)  # noqa: E731
    loss = jax.jit(lambda keys: sd_dropout_loss(repeated, to_logits, keys, **options))(
        jax.random.split(jax.random.key(7), 8192)
    )
    standard_error = np.std(loss) / np.sqrt(8192)
    assert abs(np.mean(loss) - expected) < 4 * standard_error
    assert standard_error < 0.05 * expected  # otherwise the line above shows little


@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("shape", [(6, 16), (2, 3, 16)])
def test_head_is_called_once_on_all_masks(num_samples, shape):
    calls = []

    def recording_head(features):
        calls.append(features.shape)
        return head(features)

    def loss(features):
        return sd_dropout_loss(features, recording_head, KEY, num_samples=num_samples)

    assert jax.eval_shape(loss, FEATURES.reshape(shape)).shape == shape[:-1]
    assert calls == [(shape[0] * num_samples, *shape[1:])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"num_samples": 1}, "num_samples must be at least 2, got 1"),
        ({"rate": 0.3, "exclusive": True}, r"must be at most 1, got 2 \* \(1 - 0.3\)"),
    ],
    ids=str,
)
def test_bad_arguments_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        sd_dropout_loss(FEATURES, head, KEY, **options)


@pytest.mark.parametrize("loss", [sd_dropout_loss, sd_dropout_clean_student_loss])
@pytest.mark.parametrize("features", [FEATURES, FEATURES[0]], ids=["batch", "single"])
def test_a_head_that_returns_something_else_than_logits_is_an_error(loss, features):
    for wrong in (lambda f: (head(f), f), lambda f: {"logits": head(f)}, lambda f: None):
        with pytest.raises(TypeError, match=r"head_fn must return logits .*, an array, got "):
            loss(features, wrong, KEY)


@pytest.mark.parametrize("loss", [sd_dropout_loss, sd_dropout_clean_student_loss])
def test_a_head_that_returns_another_number_of_examples_is_an_error(loss):
    for wrong in (lambda f: head(f)[:3], lambda f: head(f).mean(), lambda f: head(f).sum(axis=-1)):
        with pytest.raises(
            ValueError, match=r"head_fn must return logits .*, got \(.*\) for \(1?[26]"
        ):
            loss(FEATURES, wrong, KEY)
