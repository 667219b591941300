"""Losses against labels that a teacher, past or virtual, softens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdd_jax import label_smoothing, ps_kd_loss, tf_kd_loss

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(6, 5)) * 3
PAST = RANDOM.dirichlet(np.ones(5), size=6)
LABELS = np.array([0, 4, 2, 2, 1, 3])


def ps_kd(logits, labels=LABELS, past=PAST):
    return ps_kd_loss(logits, labels, jnp.asarray(past, logits.dtype), alpha=0.3)


def tf_kd(logits, labels=LABELS):
    return tf_kd_loss(logits, labels, correct=0.9, temperature=5.0)


def numpy_log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def numpy_ps_kd(alpha):
    target = (1 - alpha) * np.eye(5)[LABELS] + alpha * PAST
    return -(target * numpy_log_softmax(LOGITS)).sum(axis=-1)


def numpy_teacher(correct, temperature):
    """Equation 8 of the paper, softened: powers of the probabilities, normalised."""
    probs = np.where(np.eye(5)[LABELS] == 1, correct, (1 - correct) / 4)
    probs = probs ** (1 / temperature)
    return probs / probs.sum(axis=-1, keepdims=True)


def numpy_tf_kd(correct, temperature):
    teacher = numpy_teacher(correct, temperature)
    log_q = numpy_log_softmax(LOGITS / temperature)
    return (teacher * (np.log(teacher) - log_q)).sum(axis=-1)


def float32(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1])
def test_ps_kd_equals_numpy(alpha):
    loss = ps_kd_loss(float32(LOGITS), LABELS, float32(PAST), alpha=alpha)
    np.testing.assert_allclose(loss, numpy_ps_kd(alpha), rtol=1e-5)


def test_ps_kd_of_a_uniform_past_is_label_smoothing():
    logits = float32(LOGITS)
    loss = ps_kd_loss(logits, LABELS, jnp.full((6, 5), 1 / 5), alpha=0.3)
    np.testing.assert_allclose(loss, label_smoothing(logits, LABELS, smoothing=0.3), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_alpha_of_ps_kd_may_be_traced(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        logits, past = jnp.asarray(LOGITS, dtype), jnp.asarray(PAST, dtype)
        loss = jax.jit(lambda a: ps_kd_loss(logits, LABELS, past, alpha=a))
        np.testing.assert_allclose(loss(jnp.float32(0.25)), numpy_ps_kd(0.25), rtol=1e-5)


def test_gradient_of_ps_kd_reaches_the_logits_and_not_the_past():
    of_logits, of_past = jax.grad(
        lambda z, past: ps_kd_loss(z, LABELS, past, alpha=0.3).sum(), argnums=(0, 1)
    )(float32(LOGITS), float32(PAST))
    target = 0.7 * np.eye(5)[LABELS] + 0.3 * PAST
    np.testing.assert_allclose(of_logits, np.exp(numpy_log_softmax(LOGITS)) - target, atol=1e-6)
    np.testing.assert_array_equal(of_past, 0)


def test_ps_kd_takes_classes_of_no_probability_at_either_time():
    keep = np.array([True, True, True, True, False])
    labels = np.where(LABELS == 4, 0, LABELS)
    past = np.where(keep, PAST, 0) / PAST[:, keep].sum(axis=1, keepdims=True)

    def value_and_grad(logits, past):
        return jax.value_and_grad(lambda z: ps_kd(z, labels, past).sum())(float32(logits))

    excluded, of_excluded = value_and_grad(np.where(keep, LOGITS, -np.inf), past)
    removed, of_removed = value_and_grad(LOGITS[:, keep], past[:, keep])
    np.testing.assert_allclose(excluded, removed, rtol=1e-5)
    np.testing.assert_allclose(of_excluded[:, keep], of_removed, atol=1e-6)
    np.testing.assert_array_equal(of_excluded[:, ~keep], 0)


@pytest.mark.parametrize("correct", [0.2, 0.9, 0.99])
@pytest.mark.parametrize("temperature", [1, 20.0])
def test_tf_kd_equals_numpy(correct, temperature):
    loss = tf_kd_loss(float32(LOGITS), LABELS, correct=correct, temperature=temperature)
    np.testing.assert_allclose(loss, numpy_tf_kd(correct, temperature), rtol=1e-4, atol=1e-7)


def test_defaults_of_tf_kd_are_the_papers():
    loss = tf_kd_loss(float32(LOGITS), LABELS)
    np.testing.assert_allclose(loss, numpy_tf_kd(0.99, 20.0), rtol=1e-4)


def test_a_student_equal_to_the_virtual_teacher_has_no_loss_and_another_does():
    student = 2.0 * jnp.log(float32(numpy_teacher(0.9, 2.0)))
    loss = tf_kd_loss(student, LABELS, correct=0.9, temperature=2.0)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    other = tf_kd_loss(student, (LABELS + 1) % 5, correct=0.9, temperature=2.0)
    assert (other > 0.1).all()


def test_gradient_of_tf_kd_is_posterior_minus_teacher_over_temperature():
    gradient = jax.grad(lambda z: tf_kd(z).sum())(float32(LOGITS))
    posterior = np.exp(numpy_log_softmax(LOGITS / 5))
    np.testing.assert_allclose(gradient, (posterior - numpy_teacher(0.9, 5.0)) / 5, atol=1e-6)


@pytest.mark.parametrize("loss", [ps_kd, tf_kd])
def test_loss_is_per_example_for_any_leading_shape(loss):
    logits = float32(LOGITS)
    whole = loss(logits)
    arguments = [logits.reshape(2, 3, 5), LABELS.reshape(2, 3)]
    shaped = loss(*arguments, *([PAST.reshape(2, 3, 5)] if loss is ps_kd else []))
    np.testing.assert_allclose(shaped, whole.reshape(2, 3), rtol=1e-5)
    arguments = [logits, jnp.asarray(LABELS), *([float32(PAST)] if loss is ps_kd else [])]
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*arguments), whole, rtol=1e-5)


@pytest.mark.parametrize("loss", [ps_kd, tf_kd])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(loss, dtype):
    logits = jnp.asarray(LOGITS, dtype)
    past = {"past": jnp.asarray(PAST, dtype)} if loss is ps_kd else {}
    value = loss(logits, **past)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, loss(logits.astype(jnp.float32), **past))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_may_have_any_integer_dtype(dtype):
    """Also one that cannot number all classes."""
    logits = float32(RANDOM.normal(size=(6, 300)))
    past = jax.nn.softmax(logits[::-1])
    for loss in (tf_kd, lambda z, y: ps_kd(z, y, past)):
        expected = loss(logits, jnp.asarray(LABELS, jnp.int32))
        np.testing.assert_array_equal(loss(logits, LABELS.astype(dtype)), expected)


def test_past_of_half_precision_serves_logits_of_float32():
    past = jnp.asarray(PAST, jnp.float16)
    loss = ps_kd_loss(float32(LOGITS), LABELS, past, alpha=0.3)
    np.testing.assert_allclose(loss, numpy_ps_kd(0.3), rtol=1e-3)


@pytest.mark.parametrize("loss", [ps_kd, tf_kd])
def test_float64_stays_and_gradients_agree_with_finite_differences(loss):
    with jax.enable_x64(True):
        logits = jnp.asarray(LOGITS)
        assert loss(logits).dtype == jnp.float64
        check_grads(jax.jit(loss), (logits,), order=1)


@pytest.mark.parametrize("loss", [ps_kd, tf_kd])
def test_value_and_gradient_are_finite_at_extreme_logits(loss):
    logits = float32(np.where(np.arange(5) < 2, 1e4, -1e4) * np.ones((6, 1)))
    value, gradient = jax.value_and_grad(lambda z: loss(z).sum())(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_its_range_is_an_error(alpha):
    with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\], got {alpha}"):
        ps_kd_loss(float32(LOGITS), LABELS, float32(PAST), alpha=alpha)


@pytest.mark.parametrize("correct", [0.1, 1.0, float("nan")])
def test_a_virtual_teacher_that_is_wrong_or_certain_is_an_error(correct):
    with pytest.raises(ValueError, match=rf"correct must be in \[1/5, 1\), got {correct}"):
        tf_kd_loss(float32(LOGITS), LABELS, correct=correct)


def test_temperature_that_is_not_positive_is_an_error():
    with pytest.raises(ValueError, match="temperature must be greater than 0 and finite, got 0"):
        tf_kd_loss(float32(LOGITS), LABELS, temperature=0)
