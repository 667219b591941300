"""FGSM and PGD against closed forms, and on a trained network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.evaluation import attacks
from sdd_jax.evaluation.checks import build
from sdd_jax.evaluation.evaluate import Evaluation
from sdd_jax.experiment import load_subject
from sdd_jax.parallel import replicate
from sdd_jax.trained import load_trained
from sdd_jax.training.workdir import read_config

W = np.array([[1.0, -2.0], [0.5, 0.0]], np.float32)


def linear(images):
    return jnp.sum(images * W, axis=(1, 2))


def pgd(loss_fn, images, epsilon, step_size, steps, bounds=(0, 1)):
    keys = jax.random.split(jax.random.key(0), len(images))
    attack = attacks.pgd_start(loss_fn, images, keys, epsilon, bounds=bounds)
    for _ in range(steps):
        attack = attacks.pgd_step(loss_fn, attack, images, epsilon, step_size, bounds=bounds)
    return attacks.pgd_end(loss_fn, attack)


def test_fgsm_of_a_linear_loss_goes_to_the_corner_and_keeps_to_the_range():
    images = np.float32([[[0.5, 0.5], [0.95, 0.2]], [[0.0, 0.02], [1.0, 0.0]]])
    expected = np.clip(images + 0.1 * np.sign(W), 0, 1)
    np.testing.assert_allclose(attacks.fgsm(linear, images, 0.1), expected, rtol=1e-6)


def test_pgd_of_a_linear_loss_ends_in_the_same_corner():
    images = np.float32([[[0.5, 0.5], [0.95, 0.2]], [[0.0, 0.02], [1.0, 0.0]]])
    found = np.asarray(pgd(linear, images, 0.1, 0.05, 5))
    expected = np.clip(images + 0.1 * np.sign(W), 0, 1)
    moves = W != 0  # where the gradient is zero, any pixel of the ball is as good
    np.testing.assert_allclose(found[:, moves], expected[:, moves], rtol=1e-6)
    assert np.all(np.abs(found - images) <= 0.1 + 1e-6)


def test_pgd_finds_a_maximum_inside_the_ball_where_fgsm_oversteps_it():
    def hill(images):
        return -jnp.sum((images - 0.53) ** 2, axis=(1, 2))

    images = np.full((1, 2, 2), 0.5, np.float32)
    fast, slow = attacks.fgsm(hill, images, 0.1), pgd(hill, images, 0.1, 0.02, 30)
    np.testing.assert_allclose(fast, 0.6, rtol=1e-6)
    np.testing.assert_allclose(slow, 0.53, atol=0.02)  # a step


def test_pgd_hands_back_the_image_itself_if_nothing_in_the_ball_is_worse():
    def peak(images):
        return -jnp.sum(jnp.abs(images - 0.5), axis=(1, 2))

    images = np.full((3, 2, 2), 0.5, np.float32)
    np.testing.assert_array_equal(pgd(peak, images, 0.1, 0.03, 4), images)


@pytest.fixture(scope="module")
def evaluation(runs):
    subject = load_subject(read_config(runs["ce"]))
    trained = load_trained(str(runs["ce"]), subject.dataset)
    return Evaluation(subject, replicate(trained.variables))


@pytest.fixture(scope="module")
def found(evaluation):
    options = {"epsilons": (4.0, 16.0, 32.0), "pgd_steps": 10}
    return build("adversarial", options)(evaluation).metrics


def test_no_attack_changes_nothing(found, evaluation):
    clean = evaluation.summary()["accuracy"]
    assert found["adversarial/fgsm/0/accuracy"] == found["adversarial/pgd/0/accuracy"] == clean
    assert clean > 0.9


def test_pgd_is_at_least_as_strong_as_fgsm_and_both_grow_with_epsilon(found):
    for epsilon in (4, 16, 32):
        fast, slow = (found[f"adversarial/{a}/{epsilon}/accuracy"] for a in ("fgsm", "pgd"))
        assert slow <= fast
    for attack in ("fgsm", "pgd"):
        curve = [found[f"adversarial/{attack}/{e}/accuracy"] for e in (0, 4, 16, 32)]
        assert curve == sorted(curve, reverse=True)
        assert curve[-1] < 0.5 * curve[0]


def test_the_attacked_images_differ_by_epsilon_at_most_and_are_images(evaluation):
    seen = []

    def program(images, labels, position):
        from sdd_jax.evaluation.checks import adversarial
        from sdd_jax.training.random import stream_key

        start = evaluation.compiled(adversarial._pgd_start, gather=False)
        step = evaluation.compiled(adversarial._pgd_step, gather=False)
        scalars = np.float32(8), np.float32(2)
        attack = start(
            evaluation.variables, (images, labels, position), (stream_key(0, "pgd"), scalars[0])
        )
        for _ in range(3):
            attack = step(evaluation.variables, (attack, images, labels), scalars)
            for points in (attack.current, attack.best):
                points, original = np.asarray(points), np.asarray(images, np.float32)
                assert points.min() >= 0
                assert points.max() <= 255
                seen.append(np.abs(points - original).max())
        return np.zeros(len(np.ravel(labels)))

    evaluation.stream(program, evaluation.images, evaluation.labels, evaluation.position)
    assert max(seen) == pytest.approx(8, abs=1e-3)


def test_a_part_of_the_images_is_the_first_ones(evaluation):
    found = build("adversarial", {"max_images": 50, "pgd_steps": 1})(evaluation).metrics
    assert found["adversarial/images"] == 50
    right = evaluation.logits[:50].argmax(-1) == evaluation.labels[:50]
    assert found["adversarial/pgd/0/accuracy"] == right.mean()
