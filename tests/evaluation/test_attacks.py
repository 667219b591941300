"""FGSM, PGD and ODIN's inputs against closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from sdd_jax import data
from sdd_jax.evaluation import EvaluationSetup, Evaluator, attacks
from sdd_jax.evaluation.checks import build

W = np.array([[[1.0, -2.0], [0.5, 0.0]]], np.float32)


def linear(images):
    return jnp.sum(images * W, axis=(1, 2))


def pgd(loss_fn, images, epsilon, step_size, steps, bounds=(0, 1)):
    """The attacked images, and the states of all steps."""
    keys = jax.random.split(jax.random.key(0), len(images))
    states = [attacks.pgd_start(loss_fn, images, keys, epsilon, bounds=bounds)]
    for _ in range(steps):
        state = attacks.pgd_step(loss_fn, states[-1], images, epsilon, step_size, bounds=bounds)
        states.append(state)
    return np.asarray(attacks.pgd_end(loss_fn, states[-1])), states


def test_a_linear_loss_is_attacked_in_the_corner_of_the_ball_within_the_range():
    images = np.array([[[0.5, 0.5], [0.95, 0.2]], [[0.0, 0.02], [1.0, 0.0]]], np.float32)
    expected = np.clip(images + 0.1 * np.sign(W), 0, 1)
    np.testing.assert_allclose(attacks.fgsm(linear, images, 0.1), expected, rtol=1e-6)
    attacked, _ = pgd(linear, images, 0.1, 0.05, 5)
    moves = W[0] != 0  # where the gradient is zero, any pixel of the ball is as good
    np.testing.assert_allclose(attacked[:, moves], expected[:, moves], rtol=1e-6)


def test_pgd_finds_a_maximum_inside_the_ball_where_fgsm_oversteps_it():
    def hill(images):
        return -jnp.sum((images - 0.53) ** 2, axis=(1, 2))

    images = np.full((1, 2, 2), 0.5, np.float32)
    np.testing.assert_allclose(attacks.fgsm(hill, images, 0.1), 0.6, rtol=1e-6)
    attacked, _ = pgd(hill, images, 0.1, 0.02, 30)
    np.testing.assert_allclose(attacked, 0.53, atol=0.02)  # a step


def test_pgd_returns_the_image_itself_if_it_has_the_largest_loss():
    def peak(images):
        return -jnp.sum(jnp.abs(images - 0.5), axis=(1, 2))

    images = np.full((3, 2, 2), 0.5, np.float32)
    np.testing.assert_array_equal(pgd(peak, images, 0.1, 0.03, 4)[0], images)


def test_pgd_stays_in_the_ball_and_the_range_and_keeps_the_largest_loss():
    def waves(images):
        return jnp.sum(jnp.sin(images), axis=(1, 2))

    images = np.random.default_rng(0).integers(0, 256, (6, 5, 5)).astype(np.float32)
    images[0, 0] = [0, 0, 255, 255, 128]
    attacked, states = pgd(waves, images, 8.0, 3.0, 6, bounds=(0, 255))
    for state in states:
        for points in (state.current, state.best):
            assert np.min(points) >= 0
            assert np.max(points) <= 255
            assert np.abs(points - images).max() <= 8 + 1e-4
    losses = np.array([waves(state.current) for state in states] + [waves(jnp.asarray(images))])
    np.testing.assert_allclose(waves(jnp.asarray(attacked)), losses.max(axis=0), rtol=1e-6)


def test_odin_moves_each_pixel_by_epsilon_towards_confidence():
    rng = np.random.default_rng(2)
    kernel = rng.standard_normal((12, 3)).astype(np.float32)
    images = rng.random((7, 12), np.float32)
    moved = attacks.odin_inputs(lambda x: x @ kernel, images, 0.25, temperature=10.0)
    probs = scipy.special.softmax(images @ kernel / 10, axis=-1)
    # the gradient of log p_best is (W_best - sum_c p_c W_c) / T
    gradient = kernel[:, probs.argmax(axis=-1)].T - probs @ kernel.T
    np.testing.assert_allclose(moved, images + 0.25 * np.sign(gradient), rtol=1e-6)


class Threshold(nn.Module):
    """Two classes, with logits in proportion to the distance of the first pixel from the middle."""

    @nn.compact
    def __call__(self, images, *, train=False):
        first = images[:, 0, 0, 0]
        return jnp.stack([-first, first], axis=-1)


@pytest.mark.parametrize("max_images", [0, 50])
def test_the_check_counts_the_images_that_cannot_cross_the_threshold(max_images):
    pixels = np.random.default_rng(0).permutation(256).astype(np.uint8)
    split = data.Split(pixels.reshape(256, 1, 1, 1), (pixels > 127).astype(np.int32))
    mean, std = np.array([[0.5], [10 / 255]], np.float32)
    dataset = data.Dataset("fake", 2, {"train": split, "test": split}, mean, std)
    setup = EvaluationSetup(
        Threshold(), dataset, seed=0, batch_size=64, load_dataset=lambda name: dataset
    )
    options = {"epsilons": (4.0, 16.0), "pgd_steps": 4, "max_images": max_images}
    result = dict(build("adversarial", options)(Evaluator(setup, {})).metrics)
    pixels = pixels[: max_images or None]
    assert result.pop("adversarial/images") == len(pixels)
    assert result == {
        f"adversarial/{attack}/{epsilon}/accuracy": np.mean(abs(pixels - 127.5) > epsilon)
        for attack in ("fgsm", "pgd")
        for epsilon in (0, 4, 16)
    }
