"""Evaluation on several devices: every image counts once."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import config as base
from sdd_jax import data
from sdd_jax.evaluation import Evaluation
from sdd_jax.evaluation.checks import build
from sdd_jax.evaluation.network import Network, compiled, stream
from sdd_jax.experiment import Subject


class FirstPixel(nn.Module):
    """A fake network: one logit an image's first pixel, the rest constant."""

    @nn.compact
    def __call__(self, images, *, train=False):
        first = images[:, 0, 0, 0]
        return jnp.stack([first, jnp.zeros_like(first)], -1)


class Constant(nn.Module):
    """A fake network that says the same of every image."""

    value: float
    num_classes: int

    @nn.compact
    def __call__(self, images, *, train=False):
        return self.value + 0 * jnp.broadcast_to(
            images[:, :1, 0, 0], (len(images), self.num_classes)
        )


def fake(num_images, batch_size, model=None, num_classes=2):
    config = base.default()
    config.eval.batch_size = batch_size
    images = np.zeros((num_images, 8, 8, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_images)
    split = data.Split(images, (np.arange(num_images) % 3 == 0).astype(np.int32))
    mean, std = np.float32([0.0]), np.float32([1 / 255])
    dataset = data.Dataset("fake", num_classes, {"train": split, "test": split}, mean, std)
    return Evaluation(Subject(config, dataset, model or FirstPixel()), {})


@pytest.mark.parametrize(
    ("num_images", "batch_size"), [(1, 8), (7, 3), (12, 4), (29, 8), (9, 1000)]
)
def test_logits_come_back_once_each_and_in_order(num_images, batch_size):
    logits = fake(num_images, batch_size).logits
    np.testing.assert_allclose(logits[:, 0], np.arange(num_images), rtol=1e-5)
    assert logits.shape == (num_images, 2)


def test_figures_are_those_of_all_images_and_of_no_padding():
    result = fake(29, 8).summary()
    # class 0 wherever the pixel is at least 0, so everywhere; right where the label is 0
    assert result["accuracy"] == np.mean(np.arange(29) % 3 != 0)
    assert set(result) == {"accuracy", "nll", "ece", "brier"}


def test_programs_of_several_functions_see_each_example_once_and_its_neighbours_never():
    evaluation = fake(11, 4)

    def double(network, variables, images, position):
        return {"pixel": 2 * images[:, 0, 0, 0].astype(jnp.int32), "position": position}

    def total(network, variables, both, added):
        return both["pixel"] + both["position"] + added

    first = evaluation.compiled(double, gather=False)
    second = evaluation.compiled(total)
    sums = evaluation.stream(
        lambda *shares: second({}, (first({}, shares, ()),), (np.int32(100),)),
        evaluation.images,
        evaluation.position,
    )
    np.testing.assert_array_equal(sums, 100 + 3 * np.arange(11))


def test_a_function_of_a_network_is_compiled_once_for_all_evaluations_of_it():
    traced = []

    def logits(network, variables, images):
        traced.append(1)
        return network.logits(variables, images)

    for _ in range(2):
        evaluation = fake(5, 4)
        evaluation.map(logits, evaluation.images)
    assert len(traced) == 1
    other = Network(FirstPixel(), (0.5,), (1.0,))
    assert compiled(logits, other) is not compiled(logits, evaluation.network)


def test_a_host_reads_its_own_part_of_every_batch_alone(monkeypatch):
    """Two hosts of two devices, 19 images in batches of 8: each image is read by one of them."""
    images = np.arange(19 * 3).reshape(19, 3)
    read = {0: [], 1: []}

    class Recorded(np.ndarray):
        def __getitem__(self, index):
            part = np.asarray(self)[index]
            read[jax.process_index()] += part[:, 0].tolist()
            return part

    def shares_of(host):
        shares = []
        monkeypatch.setattr(jax, "device_count", lambda: 4)
        monkeypatch.setattr(jax, "local_device_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda: host)

        def program(share):
            shares.append(share)
            return np.zeros(8)

        stream(program, 8, images.view(Recorded))
        return np.stack(shares)

    whole = np.concatenate([shares_of(0), shares_of(1)], axis=1).reshape(24, 3)
    np.testing.assert_array_equal(whole[:19], images)
    assert not whole[19:].any()
    assert sorted(read[0] + read[1]) == images[:, 0].tolist()
    assert read[1] == [3 * i for i in (4, 5, 6, 7, 12, 13, 14, 15)]


def test_few_batches_are_in_flight_at_a_time():
    started, most, fetched = [], [], []

    class Result:
        def __init__(self, value):
            self.value = value

        def __array__(self, dtype=None, copy=None):
            fetched.append(1)
            most.append(len(started) - len(fetched))
            return np.asarray(self.value)

    def program(share):
        started.append(1)
        return Result(np.asarray(share).ravel())

    found = stream(program, 4, np.arange(40))
    np.testing.assert_array_equal(found, np.arange(40))
    assert max(most) <= 1


def test_a_network_of_constant_logits_has_the_figures_of_chance():
    evaluation = fake(30, 8, Constant(3.0, 4), num_classes=4)
    labels = np.asarray(evaluation.labels)
    accuracy = np.mean(labels == 0)
    found = {}
    for name in ("accuracy", "calibration", "adversarial", "corruption"):
        found |= build(name, {"pgd_steps": 2})(evaluation).metrics
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["nll"] == pytest.approx(np.log(4))
    assert found["ece"] == pytest.approx(abs(accuracy - 0.25))
    assert found["calibration/ece_equal_mass"] == pytest.approx(found["ece"])
    assert found["calibration/aurc"] == pytest.approx(1 - accuracy)
    assert found["brier"] == pytest.approx(0.75**2 + 3 * 0.25**2)
    attacked = [v for k, v in found.items() if k.startswith("adversarial/") and "accuracy" in k]
    assert attacked == [pytest.approx(accuracy)] * 10
    corrupted = [v for k, v in found.items() if k.endswith("/accuracy") and "corruption" in k]
    assert corrupted == [pytest.approx(accuracy)] * len(corrupted)
    assert len(corrupted) == 50


def test_detection_with_constant_logits_is_a_guess():
    evaluation = fake(30, 8, Constant(3.0, 4), num_classes=4)
    found = build("ood", {})(evaluation).metrics
    for score in ("msp", "odin", "energy", "max_logit"):
        assert found[f"ood/photos/{score}/auroc"] == 0.5
        assert found[f"ood/photos/{score}/fpr95"] == 1.0


def test_a_network_that_says_nan_is_wrong_everywhere_and_has_no_other_figure():
    evaluation = fake(12, 8, Constant(float("nan"), 4), num_classes=4)
    for name in ("accuracy", "calibration", "adversarial", "corruption", "ood"):
        found = build(name, {"pgd_steps": 1})(evaluation).metrics
        for metric, value in found.items():
            if metric.endswith("accuracy"):
                assert value == 0, metric
            elif metric != "adversarial/images":
                assert np.isnan(value), metric


def test_another_split_is_evaluated_on_its_own_images():
    evaluation = fake(9, 4)
    _ = evaluation.logits
    halves = {**evaluation.subject.dataset.splits}
    halves["validation"] = halves["test"].take(np.arange(4))
    dataset = dataclasses.replace(evaluation.subject.dataset, splits=halves)
    subject = dataclasses.replace(evaluation.subject, dataset=dataset)
    other = dataclasses.replace(evaluation, subject=subject, split="validation")
    np.testing.assert_allclose(other.logits, jax.device_get(evaluation.logits)[:4])
