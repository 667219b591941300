"""Tasks against numpy: their losses, the decisions they read from labels, and their metrics."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sdd_jax
from sdd_jax import models, objectives
from sdd_jax.data.engines import RawBatch
from sdd_jax.devices import AXIS, mapped
from sdd_jax.evaluation import metrics
from sdd_jax.prng import example_keys
from sdd_jax.tasks import Decisions, tasks
from sdd_jax.training import state as train_state
from sdd_jax.training.optimizers import Optimizer
from sdd_jax.training.step import train_step

RNG = np.random.default_rng(0)
MULTI_LABEL, SEGMENTATION = tasks.get("multi_label")(), tasks.get("segmentation")()
UNKNOWN = 255


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


# ------------------------------------------------------------------------------------------ losses


def test_several_labels_have_the_sum_of_binary_cross_entropies():
    outputs, labels = RNG.normal(size=(5, 7)) * 3, RNG.integers(2, size=(5, 7))
    p = 1 / (1 + np.exp(-outputs))
    expected = -np.sum(np.where(labels, np.log(p), np.log(1 - p)), axis=-1)
    values = MULTI_LABEL.loss(jnp.float32(outputs), labels.astype(np.int8))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(MULTI_LABEL.probabilities(outputs), p, rtol=1e-12)


def test_a_map_has_the_mean_cross_entropy_of_its_known_pixels():
    outputs, labels = RNG.normal(size=(3, 4, 5, 6)), RNG.integers(6, size=(3, 4, 5))
    labels[0, 1:], labels[1] = UNKNOWN, UNKNOWN  # one row is known, then nothing
    expected = []
    for z, y in zip(log_softmax(outputs), labels, strict=True):
        known = y != UNKNOWN
        expected.append(-np.mean(z[known, y[known]]) if known.any() else 0.0)
    values, pullback = jax.vjp(
        lambda z: SEGMENTATION.loss(z, jnp.uint8(labels)), jnp.float32(outputs)
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    (gradient,) = pullback(jnp.ones(3))
    assert not np.any(np.asarray(gradient)[labels == UNKNOWN])
    assert np.all(np.asarray(gradient)[labels != UNKNOWN])


# -------------------------------------------------------------------------------- SD-Dropout's term


class PerPixel(nn.Module):
    """Features of each pixel: a 1x1 convolution."""

    @nn.compact
    def __call__(self, images, *, train, dropout_keys):
        return nn.Dense(8)(images)


def experiment(task, axis_name=None, **options):
    """A step of a small network, its initial state, and a batch of eight images."""
    shape, classes = (4, 4, 3), 5
    images = RNG.normal(size=(8, *shape)).astype(np.float32)
    if task is SEGMENTATION:
        model = models.Classifier(PerPixel(), classes)
        labels = RNG.integers(classes, size=(8, 4, 4)).astype(np.uint8)
        for i in range(7):  # as many known pixels as no two others have
            labels[i].flat[: 2 * i] = UNKNOWN
    else:
        model = models.build({"name": "mlp", "width": 8, "depth": 1}, num_classes=classes)
        labels = RNG.integers(2, size=(8, classes)).astype(np.int8)
    cross_entropy = objectives.objectives.build({"name": "cross_entropy"})
    optimizer = Optimizer(optax.sgd(1.0))
    state = train_state.create(model, optimizer, seed=0, image_shape=shape)
    step = partial(
        train_step,
        model=model,
        objective=objectives.with_sd_dropout(cross_entropy, 0.7, **options),
        optimizer=optimizer,
        prepare=lambda keys, raw: raw,
        task=task,
        seed=0,
        axis_name=axis_name,
    )
    index = np.arange(8, dtype=np.int32)
    return model, step, state, RawBatch((images,), labels, index, index)


def by_the_library(model, state, raw, **options):
    """The loss that users import, on the features and with the masks of the step."""
    features = model.apply(state.variables, raw.views[0], method="features")
    keys = example_keys(0, "sd_dropout", state.step, raw.position)
    return sdd_jax.sd_dropout_loss(
        features, lambda f: model.apply(state.variables, f, method="head"), keys, **options
    )


@pytest.mark.parametrize("channel_masks", [False, True])
def test_segmentation_trains_the_library_s_loss_on_known_pixels(channel_masks):
    model, step, state, raw = experiment(SEGMENTATION, channel_masks=channel_masks)
    _, values = jax.jit(step)(state, raw)
    dims = (1, 2) if channel_masks else ()
    divergences = by_the_library(model, state, raw, broadcast_dims=dims)
    known = raw.labels != UNKNOWN
    expected = np.mean([d[k].mean() for d, k in zip(np.asarray(divergences), known, strict=True)])
    np.testing.assert_allclose(values["sd_dropout"], expected, rtol=1e-5)


def test_several_labels_train_the_library_s_bernoulli_divergence():
    model, step, state, raw = experiment(MULTI_LABEL)
    _, values = jax.jit(step)(state, raw)
    expected = by_the_library(model, state, raw, divergence=sdd_jax.symmetric_bernoulli_kl)
    np.testing.assert_allclose(values["sd_dropout"], np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("task", [SEGMENTATION, MULTI_LABEL], ids=["segmentation", "multi_label"])
def test_four_devices_with_unequal_padding_make_the_step_of_one(task):
    _, step, state, raw = experiment(task)
    alone, expected = jax.jit(step)(state, raw)
    sharded = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), raw)
    call = mapped(partial(step, axis_name=AXIS), in_axes=(None, 0), parallel="pmap")
    together, values = call(state, sharded)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        together.params,
        alone.params,
    )


# ------------------------------------------------------------------------- decisions and intervals


def test_decisions_are_those_that_count():
    outputs, labels = (
        RNG.normal(size=(2, 2, 2, 3)),
        np.array([[[0, 1], [UNKNOWN, 2]], [[1] * 2] * 2]),
    )
    found = SEGMENTATION.decisions(outputs, labels)
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.example, [0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.logits[2], outputs[0, 1, 1])
    outputs, labels = np.array([[1.0, -2.0]]), np.array([[1, 0]])
    found = MULTI_LABEL.decisions(outputs, labels)
    np.testing.assert_array_equal(found.logits, [[0.0, 1.0], [0.0, -2.0]])
    assert metrics.top_k_accuracy(metrics.log_softmax(found.logits), found.labels) == 1.0


def test_few_decisions_stand_for_many():
    many = Decisions(np.zeros((10, 2)), np.arange(10), np.arange(10), 10)
    np.testing.assert_array_equal(many.thinned(10).labels, np.arange(10))
    np.testing.assert_array_equal(many.thinned(4).labels, [0, 3, 6, 9])


def test_contributions_of_examples_are_the_jackknife_of_a_ratio():
    example = np.repeat(np.arange(40), RNG.integers(1, 30, size=40))
    values = RNG.random(len(example)) + 0.1 * example
    mean, found = values.mean(), Decisions(values, values, example, 40).by_example(values)
    np.testing.assert_allclose(found.mean(), mean, rtol=1e-12)
    without = np.array([values[example != n].mean() for n in range(40)])
    np.testing.assert_allclose(found - mean, (mean - without) * 39, rtol=0.2, atol=0.1)
    one_each = Decisions(values[:5], values[:5], np.arange(5), 5)
    np.testing.assert_array_equal(one_each.by_example(values[:5]), values[:5])


# ----------------------------------------------------------------------------------------- metrics


def test_miou_is_that_of_the_confusion_matrix():
    outputs, labels = RNG.normal(size=(6, 5, 5, 5)), RNG.integers(3, size=(6, 5, 5))
    outputs[..., 4] = -9  # neither predicted nor in the labels, so that it does not count
    labels[:, 0] = UNKNOWN
    known = labels != UNKNOWN
    counts = np.zeros((5, 5))
    np.add.at(counts, (labels[known], outputs.argmax(-1)[known]), 1)
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    expected = np.mean(np.diag(counts)[:4] / union[:4])
    np.testing.assert_allclose(SEGMENTATION.metrics(outputs, labels)["miou"], expected, rtol=1e-12)
    assert np.isnan(SEGMENTATION.metrics(outputs, np.full_like(labels, UNKNOWN))["miou"])


def test_contributions_of_images_are_the_jackknife_of_miou():
    labels = RNG.integers(3, size=(40, 6, 6))
    outputs = RNG.normal(size=(40, 6, 6, 3)) + 2 * np.eye(3)[labels]
    labels[::3, :4] = UNKNOWN
    miou = SEGMENTATION.metrics(outputs, labels)["miou"]
    found = SEGMENTATION.contributions(outputs, labels)["miou"]
    np.testing.assert_allclose(found.mean(), miou, rtol=1e-12)
    others = np.arange(40) != np.arange(40)[:, None]
    without = [SEGMENTATION.metrics(outputs[n], labels[n])["miou"] for n in others]
    np.testing.assert_allclose(found - miou, 39 * (miou - np.array(without)), rtol=0.05, atol=0.02)


def test_map_is_the_mean_precision_at_each_positive():
    outputs, labels = RNG.normal(size=(30, 4)), RNG.integers(2, size=(30, 4))
    labels[:, 3] = 0  # a class without an example does not count
    expected = []
    for z, y in zip(outputs.T[:3], labels.T[:3], strict=True):
        ranked = y[np.argsort(-z)]
        precision = np.cumsum(ranked) / np.arange(1, 31)
        expected.append(precision[ranked == 1].mean())
    np.testing.assert_allclose(
        MULTI_LABEL.metrics(outputs, labels)["map"], np.mean(expected), rtol=1e-12
    )
    assert np.isnan(MULTI_LABEL.metrics(outputs, np.zeros_like(labels))["map"])
