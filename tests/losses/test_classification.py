"""Losses against labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdd_jax import cross_entropy, label_smoothing

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(6, 5)) * 3
LABELS = np.array([0, 4, 2, 2, 1, 3])


def numpy_log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def float32(x):
    return jnp.asarray(x, jnp.float32)


def test_cross_entropy_equals_numpy():
    expected = -numpy_log_softmax(LOGITS)[np.arange(6), LABELS]
    np.testing.assert_allclose(cross_entropy(float32(LOGITS), LABELS), expected, rtol=1e-5)


def test_cross_entropy_of_equal_logits_is_log_of_the_number_of_classes():
    loss = cross_entropy(jnp.zeros((3, 7)), jnp.asarray([0, 3, 6]))
    np.testing.assert_allclose(loss, np.log(7), rtol=1e-6)


def test_gradient_of_cross_entropy_is_posterior_minus_one_hot():
    gradient = jax.grad(lambda z: cross_entropy(z, LABELS).sum())(float32(LOGITS))
    expected = np.exp(numpy_log_softmax(LOGITS)) - np.eye(5)[LABELS]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
def test_label_smoothing_equals_numpy(smoothing):
    log_p = numpy_log_softmax(LOGITS)
    target = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    loss = label_smoothing(float32(LOGITS), LABELS, smoothing=smoothing)
    np.testing.assert_allclose(loss, -(target * log_p).sum(axis=-1), rtol=1e-5)


def test_label_smoothing_of_zero_is_cross_entropy():
    np.testing.assert_array_equal(
        label_smoothing(float32(LOGITS), LABELS, smoothing=0.0),
        cross_entropy(float32(LOGITS), LABELS),
    )


@pytest.mark.parametrize("loss", [cross_entropy, label_smoothing])
def test_loss_is_per_example_for_any_leading_shape(loss):
    logits, labels = float32(LOGITS), jnp.asarray(LABELS)
    batched = loss(logits.reshape(2, 3, 5), labels.reshape(2, 3))
    np.testing.assert_allclose(batched, loss(logits, labels).reshape(2, 3), rtol=1e-6)
    np.testing.assert_allclose(loss(logits[1], labels[1]), batched[0, 1], rtol=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, label_smoothing])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(loss, dtype):
    logits = jnp.asarray(LOGITS, dtype)
    value = loss(logits, LABELS)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, loss(logits.astype(jnp.float32), LABELS))


@pytest.mark.parametrize("loss", [cross_entropy, label_smoothing])
def test_float64_stays_and_gradients_agree_with_finite_differences(loss):
    with jax.enable_x64(True):
        logits = jnp.asarray(LOGITS)
        assert loss(logits, LABELS).dtype == jnp.float64
        check_grads(jax.jit(lambda z: loss(z, LABELS)), (logits,), order=1)


@pytest.mark.parametrize("loss", [cross_entropy, label_smoothing])
def test_value_and_gradient_are_finite_at_extreme_logits(loss):
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    value, gradient = jax.value_and_grad(lambda z: loss(z, jnp.asarray([1, 0])).sum())(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_cross_entropy_at_extreme_logits_is_the_difference_of_logits():
    logits = jnp.asarray([[1e4, -1e4, 0.0]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray([1])), 2e4)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_smoothing_outside_its_range_is_an_error(smoothing):
    with pytest.raises(ValueError, match=rf"smoothing must be in \[0, 1\], got {smoothing}"):
        label_smoothing(float32(LOGITS), LABELS, smoothing=smoothing)
