"""Accuracy, NLL and Brier score against scikit-learn; edge cases of all metrics of predictions."""

import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, top_k_accuracy_score

from sdd_jax.evaluation import metrics

pytestmark = pytest.mark.filterwarnings("error")

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(500, 8))).astype(np.float32)
LABELS = np.where(RNG.random(500) < 0.6, LOGITS.argmax(-1), RNG.integers(0, 8, 500))
LOG_PROBS = metrics.log_softmax(LOGITS)
PROBS = np.exp(LOG_PROBS)

# Not accuracy, which treats undefined examples differently.
METRICS = {
    "nll": metrics.negative_log_likelihood,
    "brier": metrics.brier_score,
    "ece": metrics.expected_calibration_error,
    "ece_equal_mass": lambda *args: metrics.expected_calibration_error(*args, equal_mass=True),
    "mce": metrics.maximum_calibration_error,
    "mce_equal_mass": lambda *args: metrics.maximum_calibration_error(*args, equal_mass=True),
    "classwise": metrics.classwise_calibration_error,
    "aurc": metrics.area_under_risk_coverage,
    "temperature": metrics.fit_temperature,
}
UNDEFINED = {
    "nan": [np.nan] * 4,
    "one_nan": [0, 1, np.nan, 2],
    "inf": [0, np.inf, 0, 1],
    "infs": [np.inf, np.inf, 0, -np.inf],
    "all_minus_inf": [-np.inf] * 4,
}
each_undefined = pytest.mark.parametrize("row", UNDEFINED.values(), ids=UNDEFINED)


def evaluate(logits, labels):
    """All of METRICS: the temperature of the logits, the others of log-probabilities."""
    log_probs = metrics.log_softmax(logits)
    return {
        name: metric(logits if name == "temperature" else log_probs, labels)
        for name, metric in METRICS.items()
    }


def test_log_softmax_is_scipys_and_finite_for_extreme_logits():
    np.testing.assert_allclose(LOG_PROBS, scipy.special.log_softmax(LOGITS.astype(float), -1))
    assert LOG_PROBS.dtype == np.float64
    assert np.isfinite(metrics.log_softmax([[1e4, -1e4]])).all()
    np.testing.assert_array_equal(metrics.log_softmax([[1e308, -1e308]]), [[0, -np.inf]])
    excluded = metrics.log_softmax([[1.0, -np.inf, 1.0]])
    np.testing.assert_allclose(np.exp(excluded), [[0.5, 0, 0.5]])


@each_undefined
def test_log_softmax_of_an_undefined_example_is_nan_and_leaves_the_others(row):
    result = metrics.log_softmax([[0.0, 1, 2, 3], row])
    assert np.isnan(result[1]).all()
    np.testing.assert_allclose(result[0], scipy.special.log_softmax([0.0, 1, 2, 3]))


def test_accuracies_and_nll_are_scikit_learns():
    assert metrics.top_k_accuracy(LOG_PROBS, LABELS) == accuracy_score(LABELS, PROBS.argmax(-1))
    expected = top_k_accuracy_score(LABELS, PROBS, k=5, labels=np.arange(8))
    assert metrics.top_k_accuracy(LOG_PROBS, LABELS, k=5) == pytest.approx(expected)
    expected = log_loss(LABELS, PROBS, labels=np.arange(8))
    assert metrics.negative_log_likelihood(LOG_PROBS, LABELS) == pytest.approx(expected)


def test_ties_count_as_in_argmax():
    constant = metrics.log_softmax(np.zeros((4, 10)))
    labels = np.array([0, 1, 4, 5])
    assert metrics.top_k_accuracy(constant, labels) == 0.25
    assert metrics.top_k_accuracy(constant, labels, k=5) == 0.75


def test_brier_by_hand_and_twice_scikit_learns_binary_one():
    one_hot = np.eye(8)[LABELS]
    expected = np.mean([np.sum((p - y) ** 2) for p, y in zip(PROBS, one_hot, strict=True)])
    assert metrics.brier_score(LOG_PROBS, LABELS) == pytest.approx(expected)
    log_probs, labels = metrics.log_softmax(LOGITS[:, :2]), LABELS % 2
    expected = 2 * brier_score_loss(labels, np.exp(log_probs[:, 1]))
    assert metrics.brier_score(log_probs, labels) == pytest.approx(expected)


def test_compute_returns_the_named_metrics_in_order():
    expected = {
        "ece": metrics.expected_calibration_error(LOG_PROBS, LABELS, num_bins=15),
        "accuracy": accuracy_score(LABELS, PROBS.argmax(-1)),
        "brier": metrics.brier_score(LOG_PROBS, LABELS),
        "nll": metrics.negative_log_likelihood(LOG_PROBS, LABELS),
    }
    result = metrics.compute(LOG_PROBS, LABELS, *expected)
    assert list(result.items()) == list(expected.items())
    with pytest.raises(ValueError, match="among accuracy, nll, brier, ece, got 'mce'"):
        metrics.compute(LOG_PROBS, LABELS, "nll", "mce")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_may_have_any_integer_dtype(dtype):
    assert evaluate(LOGITS, LABELS.astype(dtype)) == evaluate(LOGITS, LABELS)


def test_metrics_do_not_modify_their_arguments():
    logits, log_probs, labels = LOGITS.astype(float), LOG_PROBS.copy(), LABELS.copy()
    evaluate(logits, labels)
    for metric in METRICS.values():
        metric(log_probs, labels)
    np.testing.assert_array_equal(logits, LOGITS)
    np.testing.assert_array_equal(log_probs, LOG_PROBS)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("dtype", [int, float])
def test_every_metric_of_no_examples_is_nan(dtype):
    logits, labels = np.zeros((0, 3)), np.zeros(0, dtype)
    result = evaluate(logits, labels) | {"accuracy": metrics.top_k_accuracy(logits, labels)}
    assert all(math.isnan(value) for value in result.values()), result
    assert metrics.log_softmax(logits).shape == (0, 3)


@each_undefined
def test_an_undefined_example_is_wrong_for_accuracy_and_makes_the_other_metrics_nan(row):
    logits = np.array([[5.0, 0, 0, 0], row, [0, 5, 0, 0], row])
    for label in range(4):
        labels = np.array([0, label, 1, label])
        result = evaluate(logits, labels)
        assert all(math.isnan(value) for value in result.values()), result
        for k in (1, 2, 4):
            assert metrics.top_k_accuracy(metrics.log_softmax(logits), labels, k=k) == 0.5


@pytest.mark.parametrize("other", [-1e4, -np.inf])
def test_certainty_that_is_always_right(other):
    logits, labels = np.where(np.eye(10) > 0, 0, other), np.arange(10)
    result = evaluate(logits, labels)
    assert result.pop("temperature") == (0.01 if np.isfinite(other) else 1)
    assert result == dict.fromkeys(result, 0)
    assert math.copysign(1, result["nll"]) == 1


@pytest.mark.parametrize(("other", "temperature"), [(-1e4, 100), (-np.inf, np.nan)])
def test_certainty_that_is_always_wrong(other, temperature):
    logits, labels = np.where(np.eye(10) > 0, 0, other), np.roll(np.arange(10), 1)
    result = evaluate(logits, labels)
    expected = dict.fromkeys(result, 1) | {"nll": -other, "brier": 2, "classwise": 0.2}
    assert result == pytest.approx(expected | {"temperature": temperature}, nan_ok=True)


def test_a_label_of_probability_zero_leaves_all_finite_but_nll_and_temperature():
    result = evaluate(np.array([[0, -np.inf], [0, -np.inf], [0, 0]]), np.array([1, 0, 0]))
    assert result["nll"] == np.inf
    assert result["brier"] == pytest.approx((2 + 0 + 0.5) / 3)
    assert math.isnan(result["temperature"])
    assert {name for name in result if not np.isfinite(result[name])} == {"nll", "temperature"}


@pytest.mark.parametrize("label", [0, 3])
def test_all_labels_may_be_equal(label):
    labels = np.full(500, label)
    result = evaluate(LOGITS, labels)
    assert all(np.isfinite(value) for value in result.values()), result
    assert metrics.top_k_accuracy(LOG_PROBS, labels) == np.mean(LOGITS.argmax(-1) == label)
    assert result["nll"] == pytest.approx(log_loss(labels, PROBS, labels=np.arange(8)))


def test_a_single_class_is_certain():
    result = evaluate(RNG.normal(size=(6, 1)), np.zeros(6, int))
    assert result.pop("temperature") == 1
    assert result == dict.fromkeys(result, 0)
    assert metrics.top_k_accuracy(np.zeros((6, 1)), np.zeros(6, int)) == 1


def test_constant_logits():
    logits, labels = np.full((20, 5), 3.3), np.array([0] * 7 + [1] * 3 + [2] * 5 + [3] * 5)
    assert metrics.top_k_accuracy(metrics.log_softmax(logits), labels) == 0.35
    expected = dict.fromkeys(("ece", "ece_equal_mass", "mce", "mce_equal_mass"), 0.15) | {
        "nll": np.log(5),
        "brier": 0.8,
        "classwise": (0.15 + 0.05 + 0.05 + 0.05 + 0.2) / 5,
        "aurc": 0.65,
        "temperature": 1,
    }
    assert evaluate(logits, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((4, 3), np.zeros((4, 1), int), r"\(4, 3\) and \(4, 1\)"),
        ((4, 3), np.zeros(5, int), r"\(4, 3\) and \(5,\)"),
        ((4,), np.zeros(4, int), r"\(4,\) and \(4,\)"),
        ((4, 3), np.array([0, 1, 2, 3]), r"in \[0, 3\), got int64 in \[0, 3\]"),
        ((4, 3), np.array([0, 1, 2, -1]), r"got int64 in \[-1, 2\]"),
        ((4, 3), np.zeros(4), "integers .* got float64"),
    ],
)
def test_other_shapes_and_labels_raise(shape, labels, message):
    for metric in [*METRICS.values(), metrics.top_k_accuracy, metrics.risk_coverage]:
        with pytest.raises(ValueError, match=message):
            metric(np.zeros(shape), labels)


def test_importing_the_metrics_imports_neither_scikit_learn_nor_scipy():
    folder = str(pathlib.Path(metrics.__file__).parents[1])
    # stand-ins for the parent packages, which import more
    script = f"""
import sys, types
for name, path in (("sdd_jax", {folder + "/.."!r}), ("sdd_jax.evaluation", {folder!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from sdd_jax.evaluation import metrics
print(metrics.log_softmax([[0.0]]), sorted({{"jax", "numpy", "scipy", "sklearn"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[[0.]] ['numpy']"
