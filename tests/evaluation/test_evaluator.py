"""Evaluation on several devices: every image counts once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from sdd_jax.data import Dataset, Split
from sdd_jax.evaluation.batching import Network, compiled, stream
from sdd_jax.evaluation.checks import build
from sdd_jax.evaluation.metrics import detection


@pytest.fixture
def first_pixel(linear):
    """``first_pixel(N, batch_size)``: image n has first pixel n and logits (n, 0); label n % 3 == 0."""

    def evaluator(num_images, batch_size):
        images = np.zeros((num_images, 2, 2, 1), np.uint8)
        images[:, 0, 0, 0] = np.arange(num_images)
        kernel = np.zeros((4, 2))
        kernel[0, 0] = 1
        labels = np.arange(num_images) % 3 == 0
        return linear(images, labels, kernel, bias=(0.0, 0.0), batch_size=batch_size)

    return evaluator


@pytest.fixture
def constant(linear):
    """``constant(value)``: the same logit for each of four classes, on 30 images."""
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    other = Split(images[::-1], np.zeros(30, np.int32))
    ones = np.ones(1, np.float32)
    dataset = Dataset("photos", 1, {"train": other, "test": other}, ones, ones)

    def evaluator(value):
        return linear(
            images, np.arange(30) % 3, bias=(value,) * 4, load_dataset=lambda name: dataset
        )

    return evaluator


@pytest.mark.parametrize(
    ("num_images", "batch_size"), [(1, 8), (7, 3), (12, 4), (29, 8), (9, 1000)]
)
def test_logits_come_back_once_each_and_in_order(first_pixel, num_images, batch_size):
    logits = first_pixel(num_images, batch_size).logits
    expected = np.stack([np.arange(num_images), np.zeros(num_images)], axis=-1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_padding_does_not_count(first_pixel):
    summary = first_pixel(29, 8).summary()
    assert summary["accuracy"] == np.mean(np.arange(29) % 3 != 0)  # class 0 everywhere
    assert set(summary) == {"accuracy", "nll", "ece", "brier"}


def test_another_split_is_evaluated_on_its_own_images(first_pixel):
    evaluator = first_pixel(9, 4)
    logits = evaluator.logits
    splits = evaluator.setup.dataset.splits
    splits["validation"] = splits["test"].take(np.arange(4))
    other = dataclasses.replace(evaluator, split="validation")
    np.testing.assert_allclose(other.logits, logits[:4])


def test_programs_of_several_functions_see_each_example_once_and_its_neighbours_never(first_pixel):
    evaluator = first_pixel(11, 4)

    def double(network, variables, images, position):
        return {"pixel": 2 * images[:, 0, 0, 0].astype(jnp.int32), "position": position}

    def total(network, variables, both, added):
        return both["pixel"] + both["position"] + added

    first = evaluator.compiled(double, gather=False)
    second = evaluator.compiled(total)
    sums = evaluator.stream(
        lambda *shares: second({}, (first({}, shares, ()),), (np.int32(100),)),
        evaluator.images,
        evaluator.position,
    )
    np.testing.assert_array_equal(sums, 100 + 3 * np.arange(11))


def test_a_function_is_compiled_once_for_all_evaluations_of_a_network(first_pixel):
    traces = []

    def logits(network, variables, images):
        traces.append(1)
        return network.logits(variables, images)

    for _ in range(2):
        evaluator = first_pixel(5, 4)
        evaluator.map(logits, evaluator.images)
    assert len(traces) == 1
    other = Network(evaluator.setup.model, (0.5,), (1.0,))
    assert compiled(logits, other) is not compiled(logits, evaluator.network)


def test_a_host_reads_only_its_own_part_of_every_batch(monkeypatch):
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


def test_at_most_two_batches_are_in_flight():
    started, in_flight, fetched = [], [], []

    class Result:
        def __init__(self, value):
            self.value = value

        def __array__(self, dtype=None, copy=None):
            fetched.append(1)
            in_flight.append(len(started) - len(fetched))
            return np.asarray(self.value)

    def program(share):
        started.append(1)
        return Result(np.asarray(share).ravel())

    np.testing.assert_array_equal(stream(program, 4, np.arange(40)), np.arange(40))
    assert max(in_flight) == 1  # beside the one that is fetched


FAST_ATTACKS = {"pgd_steps": 5, "apgd_steps": 2, "square_queries": 4}


def test_constant_logits_give_the_metrics_of_chance(constant):
    evaluator = constant(3.0)
    accuracy = np.mean(np.arange(30) % 3 == 0)
    values = {}
    for name in ("accuracy", "calibration", "adversarial", "corruption", "ood"):
        values |= build(name, FAST_ATTACKS)(evaluator).metrics
    assert values["accuracy"] == pytest.approx(accuracy)
    assert values["nll"] == pytest.approx(np.log(4))
    assert values["ece"] == pytest.approx(abs(accuracy - 0.25))
    assert values["calibration/ece_equal_mass"] == pytest.approx(values["ece"])
    assert values["calibration/aurc"] == pytest.approx(1 - accuracy)
    assert values["brier"] == pytest.approx(0.75**2 + 3 * 0.25**2)
    for prefix, count in (("adversarial/", 15), ("corruption/", 50)):
        accuracies = [
            v for k, v in values.items() if k.startswith(prefix) and k.endswith("/accuracy")
        ]
        assert accuracies == [pytest.approx(accuracy)] * count
    for name, value in values.items():
        if name.endswith("/auroc"):  # the other images are the same ones
            assert value == pytest.approx(0.5, abs=0.01), name
    for score in ("msp", "odin", "energy", "max_logit", "gen"):
        assert values[f"ood/photos/{score}/fpr95"] == 1.0


def test_logits_of_nan_are_wrong_everywhere_and_have_no_other_metric(constant):
    of_logits = ("msp", "odin", "energy", "max_logit", "gen", "react", "ash", "vim")
    for name in ("accuracy", "calibration", "adversarial", "corruption", "ood"):
        options = FAST_ATTACKS | {"ood_detectors": of_logits}
        values = build(name, options)(constant(float("nan"))).metrics
        for metric, value in values.items():
            if metric.endswith("accuracy"):
                assert value == 0, metric
            elif metric != "adversarial/images":
                assert np.isnan(value), metric


def test_attacks_and_odin_move_the_pixels_of_a_linear_network_as_by_hand(linear):
    rng = np.random.default_rng(2)
    kernel, bias = rng.standard_normal((12, 3)), rng.standard_normal(3)
    images, others = rng.integers(60, 196, (2, 40, 2, 2, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 40)
    outside = Split(others, labels)
    ones = np.ones(3, np.float32)
    other = Dataset("other", 3, {"train": outside, "test": outside}, ones, ones)
    evaluator = linear(
        images, labels, kernel, bias=tuple(bias.tolist()), mean=0.5, std=0.25,
        load_dataset=lambda name: other,
    )  # fmt: skip

    def logits(pixels):
        return (pixels / 255 - 0.5) / 0.25 @ kernel + bias

    # The gradient of the cross-entropy is W (p - y), times 1 / std, which is positive.
    pixels = images.reshape(40, 12).astype(float)
    error = scipy.special.softmax(logits(pixels), axis=-1) - np.eye(3)[labels]
    attacked = pixels + 8 * np.sign(error @ kernel.T)
    expected = np.mean(logits(attacked).argmax(-1) == labels)
    options = {"epsilons": (8.0,), "pgd_steps": 5, "attacks": ()}
    values = build("adversarial", options)(evaluator).metrics
    assert values["adversarial/fgsm/8/accuracy"] == expected
    assert values["adversarial/pgd/8/accuracy"] == expected  # one region: the gradient's sign stays
    assert values["adversarial/fgsm/0/accuracy"] == np.mean(logits(pixels).argmax(-1) == labels)

    # The gradient of log p_best at temperature T is (W_best - sum_c p_c W_c) / T.
    def odin(pixels):
        probs = scipy.special.softmax(logits(pixels) / 10, axis=-1)
        gradient = kernel[:, probs.argmax(-1)].T - probs @ kernel.T
        moved = logits(pixels + 255 * 0.01 * np.sign(gradient))
        return scipy.special.softmax(moved / 10, axis=-1).max(axis=-1)

    options = {"ood": ("other",), "odin_temperature": 10.0, "odin_epsilon": 0.01}
    values = build("ood", options)(evaluator).metrics
    expected = detection(odin(pixels), odin(others.reshape(40, 12).astype(float)))["auroc"]
    assert values["ood/other/odin/auroc"] == pytest.approx(expected, abs=2e-3)
