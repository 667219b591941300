"""Divergences between softened posteriors, compared with numpy and closed forms."""

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
    p, q = softmax(target / temperature, axis=-1), softmax(prediction / temperature, axis=-1)
    return rel_entr(p, q).sum(axis=-1)


def numpy_symmetric_kl(u, v, temperature=1.0):
    return numpy_kl(u, v, temperature) + numpy_kl(v, u, temperature)


DIVERGENCES = {kl_divergence: numpy_kl, symmetric_kl: numpy_symmetric_kl}


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1, 3.0])
def test_divergence_equals_numpy(divergence, temperature):
    value = divergence(*float32(P, Q), temperature=temperature)
    np.testing.assert_allclose(value, DIVERGENCES[divergence](P, Q, temperature), rtol=2e-5)
    # It ignores a constant that is added to the logits.
    shifted = divergence(*float32(P + 7, Q - 3), temperature=temperature)
    np.testing.assert_allclose(shifted, value, rtol=1e-4)


def test_divergences_of_known_posteriors():
    p, q = jnp.log(jnp.asarray([0.5, 0.25, 0.25])), jnp.log(jnp.asarray([0.25, 0.25, 0.5]))
    np.testing.assert_allclose(kl_divergence(p, q), 0.25 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(symmetric_kl(p, q), 0.5 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_axis_of_the_classes_may_be_any(axis):
    a, b = float32(P.reshape(2, 3, 5), Q.reshape(2, 3, 5))
    value = symmetric_kl(jnp.moveaxis(a, -1, axis), jnp.moveaxis(b, -1, axis), axis=axis)
    np.testing.assert_allclose(value, numpy_symmetric_kl(P, Q).reshape(2, 3), rtol=2e-5)
    moved = entropy(jnp.moveaxis(a, -1, axis), axis=axis)
    np.testing.assert_allclose(moved, entr(softmax(P, -1)).sum(-1).reshape(2, 3), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5), (6, 5)])
def test_ignored_classes_may_differ_between_examples(shape):
    keep = RANDOM.uniform(size=shape) < 0.6
    keep[:, 2] = True
    value = symmetric_kl(*float32(P, Q), where=jnp.asarray(keep))
    removed = [np.where(np.broadcast_to(keep, P.shape), z, -np.inf) for z in (P, Q)]
    np.testing.assert_allclose(value, numpy_symmetric_kl(*removed), rtol=2e-5)


def test_a_class_that_only_the_prediction_excludes_makes_the_divergence_infinite():
    excluded = np.where(np.arange(5) == 3, -np.inf, P)
    np.testing.assert_allclose(
        kl_divergence(*float32(excluded, Q)), numpy_kl(excluded, Q), rtol=2e-5
    )
    assert np.isposinf(kl_divergence(*float32(Q, excluded))).all()
    assert np.isposinf(symmetric_kl(*float32(Q, excluded))).all()
    assert np.isposinf(pairwise_symmetric_kl(float32(Q, excluded, P))).all()
    # No mass is left of this class in the target, so it does not count.
    tiny = np.where(np.arange(5) == 3, -1e4, Q)
    np.testing.assert_allclose(
        kl_divergence(*float32(tiny, excluded)), numpy_kl(tiny, excluded), rtol=2e-5
    )


def values_and_gradients(divergence, gradient, a, b, temperature=3.0):
    values, pullback = jax.vjp(
        lambda a, b: divergence(a, b, temperature=temperature, gradient=gradient), a, b
    )
    return values, *pullback(jnp.ones_like(values))


def forward_closed_form(target, prediction, temperature):
    """Gradient of KL(p || q) with respect to the prediction's logits."""
    p, q = softmax(target / temperature, axis=-1), softmax(prediction / temperature, axis=-1)
    return (q - p) / temperature


def reverse_closed_form(target, prediction, temperature):
    """Gradient of KL(p || q) with respect to the target's logits."""
    p, q = softmax(target / temperature, axis=-1), softmax(prediction / temperature, axis=-1)
    kl = rel_entr(p, q).sum(axis=-1, keepdims=True)
    return p * (np.log(p / q) - kl) / temperature


def test_gradients_of_kl_divergence_equal_the_closed_forms():
    forward, reverse = forward_closed_form(P, Q, 3.0), reverse_closed_form(P, Q, 3.0)
    expected = {"forward": (0, forward), "reverse": (reverse, 0), "both": (reverse, forward)}
    for gradient in GRADIENTS:
        _, *gradients = values_and_gradients(kl_divergence, gradient, *float32(P, Q))
        for actual, closed_form in zip(gradients, expected[gradient], strict=True):
            np.testing.assert_allclose(actual, closed_form, atol=1e-6)


def test_gradients_of_symmetric_kl_equal_the_closed_forms():
    forward = forward_closed_form(Q, P, 3.0), forward_closed_form(P, Q, 3.0)
    reverse = reverse_closed_form(P, Q, 3.0), reverse_closed_form(Q, P, 3.0)
    both = forward[0] + reverse[0], forward[1] + reverse[1]
    expected = {"forward": forward, "reverse": reverse, "both": both}
    values = []
    for gradient in GRADIENTS:
        value, *gradients = values_and_gradients(symmetric_kl, gradient, *float32(P, Q))
        values.append(value)
        for actual, closed_form in zip(gradients, expected[gradient], strict=True):
            np.testing.assert_allclose(actual, closed_form, atol=1e-6)
    np.testing.assert_array_equal(values, np.broadcast_to(values[0], (3, 6)))


def test_forward_mode_agrees_with_reverse_mode():
    p, q, tangent = float32(P, Q, Q)
    _, derivative = jax.jvp(lambda p: kl_divergence(p, q), (p,), (tangent,))
    expected = (reverse_closed_form(P, Q, 1.0) * Q).sum(axis=-1)
    np.testing.assert_allclose(derivative, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_logits_give_zero_and_no_gradient(divergence):
    (p,) = float32(P)
    value, *gradients = values_and_gradients(divergence, "both", p, p)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_allclose(gradients, np.zeros((2, 6, 5)), atol=1e-7)


def test_value_at_extreme_logits_is_the_difference_of_logits():
    u, v = jnp.asarray([1e4, -1e4, 0.0]), jnp.asarray([-1e4, 1e4, 0.0])
    np.testing.assert_allclose(kl_divergence(u, v), 2e4, rtol=1e-6)
    np.testing.assert_allclose(symmetric_kl(u, v), 4e4, rtol=1e-6)


def test_entropy_equals_numpy_and_lies_between_zero_and_log_of_the_number_of_classes():
    (p,) = float32(P)
    np.testing.assert_allclose(entropy(p), entr(softmax(P, axis=-1)).sum(axis=-1), rtol=1e-5)
    bounds = entropy(jnp.asarray([[0.0, 0.0, 0.0, 0.0], [1e4, -1e4, 0.0, 0.0]]))
    np.testing.assert_allclose(bounds, [np.log(4), 0.0], rtol=1e-6)


@pytest.mark.parametrize("num_samples", [2, 3, 7])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_pairwise_divergence_and_its_gradient_are_means_over_all_pairs(num_samples, gradient):
    logits = RANDOM.normal(size=(num_samples, 6, 5)) * 2
    expected = np.zeros(6)
    expected_gradient = np.zeros_like(logits)
    for i, j in itertools.permutations(range(num_samples), 2):
        expected += numpy_kl(logits[i], logits[j], 2.0)
        if gradient != "reverse":
            expected_gradient[j] += forward_closed_form(logits[i], logits[j], 2.0)
        if gradient != "forward":
            expected_gradient[i] += reverse_closed_form(logits[i], logits[j], 2.0)
    pairs = num_samples * (num_samples - 1) / 2

    @jax.jit
    def value_and_gradient(logits):
        value, pullback = jax.vjp(
            lambda z: pairwise_symmetric_kl(list(z), temperature=2.0, gradient=gradient), logits
        )
        return value, pullback(jnp.ones_like(value))[0]

    value, actual_gradient = value_and_gradient(*float32(logits))
    np.testing.assert_allclose(value, expected / pairs, rtol=2e-5)
    np.testing.assert_allclose(actual_gradient, expected_gradient / pairs, atol=2e-6)


def test_the_program_of_the_pairwise_divergence_does_not_grow_with_the_pairs():
    def equations(num_samples):
        total = jax.grad(lambda logits: pairwise_symmetric_kl(logits).sum())
        return len(str(jax.make_jaxpr(total)(jnp.zeros((num_samples, 6, 5)))).splitlines())

    assert equations(30) == equations(7)


def test_fewer_than_two_posteriors_is_an_error():
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        pairwise_symmetric_kl(float32(P))
