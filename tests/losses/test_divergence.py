"""Divergences between softened posteriors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdd_jax.losses import GRADIENTS, entropy, kl_divergence, pairwise_symmetric_kl, symmetric_kl

RANDOM = np.random.default_rng(0)
P, Q, R = RANDOM.normal(size=(3, 6, 5)) * 2
DIVERGENCES = [kl_divergence, symmetric_kl]


def numpy_softmax(logits, temperature=1.0):
    weights = np.exp(np.asarray(logits, np.float64) / temperature)
    return weights / weights.sum(axis=-1, keepdims=True)


def numpy_kl(target, prediction, temperature=1.0):
    p, q = numpy_softmax(target, temperature), numpy_softmax(prediction, temperature)
    return (p * np.log(p / q)).sum(axis=-1)


def numpy_divergence(divergence, a, b, temperature=1.0):
    if divergence is kl_divergence:
        return numpy_kl(a, b, temperature)
    return numpy_kl(a, b, temperature) + numpy_kl(b, a, temperature)


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1, 3.0])
def test_divergence_equals_numpy(divergence, temperature):
    value = divergence(*float32(P, Q), temperature=temperature)
    expected = numpy_divergence(divergence, P, Q, temperature)
    assert value.shape == (6,)
    np.testing.assert_allclose(value, expected, rtol=2e-5)


def test_kl_divergence_of_known_posteriors():
    p, q = jnp.log(jnp.asarray([0.5, 0.25, 0.25])), jnp.log(jnp.asarray([0.25, 0.25, 0.5]))
    np.testing.assert_allclose(kl_divergence(p, q), 0.25 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(symmetric_kl(p, q), 0.5 * np.log(2), rtol=1e-6)


def test_temperature_may_be_traced():
    traced = jax.jit(lambda t: symmetric_kl(*float32(P, Q), temperature=t))(3.0)
    np.testing.assert_allclose(traced, numpy_divergence(symmetric_kl, P, Q, 3.0), rtol=2e-5)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_axis_of_the_classes_may_be_any(axis):
    a, b = float32(P.reshape(2, 3, 5), Q.reshape(2, 3, 5))
    value = symmetric_kl(jnp.moveaxis(a, -1, axis), jnp.moveaxis(b, -1, axis), axis=axis)
    np.testing.assert_allclose(value, symmetric_kl(a, b), rtol=1e-5)
    moved = entropy(jnp.moveaxis(a, -1, axis), axis=axis)
    np.testing.assert_allclose(moved, entropy(a), rtol=1e-5)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("filler", [0.0, 50.0, -np.inf, np.inf, np.nan])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (6, 5)])
def test_classes_that_are_masked_equal_classes_that_are_removed(gradient, filler, shape):
    keep = np.array([True, False, True, True, False])

    def value_and_grad(p, q, **where):
        return jax.value_and_grad(
            lambda p, q: symmetric_kl(p, q, temperature=2.0, gradient=gradient, **where).sum(),
            argnums=(0, 1),
        )(*float32(p, q))

    masked, masked_gradients = value_and_grad(
        np.where(keep, P, filler),
        np.where(keep, Q, -filler),
        where=jnp.asarray(np.broadcast_to(keep, shape)),
    )
    removed, removed_gradients = value_and_grad(P[:, keep], Q[:, keep])
    np.testing.assert_allclose(masked, removed, rtol=1e-5)
    for with_all, with_some in zip(masked_gradients, removed_gradients, strict=True):
        np.testing.assert_allclose(with_all[:, keep], with_some, atol=1e-6)
        np.testing.assert_array_equal(with_all[:, ~keep], 0)


def test_classes_may_be_masked_differently_in_each_example():
    keep = np.array([[True, True, False], [False, True, True]])
    a, b = float32(P[:2, :3], Q[:2, :3])
    value = symmetric_kl(a, b, where=jnp.asarray(keep))
    expected = [symmetric_kl(a[i, keep[i]], b[i, keep[i]]) for i in range(2)]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_value_does_not_depend_on_the_gradient(divergence):
    values = [divergence(*float32(P, Q), temperature=3.0, gradient=g) for g in GRADIENTS]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])


def gradients(divergence, gradient, temperature=3.0):
    return jax.grad(
        lambda p, q: divergence(p, q, temperature=temperature, gradient=gradient).sum(),
        argnums=(0, 1),
    )(*float32(P, Q))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_forward_and_reverse_gradients_add_up_to_both(divergence):
    both, forward, reverse = (gradients(divergence, g) for g in GRADIENTS)
    for b, f, r in zip(both, forward, reverse, strict=True):
        np.testing.assert_allclose(b, f + r, atol=1e-6)


def forward_closed_form(target, prediction, temperature):
    p, q = numpy_softmax(target, temperature), numpy_softmax(prediction, temperature)
    return (q - p) / temperature


def reverse_closed_form(prediction, target, temperature):
    """Of KL(q || p) with respect to the target's logits, the prediction p fixed."""
    p, q = numpy_softmax(prediction, temperature), numpy_softmax(target, temperature)
    kl = (q * np.log(q / p)).sum(axis=-1, keepdims=True)
    return q * (np.log(q / p) - kl) / temperature


def test_gradients_of_kl_divergence_equal_the_closed_forms():
    of_target, of_prediction = gradients(kl_divergence, "forward")
    np.testing.assert_array_equal(of_target, 0)
    np.testing.assert_allclose(of_prediction, forward_closed_form(P, Q, 3.0), atol=1e-6)
    of_target, of_prediction = gradients(kl_divergence, "reverse")
    np.testing.assert_array_equal(of_prediction, 0)
    np.testing.assert_allclose(of_target, reverse_closed_form(Q, P, 3.0), atol=1e-6)


def test_gradients_of_symmetric_kl_equal_the_closed_forms():
    of_u, of_v = gradients(symmetric_kl, "forward")
    np.testing.assert_allclose(of_u, forward_closed_form(Q, P, 3.0), atol=1e-6)
    np.testing.assert_allclose(of_v, forward_closed_form(P, Q, 3.0), atol=1e-6)
    of_u, of_v = gradients(symmetric_kl, "reverse")
    np.testing.assert_allclose(of_u, reverse_closed_form(Q, P, 3.0), atol=1e-6)
    np.testing.assert_allclose(of_v, reverse_closed_form(P, Q, 3.0), atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_value_and_gradients_are_finite_at_extreme_logits(divergence, gradient):
    u = jnp.asarray([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4]])
    v = jnp.asarray([[-1e4, 1e4, 0.0], [-1e4, -1e4, 1e4]])
    value, derivatives = jax.value_and_grad(
        lambda u, v: divergence(u, v, gradient=gradient).sum(), argnums=(0, 1)
    )(u, v)
    assert np.isfinite(value)
    assert np.isfinite(derivatives).all()


def test_value_at_extreme_logits_is_the_difference_of_logits():
    u, v = jnp.asarray([1e4, -1e4, 0.0]), jnp.asarray([-1e4, 1e4, 0.0])
    np.testing.assert_allclose(kl_divergence(u, v), 2e4, rtol=1e-6)
    np.testing.assert_allclose(symmetric_kl(u, v), 4e4, rtol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_logits_give_zero_and_no_gradient(divergence):
    (p,) = float32(P)
    np.testing.assert_array_equal(divergence(p, p, temperature=3.0), 0)
    of_u, of_v = jax.grad(lambda u, v: divergence(u, v).sum(), argnums=(0, 1))(p, p)
    np.testing.assert_allclose(of_u, 0, atol=1e-7)
    np.testing.assert_allclose(of_v, 0, atol=1e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_does_not_see_a_shift_of_the_logits(divergence):
    shifted = divergence(*float32(P + 7.0, Q - 3.0))
    np.testing.assert_allclose(shifted, divergence(*float32(P, Q)), rtol=1e-4)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(divergence, dtype):
    p, q = jnp.asarray(P, dtype), jnp.asarray(Q, dtype)
    value = divergence(p, q)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, divergence(*float32(p, q)))
    assert jax.grad(lambda p: divergence(p, q).sum())(p).dtype == dtype


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_float64_stays_and_gradients_agree_with_finite_differences(divergence):
    with jax.enable_x64(True):
        p, q = jnp.asarray(P), jnp.asarray(Q)
        value = divergence(p, q, temperature=3.0)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, numpy_divergence(divergence, P, Q, 3.0), rtol=1e-12)
        check_grads(jax.jit(partial(divergence, temperature=3.0)), (p, q), order=1)


def test_entropy_equals_numpy():
    p = numpy_softmax(P)
    np.testing.assert_allclose(entropy(*float32(P)), -(p * np.log(p)).sum(axis=-1), rtol=1e-5)


def test_entropy_lies_between_zero_and_log_of_the_number_of_classes():
    value = entropy(jnp.asarray([[0.0, 0.0, 0.0, 0.0], [1e4, -1e4, 0.0, 0.0]]))
    np.testing.assert_allclose(value, [np.log(4), 0.0], rtol=1e-6)


def test_entropy_is_differentiable_at_extreme_logits_and_in_half_precision():
    logits = jnp.asarray([1e4, -1e4, 0.0], jnp.bfloat16)
    value, gradient = jax.value_and_grad(entropy)(logits)
    assert value.dtype == jnp.float32
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_pairwise_divergence_is_the_mean_over_all_pairs():
    value = pairwise_symmetric_kl(float32(P, Q, R), temperature=2.0)
    pairs = [(P, Q), (P, R), (Q, R)]
    expected = np.mean([numpy_divergence(symmetric_kl, *pair, 2.0) for pair in pairs], axis=0)
    np.testing.assert_allclose(value, expected, rtol=2e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0, -1.5, float("nan")])
def test_temperature_that_is_not_positive_is_an_error(divergence, temperature):
    with pytest.raises(
        ValueError, match=f"temperature must be greater than 0 and finite, got {temperature}"
    ):
        divergence(*float32(P, Q), temperature=temperature)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_unknown_gradient_is_an_error(divergence):
    with pytest.raises(
        ValueError, match="gradient must be one of both, forward, reverse, got 'detach'"
    ):
        divergence(*float32(P, Q), gradient="detach")


def test_fewer_than_two_posteriors_is_an_error():
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        pairwise_symmetric_kl(float32(P))
