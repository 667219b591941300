"""Losses against softened labels, compared with numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from sdd_jax import label_smoothing, ps_kd_loss, tf_kd_loss

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(6, 5)) * 3
PAST = RANDOM.dirichlet(np.ones(5), size=6)
LABELS = np.array([0, 4, 2, 2, 1, 3])
ONE_HOT = np.eye(5)[LABELS]
FLOAT32, FLOAT32_PAST = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(PAST, jnp.float32)


def numpy_ps_kd(alpha):
    target = (1 - alpha) * ONE_HOT + alpha * PAST
    return -(target * log_softmax(LOGITS, axis=-1)).sum(axis=-1)


def numpy_teacher(correct, temperature):
    """Equation 8 of the paper, softened: powers of the probabilities, normalised."""
    probs = np.where(ONE_HOT == 1, correct, (1 - correct) / 4) ** (1 / temperature)
    return probs / probs.sum(axis=-1, keepdims=True)


def numpy_tf_kd(correct, temperature):
    posterior = softmax(LOGITS / temperature, axis=-1)
    return rel_entr(numpy_teacher(correct, temperature), posterior).sum(axis=-1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1])
def test_ps_kd_equals_numpy(alpha):
    loss = ps_kd_loss(FLOAT32, LABELS, FLOAT32_PAST, alpha=alpha)
    np.testing.assert_allclose(loss, numpy_ps_kd(alpha), rtol=1e-5)


def test_ps_kd_of_a_uniform_past_is_label_smoothing():
    loss = ps_kd_loss(FLOAT32, LABELS, jnp.full((6, 5), 1 / 5), alpha=0.3)
    np.testing.assert_allclose(loss, label_smoothing(FLOAT32, LABELS, smoothing=0.3), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_alpha_of_ps_kd_may_be_traced(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        logits, past = jnp.asarray(LOGITS, dtype), jnp.asarray(PAST, dtype)
        loss = jax.jit(lambda a: ps_kd_loss(logits, LABELS, past, alpha=a))
        np.testing.assert_allclose(loss(jnp.float32(0.25)), numpy_ps_kd(0.25), rtol=1e-5)


def test_gradient_of_ps_kd_reaches_the_logits_but_not_the_past():
    logits_grad, past_grad = jax.grad(
        lambda z, past: ps_kd_loss(z, LABELS, past, alpha=0.3).sum(), argnums=(0, 1)
    )(FLOAT32, FLOAT32_PAST)
    target = 0.7 * ONE_HOT + 0.3 * PAST
    np.testing.assert_allclose(logits_grad, softmax(LOGITS, axis=-1) - target, atol=1e-6)
    np.testing.assert_array_equal(past_grad, 0)


def test_past_in_half_precision_is_combined_with_float32_logits():
    loss = ps_kd_loss(FLOAT32, LABELS, jnp.asarray(PAST, jnp.float16), alpha=0.3)
    np.testing.assert_allclose(loss, numpy_ps_kd(0.3), rtol=1e-3)


@pytest.mark.parametrize("correct", [0.2, 0.9, 0.99])
@pytest.mark.parametrize("temperature", [1, 20.0])
def test_tf_kd_equals_numpy(correct, temperature):
    loss = tf_kd_loss(FLOAT32, LABELS, correct=correct, temperature=temperature)
    np.testing.assert_allclose(loss, numpy_tf_kd(correct, temperature), rtol=1e-4, atol=1e-7)


def test_defaults_of_tf_kd_are_those_of_the_paper():
    np.testing.assert_allclose(tf_kd_loss(FLOAT32, LABELS), numpy_tf_kd(0.99, 20.0), rtol=1e-4)


def test_tf_kd_is_zero_for_a_student_equal_to_the_virtual_teacher_only():
    student = jnp.asarray(2 * np.log(numpy_teacher(0.9, 2.0)), jnp.float32)
    loss = tf_kd_loss(student, LABELS, correct=0.9, temperature=2.0)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    other = tf_kd_loss(student, (LABELS + 1) % 5, correct=0.9, temperature=2.0)
    assert (other > 0.1).all()


def test_gradient_of_tf_kd_is_posterior_minus_teacher_over_temperature():
    def total(logits):
        return tf_kd_loss(logits, LABELS, correct=0.9, temperature=5.0).sum()

    expected = (softmax(LOGITS / 5, axis=-1) - numpy_teacher(0.9, 5.0)) / 5
    np.testing.assert_allclose(jax.grad(total)(FLOAT32), expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_its_range_is_an_error(alpha):
    with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\], got {alpha}"):
        ps_kd_loss(FLOAT32, LABELS, FLOAT32_PAST, alpha=alpha)


@pytest.mark.parametrize("correct", [0.1, 1.0, float("nan")])
def test_a_virtual_teacher_that_is_wrong_or_certain_is_an_error(correct):
    with pytest.raises(ValueError, match=rf"correct must be in \[1/5, 1\), got {correct}"):
        tf_kd_loss(FLOAT32, LABELS, correct=correct)
