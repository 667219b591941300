"""Monte-Carlo dropout, compared with the enumeration of every mask."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import entr, softmax

from sdd_jax import DropoutEnsemble, dropout, mc_dropout

RATE = 0.4
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 4)).astype(np.float32)
HEAD = 2 * RNG.normal(size=(4, 3)).astype(np.float32)
KEY = jax.random.key(0)
MASKS = np.array(list(itertools.product([0, 1], repeat=4)))
MASS = np.prod(np.where(MASKS == 1, 1 - RATE, RATE), axis=1)  # probability of each mask
LOGITS = np.stack([FEATURES * m / (1 - RATE) @ HEAD for m in MASKS])  # float64, [16, 6, 3]


@jax.jit
def predict(key):
    return dropout(key, jnp.asarray(FEATURES), rate=RATE) @ HEAD


def numpy_prediction(logits, mass=None):
    """Probabilities, entropy, expected entropy and mutual information of weighted samples."""
    probs = softmax(np.asarray(logits, np.float64), axis=-1)
    mean = np.average(probs, axis=0, weights=mass)
    expected_entropy = np.average(entr(probs).sum(-1), axis=0, weights=mass)
    return mean, entr(mean).sum(-1), expected_entropy, entr(mean).sum(-1) - expected_entropy


def assert_prediction(actual, expected, **tolerances):
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, **tolerances)


def test_many_samples_approach_the_enumeration():
    result = mc_dropout(predict, KEY, num_samples=20_000, chunk_size=5_000)
    # Standard error of a probability: at most 0.5 / sqrt(20000) = 0.0035.
    assert_prediction(result, numpy_prediction(LOGITS, MASS), atol=0.02)
    assert float(result.mutual_information.min()) > 0.02


@pytest.mark.parametrize("chunk_size", [None, 3, 7, 100])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_result_is_that_of_all_samples_at_once_for_any_chunk_size(chunk_size, compiled):
    run = partial(mc_dropout, predict, num_samples=7, chunk_size=chunk_size)
    result = (jax.jit(run) if compiled else run)(KEY)
    expected = numpy_prediction([predict(k) for k in jax.random.split(KEY, 7)])
    assert_prediction(result, expected, rtol=1e-4, atol=1e-5)


def test_mutual_information_of_few_masks_is_biased_low_by_about_its_mth_part():
    *_, information = numpy_prediction(LOGITS, MASS)
    for m in (1, 2, 4):
        tuples = np.array(list(itertools.product(range(16), repeat=m)))
        ensemble = DropoutEnsemble.of(LOGITS[tuples.T], sample_axis=0)
        estimate = MASS[tuples].prod(axis=1) @ ensemble.prediction().mutual_information
        bias = (information - estimate) * m / information
        np.testing.assert_allclose(bias, 1, rtol=1e-9 if m == 1 else 0.35)


def test_memory_does_not_grow_with_the_number_of_samples():
    features = jnp.ones((512, 256))

    def memory(num_samples):
        run = partial(mc_dropout, lambda k: dropout(k, features, rate=RATE))
        compiled = jax.jit(partial(run, num_samples=num_samples)).lower(KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(200) < 1.5 * memory(4)


def test_without_dropout_the_masks_agree():
    logits = FEATURES @ HEAD
    result = mc_dropout(lambda key: jnp.asarray(logits), KEY, num_samples=5)
    assert_prediction(result, numpy_prediction([logits]), rtol=1e-5, atol=1e-6)


def test_a_logit_of_minus_infinity_excludes_its_class():
    bias = jnp.tile(jnp.asarray([0, -np.inf, 0], jnp.float32), (6, 1))
    result = mc_dropout(lambda key: predict(key) + bias, KEY, num_samples=5)
    kept = mc_dropout(lambda key: predict(key)[:, ::2], KEY, num_samples=5)
    np.testing.assert_array_equal(result.probs[:, 1], 0)
    assert_prediction((result.probs[:, ::2], *result[1:]), kept, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(
        lambda b: mc_dropout(lambda k: predict(k) + b, KEY, num_samples=2).entropy.sum()
    )(bias)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 1], 0)


def test_an_ensemble_of_numpy_arrays_stays_in_float64():
    logits = np.where(np.arange(3) == 1, -np.inf, LOGITS[:5])
    one_by_one = DropoutEnsemble.of(logits[0])
    for z in logits[1:]:
        one_by_one = one_by_one.add(z)
    at_once = DropoutEnsemble.of(np.moveaxis(logits[:2], 0, 1), sample_axis=1)
    at_once = at_once.add(logits[2:], sample_axis=0)
    for ensemble in (one_by_one, at_once):
        prediction = ensemble.prediction()
        assert ensemble.count == 5
        assert all(isinstance(x, np.ndarray) and x.dtype == np.float64 for x in prediction)
        assert_prediction(prediction, numpy_prediction(logits), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_an_ensemble_may_be_the_carry_of_a_scan_in_float32(dtype):
    @jax.jit
    def run(logits):
        step = lambda ensemble, z: (ensemble.add(z), None)  # noqa: E731
        return jax.lax.scan(step, DropoutEnsemble.of(logits[0]), logits[1:])[0].prediction()

    logits = jnp.asarray(LOGITS, dtype)
    assert all(x.dtype == jnp.float32 for x in run(logits))
    assert_prediction(run(logits), numpy_prediction(logits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"num_samples": 3, "chunk_size": 0}])
def test_fewer_than_one_sample_is_an_error(wrong):
    with pytest.raises(ValueError, match="must be at least 1, got"):
        mc_dropout(predict, KEY, **wrong)


def test_a_network_that_returns_no_array_is_an_error():
    with pytest.raises(TypeError, match=r"predict_fn must return logits .*, an array, got tuple"):
        mc_dropout(lambda key: (predict(key), key), KEY, num_samples=2)
    with pytest.raises(TypeError, match=r"logits must be an array .*, got list"):
        DropoutEnsemble.of([[0.0, 1.0]])


@pytest.mark.parametrize("shape", [(6, 1), (1, 3), (6, 6, 3)])
def test_masks_of_an_ensemble_do_not_broadcast(shape):
    with pytest.raises(ValueError, match=r"must have the ensemble's shape \(6, 3\), got \("):
        DropoutEnsemble.of(predict(KEY)).add(jnp.zeros(shape))
