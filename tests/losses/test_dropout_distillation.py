"""Dropout Distillation, exactly: every mask of a tiny network is enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import sdd_jax

RATE = 0.3
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(5, 3)).astype(np.float32)
HIDDEN = RNG.normal(size=(3, 4)).astype(np.float32)
HEAD = 2 * RNG.normal(size=(4, 3)).astype(np.float32)
STUDENT = RNG.normal(size=(3, 3)).astype(np.float32)

MASKS = np.array(list(itertools.product([0, 1], repeat=4)), np.float32)  # [16, 4]
MASS = np.prod(np.where(MASKS == 1, 1 - RATE, RATE), axis=1)  # of each mask
TEACHER = np.stack([np.tanh(INPUTS @ HIDDEN) * m / (1 - RATE) @ HEAD for m in MASKS])  # [16, 5, 3]
PROBS = scipy.special.softmax(TEACHER.astype(np.float64), axis=-1)
MEAN = np.einsum("s,sbk->bk", MASS, PROBS)  # the ideal ensemble


def student(kernel):
    return INPUTS @ kernel


def one_mask_objective(kernel, divergence="kl"):
    """J': the expectation of what one mask gives."""
    values = [
        sdd_jax.dropout_distillation_loss(student(kernel), t, divergence=divergence)
        for t in jnp.asarray(TEACHER)
    ]
    return jnp.mean(jnp.asarray(MASS, jnp.float32) @ jnp.stack(values))


def ideal_objective(kernel, divergence="kl"):
    """J: the loss against the exact mean of the ensemble."""
    return jnp.mean(
        sdd_jax.dropout_distillation_loss(
            student(kernel), jnp.log(jnp.asarray(MEAN, jnp.float32)), divergence=divergence
        )
    )


def mean_mutual_information():
    entropy = scipy.special.entr
    return float(np.mean(entropy(MEAN).sum(-1) - np.einsum("s,sbk->b", MASS, entropy(PROBS))))


def test_the_one_mask_loss_lies_above_the_ideal_one_by_the_mutual_information():
    floor = mean_mutual_information()
    assert floor > 0.05
    for kernel in (STUDENT, 3 * STUDENT, np.zeros_like(STUDENT)):
        difference = one_mask_objective(kernel) - ideal_objective(kernel)
        np.testing.assert_allclose(difference, floor, rtol=1e-4)


@pytest.mark.parametrize("divergence", ["kl", "brier"])
def test_both_losses_have_the_same_gradient_and_are_ordered(divergence):
    ours, ideal = (
        jax.grad(objective)(jnp.asarray(STUDENT), divergence)
        for objective in (one_mask_objective, ideal_objective)
    )
    assert float(jnp.max(jnp.abs(ideal))) > 0.01
    np.testing.assert_allclose(ours, ideal, atol=2e-6)
    assert ideal_objective(STUDENT, divergence) <= one_mask_objective(STUDENT, divergence)


@pytest.mark.parametrize("num_masks", [1, 2])
def test_the_gradient_is_unbiased_for_any_number_of_masks(num_masks):
    logits = jnp.asarray(student(STUDENT))

    def gradient(teacher):
        return jax.grad(
            lambda z: jnp.sum(sdd_jax.dropout_distillation_loss(z, teacher, sample_axis=0))
        )(logits)

    tuples = np.array(list(itertools.product(range(16), repeat=num_masks)))
    gradients = jax.vmap(gradient)(jnp.asarray(TEACHER)[tuples])
    expectation = np.einsum("t,tbk->bk", MASS[tuples].prod(axis=1), np.asarray(gradients))
    np.testing.assert_allclose(expectation, jax.nn.softmax(logits) - MEAN, atol=2e-6)


def fitted(divergence):
    """A tabular student, one free row of logits an input, trained on all masks."""
    teacher, mass = jnp.asarray(TEACHER), jnp.asarray(MASS, jnp.float32)

    def objective(logits):
        values = [
            sdd_jax.dropout_distillation_loss(logits, t, divergence=divergence) for t in teacher
        ]
        return jnp.sum(mass @ jnp.stack(values))

    step = jax.jit(lambda z: z - 1.0 * jax.grad(objective)(z))
    logits = jnp.zeros((5, 3))
    for _ in range(3000):
        logits = step(logits)
    return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("divergence", ["kl", "brier"])
def test_a_tabular_student_converges_to_the_mean_of_the_probabilities(divergence):
    np.testing.assert_allclose(fitted(divergence), MEAN, atol=2e-3)


def test_under_the_reverse_divergence_it_converges_to_the_geometric_mean():
    geometric = scipy.special.softmax(np.einsum("s,sbk->bk", MASS, np.log(PROBS)), axis=-1)
    assert np.abs(geometric - MEAN).max() > 0.02
    np.testing.assert_allclose(fitted("reverse_kl"), geometric, atol=2e-3)


def test_without_dropout_the_floor_is_zero():
    teacher = jnp.asarray(np.tanh(INPUTS @ HIDDEN) @ HEAD)
    for divergence in ("kl", "brier", "reverse_kl"):
        loss = sdd_jax.dropout_distillation_loss(teacher, teacher, divergence=divergence)
        np.testing.assert_allclose(loss, np.zeros(5), atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_several_masks_are_averaged_over_their_axis(axis):
    stacked = jnp.moveaxis(jnp.asarray(TEACHER[:4]), 0, axis)
    loss = sdd_jax.dropout_distillation_loss(student(STUDENT), stacked, sample_axis=axis)
    q = scipy.special.log_softmax(student(STUDENT).astype(np.float64), axis=-1)
    expected = np.mean(np.sum(PROBS[:4] * (np.log(PROBS[:4]) - q), axis=-1), axis=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_the_teacher_gets_no_gradient():
    def loss(teacher):
        return jnp.sum(sdd_jax.dropout_distillation_loss(student(STUDENT), teacher))

    np.testing.assert_array_equal(jax.grad(loss)(jnp.asarray(TEACHER[0])), np.zeros((5, 3)))


@pytest.mark.parametrize("divergence", ["kl", "brier", "reverse_kl"])
def test_extreme_logits_and_half_precision_stay_finite_and_float32(divergence):
    teacher = jnp.array([[1e4, -1e4, 0.0]], jnp.bfloat16)
    value, grads = jax.value_and_grad(
        lambda z: jnp.sum(sdd_jax.dropout_distillation_loss(z, teacher, divergence=divergence))
    )(-teacher)
    assert value.dtype == jnp.float32
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(grads))


def test_bad_arguments_are_errors():
    z = jnp.zeros((5, 3))
    with pytest.raises(ValueError, match="divergence must be one of kl, brier.*got 'mse'"):
        sdd_jax.dropout_distillation_loss(z, z, divergence="mse")
    with pytest.raises(ValueError, match=r"must have the shape \(4, 3\) of the teacher's"):
        sdd_jax.dropout_distillation_loss(z, jnp.zeros((4, 3)))
    for axis in (2, -1, 5):
        with pytest.raises(ValueError, match=f"sample_axis must be .*got {axis}"):
            sdd_jax.dropout_distillation_loss(z, jnp.zeros((2, 5, 3)), sample_axis=axis)
