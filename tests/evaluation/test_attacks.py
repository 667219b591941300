"""FGSM, PGD and ODIN's inputs against closed forms; Auto-PGD and Square against torchattacks."""

import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import sdd_jax
from sdd_jax import data
from sdd_jax.evaluation import EvaluationSetup, Evaluator, adversaries, attacks
from sdd_jax.evaluation.apgd import apgd, apgd_start, dlr_loss, margin_loss
from sdd_jax.evaluation.checks import build
from sdd_jax.evaluation.square import square

PEER = json.loads((Path(__file__).parent / "peers" / "attacks.json").read_text())
EPSILON, QUERIES = (PEER["options"][name] for name in ("epsilon", "queries"))
IMAGES, NOISE, FIRST, SECOND = (
    np.array(PEER["inputs"][name]) for name in ("images", "noise", "first", "second")
)
LABELS = np.array(PEER["inputs"]["labels"])
LOSSES = {"ce": sdd_jax.cross_entropy, "dlr": dlr_loss}

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


def logits(images):
    first, second = (jnp.asarray(kernel, images.dtype) for kernel in (FIRST, SECOND))
    return jnp.sin(images.reshape(len(images), -1) @ first) @ second


@functools.partial(jax.jit, static_argnames=("loss", "steps"))
def apgd_of_the_peer(images, start, labels, *, loss, steps):
    def objective(x):
        z = logits(x)
        return LOSSES[loss](z, labels), jnp.argmax(z, axis=-1) != labels

    attacked = apgd(objective, images, start, EPSILON, steps=steps)
    return attacked, *objective(attacked)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", PEER["options"]["steps"])
def test_auto_pgd_is_torchattacks_from_the_same_start(loss, steps):
    peer = PEER["apgd"][f"{loss}/{steps}"]
    images = IMAGES[-len(NOISE) :]
    start = np.clip(images + EPSILON * NOISE, 0, 1)
    with jax.enable_x64(True):
        attacked, losses, is_fooled = apgd_of_the_peer(
            images, start, LABELS[-len(NOISE) :], loss=loss, steps=steps
        )
    np.testing.assert_allclose(attacked, peer["attacked"], atol=1e-6)  # the digits of the file
    kept = np.array(peer["robust"])
    np.testing.assert_array_equal(is_fooled, ~kept)
    assert 0 < kept.sum() < len(kept)
    # of an image that is not fooled, the point with the largest loss
    np.testing.assert_allclose(losses[kept], np.array(peer["largest_loss"])[kept], atol=1e-5)


def test_auto_pgd_starts_on_the_surface_of_the_ball_within_the_range():
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    images = IMAGES.astype(np.float32)
    start = np.asarray(apgd_start(images, keys, 0.25))
    assert start.min() >= 0
    assert start.max() <= 1
    free = np.asarray(apgd_start(images, keys, 0.25, bounds=(-1, 2)))
    np.testing.assert_allclose(np.abs(free - images).max(axis=(1, 2, 3)), 0.25, rtol=1e-5)
    np.testing.assert_allclose(start, free.clip(0, 1))


def test_dlr_is_its_formula_and_does_not_change_with_shift_and_scale():
    z = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    labels = np.arange(50, dtype=np.int32) % 6
    expected = []
    for row, y in zip(z.astype(float), labels, strict=True):
        ordered = np.sort(row)[::-1]
        expected.append((max(np.delete(row, y)) - row[y]) / (ordered[0] - ordered[2]))
    np.testing.assert_allclose(dlr_loss(z, labels), expected, rtol=1e-4)
    np.testing.assert_allclose(dlr_loss(4 * z + 1, labels), expected, rtol=1e-3)
    np.testing.assert_array_equal(np.array(expected) > 0, z.argmax(-1) != labels)
    with pytest.raises(ValueError, match="three classes or more, got 2"):
        dlr_loss(z[:, :2], labels % 2)


@functools.partial(jax.jit, static_argnames="queries")
def square_of_the_peer(images, keys, labels, epsilon, *, queries):
    def loss_fn(x):
        return margin_loss(logits(x), labels)

    return square(loss_fn, images, keys, epsilon, queries=queries)


def test_square_leaves_as_many_images_robust_as_torchattacks():
    images, found = IMAGES.astype(np.float32), []
    for seed in range(5):
        keys = jax.random.split(jax.random.key(seed), len(images))
        attacked = square_of_the_peer(images, keys, LABELS, EPSILON, queries=QUERIES)
        found.append(np.mean(np.asarray(logits(attacked)).argmax(-1) == LABELS))
    assert np.mean(found) == pytest.approx(np.mean(PEER["square"]), abs=0.02)  # an image of 56
    assert 0.2 < np.mean(found) < 0.8


def test_square_stays_in_the_ball_and_the_range_and_never_lowers_the_loss():
    images = IMAGES.astype(np.float32)
    keys = jax.random.split(jax.random.key(0), len(images))
    start, attacked = (
        np.asarray(square_of_the_peer(images, keys, LABELS, EPSILON, queries=queries))
        for queries in (0, QUERIES)
    )
    for points in (start, attacked):
        assert points.min() >= 0
        assert points.max() <= 1
        assert np.abs(points - images).max() <= EPSILON + 1e-6
    inside = (attacked > 0) & (attacked < 1)  # a query moves pixels by the whole diameter
    np.testing.assert_allclose(np.abs(attacked - images)[inside], EPSILON, rtol=1e-3)
    before, after = (np.asarray(margin_loss(logits(x), LABELS)) for x in (start, attacked))
    assert np.all(after >= before)
    assert np.any(after > before)
    np.testing.assert_array_equal(attacked[before > 0], start[before > 0])
    order = np.random.default_rng(0).permutation(
        len(images)
    )  # an image does not depend on the others
    again = square_of_the_peer(images[order], keys[order], LABELS[order], EPSILON, queries=QUERIES)
    np.testing.assert_allclose(again, attacked[order], atol=1e-7)


class Threshold(nn.Module):
    """Two classes, with logits in proportion to the distance of the first pixel from the middle."""

    @nn.compact
    def __call__(self, images, *, train=False):
        first = images[:, 0, 0, 0]
        return jnp.stack([-first, first], axis=-1)


@pytest.fixture(scope="module")
def threshold():
    """The evaluator of :class:`Threshold` on an image of each level, all classified correctly."""
    pixels = np.random.default_rng(0).permutation(256).astype(np.uint8)
    split = data.Split(pixels.reshape(256, 1, 1, 1), (pixels > 127).astype(np.int32))
    mean, std = np.array([[0.5], [10 / 255]], np.float32)
    dataset = data.Dataset("fake", 2, {"train": split, "test": split}, mean, std)
    setup = EvaluationSetup(
        Threshold(), dataset, seed=0, batch_size=64, load_dataset=lambda name: dataset
    )
    return Evaluator(setup, {})


@pytest.mark.parametrize("max_images", [0, 64])
def test_the_check_counts_the_images_that_cannot_cross_the_threshold(threshold, max_images):
    options = {"epsilons": (4.0, 16.0), "pgd_steps": 4, "apgd_steps": 5, "square_queries": 8}
    result = build("adversarial", options | {"max_images": max_images})(threshold)
    values = dict(result.metrics)
    pixels = threshold.images.ravel()[: max_images or None]
    assert values.pop("adversarial/images") == len(pixels)
    assert values == {
        f"adversarial/{attack}/{epsilon}/accuracy": np.mean(abs(pixels - 127.5) > epsilon)
        for attack in ("fgsm", "pgd", "worst_case")
        for epsilon in (0, 4, 16)
    }
    assert "APGD-DLR needs 3 classes or more and is left out." in result.notes
    assert any("deterministic" in note for note in result.notes)


def test_an_image_is_robust_in_the_worst_case_if_it_survives_every_attack(threshold):
    """Two attacks outside the package: one darkens the bright images, one brightens the dark."""
    tried = []
    for name, fools, target in (("to_black", 1, 0.0), ("to_white", 0, 255.0)):

        @adversaries.adversaries.register(f"{name}_in_test")
        def to_level(fools=fools, target=target):
            def attack(logits_fn, images, labels, keys, epsilon, bounds):
                tried.append(images.shape)
                fooled = (labels == fools)[:, None, None, None]
                return jnp.where(fooled, target, images)

            return adversaries.Adversary(f"To {target:g}", attack)

    options = {"epsilons": (8.0,), "pgd_steps": 1}
    both = ("to_black_in_test", "to_white_in_test")
    values = {}
    for attacks_ in (both[:1], both[1:], both, ()):
        result = build("adversarial", options | {"attacks": attacks_})(threshold)
        values[attacks_] = result.metrics.get("adversarial/worst_case/8/accuracy")
    assert list(values.values()) == [0.5, 0.5, 0.0, None]
    result = build("adversarial", options | {"attacks": both})(threshold)
    (table,) = result.tables
    assert table.header[3:] == ["To 0", "and To 255"]
    assert [row[3:] for row in table.rows] == [["100.0", "100.0"], ["50.0", "0.0"]]
    assert result.metrics["adversarial/worst_case/0/accuracy"] == 1
