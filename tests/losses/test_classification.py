"""Cross-entropies against labels, compared with numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from sdd_jax import cross_entropy, label_smoothing

LOGITS = np.random.default_rng(0).normal(size=(6, 5)) * 3
LABELS = np.array([0, 4, 2, 2, 1, 3])
LOG_P, ONE_HOT = log_softmax(LOGITS, axis=-1), np.eye(5)[LABELS]
FLOAT32 = jnp.asarray(LOGITS, jnp.float32)


def test_cross_entropy_and_its_gradient_equal_numpy():
    np.testing.assert_allclose(
        cross_entropy(FLOAT32, LABELS), -LOG_P[np.arange(6), LABELS], rtol=1e-5
    )
    gradient = jax.grad(lambda z: cross_entropy(z, LABELS).sum())(FLOAT32)
    np.testing.assert_allclose(gradient, np.exp(LOG_P) - ONE_HOT, atol=1e-6)


def test_cross_entropy_of_equal_logits_is_log_of_the_number_of_classes():
    loss = cross_entropy(jnp.zeros((3, 7)), jnp.asarray([0, 3, 6]))
    np.testing.assert_allclose(loss, np.log(7), rtol=1e-6)


def test_cross_entropy_at_extreme_logits_is_the_difference_of_logits():
    np.testing.assert_allclose(cross_entropy(jnp.asarray([1e4, -1e4, 0.0]), jnp.asarray(1)), 2e4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_label_smoothing_equals_numpy(smoothing):
    target = (1 - smoothing) * ONE_HOT + smoothing / 5
    loss = label_smoothing(FLOAT32, LABELS, smoothing=smoothing)
    np.testing.assert_allclose(loss, -(target * LOG_P).sum(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_smoothing_outside_its_range_is_an_error(smoothing):
    with pytest.raises(ValueError, match=rf"smoothing must be in \[0, 1\], got {smoothing}"):
        label_smoothing(FLOAT32, LABELS, smoothing=smoothing)
