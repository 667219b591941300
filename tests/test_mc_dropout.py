"""Monte-Carlo dropout, against the enumeration of every mask."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import sdd_jax

RATE = 0.4
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 4)).astype(np.float32)
HEAD = 2 * RNG.normal(size=(4, 3)).astype(np.float32)
KEY = jax.random.key(0)


@jax.jit
def predict(key):
    return sdd_jax.dropout(key, jnp.asarray(FEATURES), rate=RATE) @ HEAD


def exact():
    masks = np.array(list(itertools.product([0, 1], repeat=4)))
    mass = np.prod(np.where(masks == 1, 1 - RATE, RATE), axis=1)
    logits = np.stack([FEATURES * m / (1 - RATE) @ HEAD for m in masks])
    probs = scipy.special.softmax(logits, axis=-1)
    mean = np.einsum("s,sbk->bk", mass, probs)
    expected_entropy = np.einsum("s,sbk->b", mass, scipy.special.entr(probs))
    return mean, scipy.special.entr(mean).sum(-1), expected_entropy


def test_many_samples_approach_the_enumeration():
    mean, entropy, expected_entropy = exact()
    result = sdd_jax.mc_dropout(predict, KEY, num_samples=20_000, chunk_size=5_000)
    # Standard error of a probability: at most 0.5 / sqrt(20000) = 0.0035.
    np.testing.assert_allclose(result.probs, mean, atol=0.015)
    np.testing.assert_allclose(result.entropy, entropy, atol=0.02)
    np.testing.assert_allclose(result.expected_entropy, expected_entropy, atol=0.02)
    np.testing.assert_allclose(result.mutual_information, entropy - expected_entropy, atol=0.03)
    assert float(result.mutual_information.min()) > 0.02


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_result_is_that_of_all_samples_at_once_whatever_the_chunks(chunk_size, compiled):
    run = partial(sdd_jax.mc_dropout, predict, num_samples=7, chunk_size=chunk_size)
    result = (jax.jit(run) if compiled else run)(KEY)
    probs = jax.nn.softmax(jnp.stack([predict(k) for k in jax.random.split(KEY, 7)]))
    np.testing.assert_allclose(result.probs, probs.mean(0), rtol=1e-5)
    expected_entropy = jax.scipy.special.entr(probs).sum(-1).mean(0)
    np.testing.assert_allclose(result.expected_entropy, expected_entropy, rtol=1e-4)
    entropy = jax.scipy.special.entr(probs.mean(0)).sum(-1)
    np.testing.assert_allclose(result.entropy, entropy, rtol=1e-4)
    np.testing.assert_allclose(result.mutual_information, entropy - expected_entropy, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_samples():
    features = jnp.ones((512, 256))

    def memory(num_samples):
        def run(key):
            return sdd_jax.mc_dropout(
                lambda k: sdd_jax.dropout(k, features, rate=RATE), key, num_samples=num_samples
            )

        return jax.jit(run).lower(KEY).compile().memory_analysis().temp_size_in_bytes

    assert memory(200) < 1.5 * memory(4)


def test_without_dropout_the_masks_agree():
    logits = jnp.asarray(FEATURES @ HEAD)
    result = sdd_jax.mc_dropout(lambda key: logits, KEY, num_samples=5)
    np.testing.assert_allclose(result.probs, jax.nn.softmax(logits), rtol=1e-5)
    np.testing.assert_allclose(result.mutual_information, np.zeros(6), atol=1e-6)


def test_half_precision_is_averaged_in_float32():
    result = sdd_jax.mc_dropout(lambda k: predict(k).astype(jnp.bfloat16), KEY, num_samples=3)
    assert all(x.dtype == jnp.float32 for x in result)


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"num_samples": 3, "chunk_size": 0}])
def test_fewer_than_one_sample_is_an_error(wrong):
    with pytest.raises(ValueError, match="must be at least 1, got"):
        sdd_jax.mc_dropout(predict, KEY, **wrong)
