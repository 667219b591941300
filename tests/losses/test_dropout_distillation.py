"""Dropout Distillation, exactly: every mask of a tiny network is enumerated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import entr, log_softmax, softmax

from sdd_jax import dropout_distillation_loss

RATE = 0.3
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(5, 3)).astype(np.float32)
HIDDEN = RNG.normal(size=(3, 4)).astype(np.float32)
HEAD = 2 * RNG.normal(size=(4, 3)).astype(np.float32)
STUDENT = RNG.normal(size=(3, 3)).astype(np.float32)

MASKS = np.array(list(itertools.product([0, 1], repeat=4)), np.float32)  # [16, 4]
MASS = np.prod(np.where(MASKS == 1, 1 - RATE, RATE), axis=1)  # probability of each mask
TEACHER = np.stack([np.tanh(INPUTS @ HIDDEN) * m / (1 - RATE) @ HEAD for m in MASKS])  # [16, 5, 3]
PROBS = softmax(TEACHER.astype(np.float64), axis=-1)
MEAN = np.einsum("s,sbk->bk", MASS, PROBS)  # the ideal ensemble
JAX_TEACHER, JAX_MASS = jnp.asarray(TEACHER), jnp.asarray(MASS, jnp.float32)


def expected_loss(logits, divergence):
    """Per-example expectation over masks of the one-mask loss, ``[B]``."""
    loss = functools.partial(dropout_distillation_loss, divergence=divergence)
    return JAX_MASS @ jax.vmap(loss, (None, 0))(logits, JAX_TEACHER)


@functools.partial(jax.jit, static_argnums=1)
@jax.value_and_grad
def one_mask_objective(kernel, divergence="kl"):
    return jnp.mean(expected_loss(INPUTS @ kernel, divergence))


@functools.partial(jax.jit, static_argnums=1)
@jax.value_and_grad
def ideal_objective(kernel, divergence="kl"):
    """The loss against the exact mean of the ensemble."""
    teacher = jnp.log(jnp.asarray(MEAN, jnp.float32))
    return jnp.mean(dropout_distillation_loss(INPUTS @ kernel, teacher, divergence=divergence))


def test_the_one_mask_loss_exceeds_the_ideal_one_by_the_mutual_information():
    floor = np.mean(entr(MEAN).sum(-1) - np.einsum("s,sbk->b", MASS, entr(PROBS)))
    assert floor > 0.05
    for kernel in (STUDENT, 3 * STUDENT, np.zeros_like(STUDENT)):
        difference = one_mask_objective(kernel)[0] - ideal_objective(kernel)[0]
        np.testing.assert_allclose(difference, floor, rtol=1e-4)


@pytest.mark.parametrize("divergence", ["kl", "brier"])
def test_both_losses_have_the_same_gradient_and_are_ordered(divergence):
    (value, gradient), (ideal, ideal_gradient) = (
        objective(STUDENT, divergence) for objective in (one_mask_objective, ideal_objective)
    )
    assert np.abs(ideal_gradient).max() > 0.01
    np.testing.assert_allclose(gradient, ideal_gradient, atol=2e-6)
    assert ideal <= value


@pytest.mark.parametrize("num_masks", [1, 2])
def test_the_gradient_is_unbiased_for_any_number_of_masks(num_masks):
    logits = jnp.asarray(INPUTS @ STUDENT)
    tuples = np.array(list(itertools.product(range(16), repeat=num_masks)))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @jax.grad
    def gradients(logits, teacher):
        return jnp.sum(dropout_distillation_loss(logits, teacher, sample_axis=0))

    gradient = np.einsum(
        "t,tbk->bk", MASS[tuples].prod(axis=1), gradients(logits, JAX_TEACHER[tuples])
    )
    np.testing.assert_allclose(gradient, softmax(logits, axis=-1) - MEAN, atol=2e-6)


@pytest.mark.parametrize("divergence", ["kl", "brier", "reverse_kl"])
def test_a_tabular_student_converges_to_the_mean_of_the_divergence(divergence):
    """To the mean of the probabilities, or with the reverse KL to the normalised geometric mean."""
    geometric = softmax(np.einsum("s,sbk->bk", MASS, np.log(PROBS)), axis=-1)
    assert np.abs(geometric - MEAN).max() > 0.02
    step = jax.grad(lambda logits: jnp.sum(expected_loss(logits, divergence)))

    @jax.jit
    def fit(logits):  # one free row of logits per input
        return jax.lax.fori_loop(0, 3000, lambda _, z: z - step(z), logits)

    fitted = softmax(fit(jnp.zeros((5, 3))), axis=-1)
    expected = geometric if divergence == "reverse_kl" else MEAN
    np.testing.assert_allclose(fitted, expected, atol=2e-3)


@pytest.mark.parametrize("divergence", ["kl", "brier", "reverse_kl"])
def test_a_teacher_without_dropout_has_no_floor_and_gets_no_gradient(divergence):
    teacher = jnp.asarray(np.tanh(INPUTS @ HIDDEN) @ HEAD)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(teacher):
        loss = dropout_distillation_loss(2 * INPUTS, teacher, divergence=divergence)
        floor = dropout_distillation_loss(teacher, teacher, divergence=divergence)
        return jnp.sum(loss), floor

    teacher_gradient, floor = gradient(teacher)
    np.testing.assert_allclose(floor, np.zeros(5), atol=1e-7)
    np.testing.assert_array_equal(teacher_gradient, 0)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_several_masks_are_averaged_over_their_axis(axis):
    stacked = jnp.moveaxis(JAX_TEACHER[:4], 0, axis)
    loss = dropout_distillation_loss(INPUTS @ STUDENT, stacked, sample_axis=axis)
    log_q = log_softmax((INPUTS @ STUDENT).astype(np.float64), axis=-1)
    expected = np.mean(np.sum(PROBS[:4] * (np.log(PROBS[:4]) - log_q), axis=-1), axis=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_bad_arguments_are_errors():
    z = jnp.zeros((5, 3))
    with pytest.raises(ValueError, match="divergence must be one of kl, brier.*got 'mse'"):
        dropout_distillation_loss(z, z, divergence="mse")
    with pytest.raises(ValueError, match=r"must have the shape \(4, 3\) of the teacher's"):
        dropout_distillation_loss(z, jnp.zeros((4, 3)))
    for axis in (2, -1, 5):
        with pytest.raises(ValueError, match=f"sample_axis must be .*got {axis}"):
            dropout_distillation_loss(z, jnp.zeros((2, 5, 3)), sample_axis=axis)
