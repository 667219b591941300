"""Scores of how in-distribution an input looks, against SciPy; ODIN on a linear network by hand."""

import flax.linen as nn
import jax
import numpy as np
import scipy.special

from sdd_jax import config as base
from sdd_jax import data
from sdd_jax.evaluation import Evaluation, scores
from sdd_jax.evaluation.checks import ood
from sdd_jax.experiment import Subject

LOGITS = np.random.default_rng(0).standard_normal((20, 5)) * 4


def test_scores_are_those_of_scipy():
    def msp(z):
        return np.log(scipy.special.softmax(z, axis=-1).max(-1))

    np.testing.assert_allclose(scores.maximum_softmax_probability(LOGITS), msp(LOGITS))
    np.testing.assert_allclose(
        scores.maximum_softmax_probability(LOGITS, temperature=50.0), msp(LOGITS / 50)
    )
    energy = scipy.special.logsumexp(LOGITS, axis=-1)
    np.testing.assert_allclose(scores.negative_energy(LOGITS), energy)
    np.testing.assert_allclose(scores.negative_energy(LOGITS + 1e4), energy + 1e4)
    np.testing.assert_array_equal(scores.maximum_logit(LOGITS), LOGITS.max(-1))


class Linear(nn.Module):
    """Logits are a fixed linear function of the normalised pixels."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return images.reshape(len(images), -1) @ KERNEL


KERNEL = np.random.default_rng(1).standard_normal((12, 3)).astype(np.float32)


def test_odin_moves_each_pixel_by_epsilon_towards_confidence():
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (7, 2, 2, 3), dtype=np.uint8)
    split = data.Split(images, np.zeros(7, np.int32))
    mean, std = np.float32([0.2, 0.5, 0.4]), np.float32([0.1, 0.3, 0.2])
    dataset = data.Dataset("fake", 3, {"train": split, "test": split}, mean, std)
    evaluation = Evaluation(Subject(base.default(), dataset, Linear()), {})
    temperature, epsilon = 10.0, 0.01
    scalars = np.float32(temperature), np.float32(255 * epsilon)
    found = evaluation.map(ood._odin_logits, images, scalars=scalars)

    pixels = images / 255.0
    normalised = ((pixels - mean) / std).reshape(7, 12)
    probs = scipy.special.softmax(normalised @ KERNEL / temperature, axis=-1)
    best = probs.argmax(-1)
    # d log p_best / dx = (W_best - sum_c p_c W_c) / T, and the chain rule's 1 / std is positive
    gradient = KERNEL[:, best].T - probs @ KERNEL.T
    moved = pixels.reshape(7, 12) + epsilon * np.sign(gradient)
    expected = ((moved.reshape(images.shape) - mean) / std).reshape(7, 12) @ KERNEL
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert not np.allclose(found, jax.device_get(evaluation.logits), atol=1e-2)
