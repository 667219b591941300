"""Divergences: axes, excluded classes, gradients in closed form, and pairs of several posteriors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import entr, rel_entr, softmax

from sdd_jax.losses import GRADIENTS, entropy, kl_divergence, pairwise_symmetric_kl, symmetric_kl

RANDOM = np.random.default_rng(0)
P, Q = RANDOM.normal(size=(2, 6, 5)) * 2


def numpy_kl(target, prediction, temperature=1.0):
    """KL(p || q), and its gradients with respect to the logits of p and of q."""
    p, q = softmax(target / temperature, axis=-1), softmax(prediction / temperature, axis=-1)
    kl = rel_entr(p, q).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return kl, p * (np.log(p / q) - kl[..., None]) / temperature, (q - p) / temperature


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_axis_of_the_classes_may_be_any(axis):
    a, b = (jnp.moveaxis(x.reshape(2, 3, 5), -1, axis) for x in float32(P, Q))
    expected = (numpy_kl(P, Q)[0] + numpy_kl(Q, P)[0]).reshape(2, 3)
    np.testing.assert_allclose(symmetric_kl(a, b, axis=axis), expected, rtol=2e-5)
    expected = entr(softmax(P, axis=-1)).sum(axis=-1).reshape(2, 3)
    np.testing.assert_allclose(entropy(a, axis=axis), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5), (6, 5)])
def test_ignored_classes_may_differ_between_examples(shape):
    keep = RANDOM.uniform(size=shape) < 0.6
    keep[:, 2] = True
    value = kl_divergence(*float32(P, Q), where=jnp.asarray(keep))
    removed = [np.where(np.broadcast_to(keep, P.shape), z, -np.inf) for z in (P, Q)]
    np.testing.assert_allclose(value, numpy_kl(*removed)[0], rtol=2e-5)


def test_a_class_that_only_the_prediction_excludes_makes_the_divergence_infinite():
    excluded = np.where(np.arange(5) == 3, -np.inf, P)
    assert np.isposinf(kl_divergence(*float32(Q, excluded))).all()
    assert np.isposinf(symmetric_kl(*float32(Q, excluded))).all()
    assert np.isposinf(pairwise_symmetric_kl(float32(Q, excluded, P))).all()
    # Not where the target excludes it too, or leaves it no mass.
    no_mass = np.where(np.arange(5) == 3, -1e4, Q)
    for target, prediction in [(excluded, Q), (no_mass, excluded)]:
        value = kl_divergence(*float32(target, prediction))
        np.testing.assert_allclose(value, numpy_kl(target, prediction)[0], rtol=2e-5)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_equal_the_closed_forms(gradient):
    reverse, forward = gradient != "forward", gradient != "reverse"
    kl, p_reverse, q_forward = numpy_kl(P, Q, 3.0)
    other_kl, q_reverse, p_forward = numpy_kl(Q, P, 3.0)
    expected = {
        kl_divergence: (kl, reverse * p_reverse, forward * q_forward),
        symmetric_kl: (
            kl + other_kl,
            reverse * p_reverse + forward * p_forward,
            reverse * q_reverse + forward * q_forward,
        ),
    }
    for divergence, closed_forms in expected.items():
        value, pullback = jax.vjp(
            lambda p, q, f=divergence: f(p, q, temperature=3.0, gradient=gradient), *float32(P, Q)
        )
        for actual, closed_form in zip((value, *pullback(jnp.ones(6))), closed_forms, strict=True):
            np.testing.assert_allclose(actual, closed_form, rtol=2e-5, atol=1e-6)


def test_forward_mode_agrees_with_the_closed_form():
    p, q = float32(P, Q)
    _, derivative = jax.jvp(lambda p: kl_divergence(p, q), (p,), (q,))
    expected = (numpy_kl(P, Q)[1] * Q).sum(axis=-1)
    np.testing.assert_allclose(derivative, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", [kl_divergence, symmetric_kl])
def test_equal_posteriors_give_zero_and_no_gradient(divergence):
    (p,) = float32(P)
    np.testing.assert_array_equal(divergence(p, p), 0)
    gradients = jax.grad(lambda u, v: divergence(u, v).sum(), argnums=(0, 1))(p, p)
    np.testing.assert_allclose(gradients, np.zeros((2, 6, 5)), atol=1e-7)
    # A constant that is added to the logits changes nothing.
    np.testing.assert_allclose(divergence(p, p + 7), 0, atol=1e-5)


def test_value_at_extreme_logits_is_the_difference_of_logits():
    u, v = jnp.asarray([1e4, -1e4, 0.0]), jnp.asarray([-1e4, 1e4, 0.0])
    np.testing.assert_allclose(kl_divergence(u, v), 2e4, rtol=1e-6)
    np.testing.assert_allclose(symmetric_kl(u, v), 4e4, rtol=1e-6)


def test_entropy_lies_between_zero_and_log_of_the_number_of_classes():
    bounds = entropy(jnp.asarray([[0.0, 0.0, 0.0, 0.0], [1e4, -1e4, 0.0, 0.0]]))
    np.testing.assert_allclose(bounds, [np.log(4), 0.0], rtol=1e-6)


@pytest.mark.parametrize("num_samples", [2, 3, 7])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_pairwise_divergence_and_its_gradient_are_means_over_all_pairs(num_samples, gradient):
    logits = RANDOM.normal(size=(num_samples, 6, 5)) * 2
    expected, expected_gradient = np.zeros(6), np.zeros_like(logits)
    pairs = num_samples * (num_samples - 1) / 2
    for i, j in itertools.permutations(range(num_samples), 2):
        kl, target_gradient, prediction_gradient = numpy_kl(logits[i], logits[j], 2.0)
        expected += kl / pairs
        expected_gradient[i] += (gradient != "forward") * target_gradient / pairs
        expected_gradient[j] += (gradient != "reverse") * prediction_gradient / pairs

    @jax.jit
    def value_and_gradient(logits):
        value, pullback = jax.vjp(
            lambda z: pairwise_symmetric_kl(list(z), temperature=2.0, gradient=gradient), logits
        )
        return value, pullback(jnp.ones_like(value))[0]

    value, actual_gradient = value_and_gradient(*float32(logits))
    np.testing.assert_allclose(value, expected, rtol=2e-5)
    np.testing.assert_allclose(actual_gradient, expected_gradient, atol=2e-6)


def test_the_program_of_the_pairwise_divergence_does_not_grow_with_the_pairs():
    def lines(num_samples):
        total = jax.grad(lambda logits: pairwise_symmetric_kl(logits).sum())
        return len(str(jax.make_jaxpr(total)(jnp.zeros((num_samples, 6, 5)))).splitlines())

    assert lines(30) == lines(7)


def test_fewer_than_two_posteriors_is_an_error():
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        pairwise_symmetric_kl(float32(P))
