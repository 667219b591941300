"""Divergences of sigmoid heads and of regression, alone and in the SD-Dropout loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, rel_entr
from scipy.stats import norm

from sdd_jax import (
    sd_dropout_loss,
    sd_dropout_loss_from_logits,
    squared_error,
    symmetric_bernoulli_kl,
    symmetric_kl,
)
from sdd_jax.losses import GRADIENTS

RANDOM = np.random.default_rng(0)
U, V, OTHER = RANDOM.normal(size=(3, 6, 5)) * 2
DIVERGENCES = {"bernoulli": symmetric_bernoulli_kl, "squared_error": squared_error}


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def both_directions(p, q):
    return (rel_entr(p, q) + rel_entr(q, p)).sum(axis=-1)


def bernoulli(u, v, temperature=1.0):
    """The divergence of each class, from both outcomes."""
    p, q = (np.stack([expit(z / temperature), expit(-z / temperature)], -1) for z in (u, v))
    return both_directions(p, q)


def numpy_divergence(name, u, v, temperature=1.0):
    if name == "bernoulli":
        return bernoulli(u, v, temperature).sum(axis=-1)
    return (((u - v) / temperature) ** 2).sum(axis=-1)


# --------------------------------------------------------------------------- equations


def test_bernoulli_divergence_is_that_of_the_joint_distribution_of_all_labels():
    outcomes = np.array(list(itertools.product([0, 1], repeat=5)))  # all 32 sets of labels

    def joint(logits):
        p = expit(logits / 3)[:, None]
        return np.where(outcomes, p, 1 - p).prod(axis=-1)

    expected = both_directions(joint(U), joint(V))
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        with jax.enable_x64(dtype == np.float64):
            u, v = jnp.asarray(U, dtype), jnp.asarray(V, dtype)
            value = symmetric_bernoulli_kl(u, v, temperature=3.0)
        np.testing.assert_allclose(value, expected, rtol=tolerance)


def test_squared_error_is_the_divergence_of_gaussians_whose_deviation_is_the_temperature():
    x = np.linspace(-60, 60, 20_001)
    densities = [norm.pdf(x, loc=z[..., None], scale=3.0) for z in (U, V)]
    expected = both_directions(*densities) * (x[1] - x[0])  # of each output
    value = squared_error(*float32(U, V), temperature=3.0)
    np.testing.assert_allclose(value, expected.sum(axis=-1), rtol=1e-5)


def test_squared_error_of_normalised_embeddings_is_their_cosine_distance():
    u, v = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (U, V))
    np.testing.assert_allclose(squared_error(*float32(u, v)), 2 - 2 * (u * v).sum(-1), rtol=1e-5)


def test_weights_are_of_classes_or_of_each_class_of_each_example():
    for shape in [(5,), (6, 1), (6, 5)]:
        weights = RANDOM.uniform(size=shape)
        value = symmetric_bernoulli_kl(*float32(U, V), weights=jnp.asarray(weights, jnp.float32))
        np.testing.assert_allclose(value, (weights * bernoulli(U, V)).sum(axis=-1), rtol=2e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
def test_axis_of_the_outputs_may_be_any(divergence):
    u, v = float32(U, V)
    moved = divergence(u.T, v.T, axis=0)
    np.testing.assert_allclose(moved, divergence(u, v), rtol=1e-6)


# --------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_equal_the_closed_forms(name, gradient):
    forward, reverse = gradient != "reverse", gradient != "forward"
    if name == "bernoulli":
        p, q = expit(U / 3), expit(V / 3)
        derivatives = p * (1 - p), q * (1 - q)
    else:
        p, q, derivatives = U / 3, V / 3, (1.0, 1.0)
    expected = [
        sign * (forward * (p - q) + reverse * derivative * (U - V) / 3) / 3
        for sign, derivative in zip((1, -1), derivatives, strict=True)
    ]

    def total(u, v):
        return DIVERGENCES[name](u, v, temperature=3.0, gradient=gradient).sum()

    actual = jax.jit(jax.grad(total, (0, 1)))(*float32(U, V))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
def test_equal_outputs_give_zero_and_no_gradient(divergence):
    (u,) = float32(U)
    total = jax.jit(jax.value_and_grad(lambda u, v: divergence(u, v).sum(), (0, 1)))
    value, gradients = total(u, u)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(gradients, np.zeros((2, 6, 5)))


def test_bernoulli_divergence_of_extreme_logits():
    """Of large logits it is their difference; equal infinities, which a mask may set, add nothing."""
    u = jnp.asarray([1e4, -1e4, 3e38, jnp.inf, -jnp.inf])
    v = jnp.asarray([-1e4, -9e3, -3e38, jnp.inf, -jnp.inf])

    @jax.jit
    def values_and_gradients(u, v):
        values, pullback = jax.vjp(
            lambda u, v: symmetric_bernoulli_kl(u[:, None], v[:, None], temperature=0.5), u, v
        )
        return values, pullback(jnp.ones(5))

    values, gradients = values_and_gradients(u, v)
    np.testing.assert_allclose(values[:2], [4e4, 0.0])
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values[3:], 0)
    np.testing.assert_allclose(gradients[0], [2.0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(gradients[1], [-2.0, 0, 0, 0, 0], atol=1e-6)


# --------------------------------------------------------------------------- SD-Dropout


@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_loss_is_the_mean_of_the_divergence_over_pairs_of_masks(name, num_samples):
    logits = [U, V, OTHER][:num_samples]
    pairs = itertools.combinations(logits, 2)
    expected = 4 * np.mean([numpy_divergence(name, u, v, 2.0) for u, v in pairs], axis=0)
    loss = jax.jit(
        lambda logits: sd_dropout_loss_from_logits(
            logits, temperature=2.0, divergence=DIVERGENCES[name]
        )
    )
    value = loss(float32(*logits))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_mean_over_keys_is_the_expectation_over_all_masks(name):
    features, kernel = RANDOM.normal(size=4), RANDOM.normal(size=(4, 3))
    masks = np.array(list(itertools.product([0, 2], repeat=4)))
    logits = (features * masks) @ kernel
    pairs = np.broadcast_arrays(logits[:, None], logits[None, :])
    expected = 9 * numpy_divergence(name, *pairs, 3.0).mean()
    repeated, kernel = float32(np.tile(features, (8192, 1)), kernel)
    losses = jax.jit(
        lambda key: sd_dropout_loss(
            repeated, lambda f: f @ kernel, key, divergence=DIVERGENCES[name]
        )
    )(jax.random.key(7))
    standard_error = np.std(losses) / np.sqrt(8192)
    assert abs(np.mean(losses) - expected) < 4 * standard_error
    assert standard_error < 0.05 * expected  # otherwise the line above shows little


def test_temperature_cancels_in_the_loss_of_a_regression():
    losses = [
        sd_dropout_loss_from_logits(float32(U, V), temperature=t, divergence=squared_error)
        for t in (1.0, 3.0)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_a_divergence_of_the_users_own():
    def total_variation(u, v, *, temperature, gradient, where):
        assert (temperature, gradient, where) == (3.0, "both", None)
        return jnp.abs(jax.nn.softmax(u) - jax.nn.softmax(v)).sum(axis=-1) / 2

    u, v = float32(U, V)
    value = sd_dropout_loss_from_logits([u, v], divergence=total_variation)
    expected = 9 * total_variation(u, v, temperature=3.0, gradient="both", where=None)
    np.testing.assert_allclose(value, expected)


def test_a_function_around_the_default_gives_the_same_as_the_default():
    """Which alone is computed for all pairs at once."""

    def around(u, v, **options):
        return symmetric_kl(u, v, **options)

    @jax.jit
    def losses(*logits):
        return [
            sd_dropout_loss_from_logits(logits, divergence=divergence)
            for divergence in (around, symmetric_kl)
        ]

    np.testing.assert_allclose(*losses(*float32(U, V, OTHER)), rtol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
def test_fewer_than_two_masks_or_masks_of_several_shapes_are_errors(divergence):
    u, v = float32(U, V[:3])
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        sd_dropout_loss_from_logits([u], divergence=divergence)
    with pytest.raises(ValueError, match=r"logits\[0\], logits\[1\] must have the same shape"):
        sd_dropout_loss_from_logits([u, v], divergence=divergence)
