"""Evaluation on several devices: every image counts once."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import config as base
from sdd_jax import data
from sdd_jax.evaluation import Evaluation, Predictor, evaluate
from sdd_jax.experiment import Subject


class FirstPixel(nn.Module):
    """A fake network: one logit an image's first pixel, the rest constant."""

    def __call__(self, images, *, train=False):
        first = images[:, 0, 0, 0]
        return jnp.stack([first, jnp.zeros_like(first)], -1)


def subject(num_images, batch_size):
    config = base.default()
    config.eval.batch_size = batch_size
    images = np.zeros((num_images, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_images)
    split = data.Split(images, (np.arange(num_images) % 3 == 0).astype(np.int32))
    mean, std = np.float32([0.0]), np.float32([1 / 255])
    dataset = data.Dataset("fake", 2, {"train": split, "test": split}, mean, std)
    return Subject(config, dataset, FirstPixel())


@pytest.mark.parametrize(
    ("num_images", "batch_size"), [(1, 8), (7, 3), (12, 4), (29, 8), (9, 1000)]
)
def test_logits_come_back_once_each_and_in_order(num_images, batch_size):
    fake = subject(num_images, batch_size)
    logits = Predictor(fake)({}, fake.dataset.splits["test"].images)
    np.testing.assert_allclose(logits[:, 0], np.arange(num_images), rtol=1e-5)
    assert logits.shape == (num_images, 2)


def test_figures_are_those_of_all_images_and_of_no_padding():
    fake = subject(29, 8)
    result = evaluate(Evaluation(fake, {}), ["accuracy", "calibration"])
    # class 0 wherever the pixel is at least 0, so everywhere; right where the label is 0
    assert result["eval/accuracy"] == np.mean(np.arange(29) % 3 != 0)
    assert set(result) == {"eval/accuracy", "eval/nll", "eval/ece", "eval/brier"}


def test_logits_are_computed_once_for_all_checks():
    fake = subject(5, 4)
    calls = []
    predictor = Predictor(fake)

    def counted(*arguments):
        calls.append(1)
        return predictor(*arguments)

    evaluate(Evaluation(fake, {}, predictor=counted), ["accuracy", "calibration"])
    assert len(calls) == 1
