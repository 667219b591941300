"""Calibration against loops by hand, scikit-learn, enumeration of orders, and closed forms."""

import itertools

import numpy as np
import pytest
import scipy.optimize
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from sdd_jax.evaluation import metrics

pytestmark = pytest.mark.filterwarnings("error")

RNG = np.random.default_rng(1)
LOGITS = 2 * RNG.normal(size=(500, 6))
LABELS = np.where(RNG.random(500) < 0.5, LOGITS.argmax(-1), RNG.integers(0, 6, 500))
LOG_PROBS = metrics.log_softmax(LOGITS)
PROBS = np.exp(LOG_PROBS)
CONFIDENCE = PROBS.max(-1)
CORRECT = PROBS.argmax(-1) == LABELS


def two_classes(confidences, correct):
    """Log-probabilities and labels of examples of these confidences above 0.5, right or wrong."""
    confidences, correct = np.asarray(confidences, float), np.asarray(correct)
    log_probs = np.log(np.stack([confidences, 1 - confidences], -1))
    return log_probs, np.where(correct, 0, 1)


def equal_width_groups(values, num_bins):
    """Indices of the examples in each bin, example by example."""
    groups = [[] for _ in range(num_bins)]
    for i, value in enumerate(values):
        for b in range(num_bins):
            if b / num_bins < value <= (b + 1) / num_bins or (b == 0 and value == 0):
                groups[b].append(i)
    return groups


def groups_of(equal_mass, num_bins):
    if equal_mass:
        return np.array_split(np.argsort(CONFIDENCE), num_bins)
    return equal_width_groups(CONFIDENCE, num_bins)


@pytest.mark.parametrize("equal_mass", [False, True])
@pytest.mark.parametrize("num_bins", [1, 7, 15, 600])
def test_bins_and_both_errors_by_hand(equal_mass, num_bins):
    groups = groups_of(equal_mass, num_bins)
    options = {"num_bins": num_bins, "equal_mass": equal_mass}
    bins = metrics.reliability(LOG_PROBS, LABELS, **options)
    gaps = []
    for b, group in enumerate(groups):
        assert bins.count[b] == len(group)
        if len(group) == 0:
            assert np.isnan(bins.confidence[b])
            assert np.isnan(bins.accuracy[b])
            continue
        confidence = sum(CONFIDENCE[i] for i in group) / len(group)
        accuracy = sum(bool(CORRECT[i]) for i in group) / len(group)
        assert bins.confidence[b] == pytest.approx(confidence)
        assert bins.accuracy[b] == pytest.approx(accuracy)
        gaps.append((len(group) / 500, abs(accuracy - confidence)))
    expected = sum(share * gap for share, gap in gaps)
    assert expected > 0.01
    result = metrics.expected_calibration_error(LOG_PROBS, LABELS, **options)
    assert result == pytest.approx(expected, abs=1e-12)
    result = metrics.maximum_calibration_error(LOG_PROBS, LABELS, **options)
    assert result == pytest.approx(max(gap for _, gap in gaps), abs=1e-12)


def test_bins_of_equal_width_are_scikit_learns():
    accuracy, confidence = calibration_curve(CORRECT, CONFIDENCE, n_bins=15)
    bins = metrics.reliability(LOG_PROBS, LABELS)
    filled = bins.count > 0
    assert not filled.all()
    np.testing.assert_allclose(bins.confidence[filled], confidence)
    np.testing.assert_allclose(bins.accuracy[filled], accuracy)


def test_a_bin_of_equal_width_holds_its_upper_edge():
    log_probs = np.log([[0.5, 0.5], [0.75, 0.25], [1 / 1024, 1023 / 1024]])
    bins = metrics.reliability(log_probs, np.array([0, 0, 0]), num_bins=4)
    np.testing.assert_array_equal(bins.count, [0, 1, 1, 1])
    np.testing.assert_array_equal(bins.accuracy, [np.nan, 1, 1, 0])


@pytest.mark.parametrize("num_examples", [1, 3, 14, 15, 16, 44, 500])
def test_bins_of_equal_mass_are_in_order_and_differ_by_one_example_at_most(num_examples):
    bins = metrics.reliability(LOG_PROBS[:num_examples], LABELS[:num_examples], equal_mass=True)
    assert bins.count.sum() == num_examples
    assert bins.count.max() - bins.count.min() <= 1
    filled = bins.count > 0
    assert filled.sum() == min(num_examples, 15)
    assert (np.diff(bins.confidence[filled]) > 0).all()


def test_errors_of_five_examples():
    # bins (0.5, 0.6], (0.7, 0.8], (0.9, 1]: gaps 0.55 - 0.5, 0.75 - 0, 1 - 0.95
    log_probs, labels = two_classes(
        [0.54, 0.56, 0.75, 0.94, 0.96], [True, False, False, True, True]
    )
    result = metrics.expected_calibration_error(log_probs, labels, num_bins=10)
    assert result == pytest.approx((2 * 0.05 + 1 * 0.75 + 2 * 0.05) / 5)
    result = metrics.maximum_calibration_error(log_probs, labels, num_bins=10)
    assert result == pytest.approx(0.75)


@pytest.mark.parametrize("equal_mass", [False, True])
@pytest.mark.parametrize("num_bins", [2, 4, 8])
def test_perfect_calibration_has_no_error(equal_mass, num_bins):
    confidences = np.repeat([0.625, 0.75, 0.875, 0.9375], 16)
    correct = np.concatenate([np.arange(16) < right for right in (10, 12, 14, 15)])
    log_probs, labels = two_classes(confidences, correct)
    for error in (metrics.expected_calibration_error, metrics.maximum_calibration_error):
        value = error(log_probs, labels, num_bins=num_bins, equal_mass=equal_mass)
        assert value == pytest.approx(0, abs=1e-15)
    value = metrics.classwise_calibration_error(log_probs, labels, num_bins=num_bins)
    assert value == pytest.approx(0, abs=1e-15)


def test_equal_confidences_count_as_a_random_order_does_on_average():
    confidences = np.array([0.6, 0.7, 0.7, 0.7, 0.7, 0.9])
    correct = np.array([False, True, False, False, True, True])
    log_probs, labels = two_classes(confidences, correct)
    bins = metrics.reliability(log_probs, labels, num_bins=4, equal_mass=True)
    orders = [
        order
        for order in map(list, itertools.permutations(range(6)))
        if (np.diff(confidences[order]) >= 0).all()
    ]
    assert len(orders) == 24
    accuracies = [[p.mean() for p in np.array_split(correct[order], 4)] for order in orders]
    assert np.ptp(accuracies, axis=0).max() == 1  # any one order would say something else
    np.testing.assert_allclose(bins.accuracy, np.mean(accuracies, axis=0))
    np.testing.assert_allclose(bins.confidence, [0.65, 0.7, 0.7, 0.9])
    np.testing.assert_array_equal(bins.count, [2, 2, 1, 1])


@pytest.mark.parametrize("equal_mass", [False, True])
def test_the_order_of_examples_does_not_matter(equal_mass):
    logits = np.round(LOGITS / 3)  # many are equal
    log_probs = metrics.log_softmax(logits)
    assert len(np.unique(log_probs.max(-1))) < 100
    expected = metrics.reliability(log_probs, LABELS, equal_mass=equal_mass)
    classwise = metrics.classwise_calibration_error(log_probs, LABELS)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(500)
        bins = metrics.reliability(log_probs[order], LABELS[order], equal_mass=equal_mass)
        np.testing.assert_array_equal(bins.count, expected.count)
        np.testing.assert_allclose(bins.accuracy, expected.accuracy, rtol=1e-12)
        np.testing.assert_allclose(bins.confidence, expected.confidence, rtol=1e-12)
        result = metrics.classwise_calibration_error(log_probs[order], LABELS[order])
        assert result == pytest.approx(classwise, rel=1e-12)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_classwise_error_by_hand(num_bins):
    expected = 0.0
    for k in range(6):
        for group in equal_width_groups(PROBS[:, k], num_bins):
            if group:
                frequency = sum(LABELS[i] == k for i in group) / len(group)
                probability = sum(PROBS[i, k] for i in group) / len(group)
                expected += len(group) / 500 * abs(frequency - probability) / 6
    result = metrics.classwise_calibration_error(LOG_PROBS, LABELS, num_bins=num_bins)
    assert result == pytest.approx(expected, abs=1e-12)
    assert result > 0.01


def test_undefined_and_absent_examples_leave_bins_of_nan_and_empty_ones():
    undefined = metrics.reliability(metrics.log_softmax([[0, 1], [np.nan, 0]]), np.array([0, 1]))
    for field in (undefined.count, undefined.confidence, undefined.accuracy):
        np.testing.assert_array_equal(field, np.full(15, np.nan))
    for equal_mass in (False, True):
        empty = metrics.reliability(np.zeros((0, 2)), np.zeros(0, int), equal_mass=equal_mass)
        np.testing.assert_array_equal(empty.count, np.zeros(15))
        np.testing.assert_array_equal(empty.confidence, np.full(15, np.nan))
        np.testing.assert_array_equal(empty.accuracy, np.full(15, np.nan))


@pytest.mark.parametrize(
    "figure",
    [
        metrics.reliability,
        metrics.expected_calibration_error,
        metrics.maximum_calibration_error,
        metrics.classwise_calibration_error,
    ],
)
def test_bins_there_must_be(figure):
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        figure(LOG_PROBS, LABELS, num_bins=0)


def nll_at(temperature):
    return log_loss(LABELS, np.exp(metrics.log_softmax(LOGITS / temperature)), labels=np.arange(6))


def test_the_fitted_temperature_minimises_scikit_learns_log_loss():
    result = scipy.optimize.minimize_scalar(nll_at, bounds=(0.01, 100), method="bounded")
    fitted = metrics.fit_temperature(LOGITS, LABELS)
    assert fitted == pytest.approx(result.x, rel=1e-4)
    assert 1.2 < fitted < 10
    assert nll_at(fitted) <= min(nll_at(0.999 * fitted), nll_at(1.001 * fitted), result.fun + 1e-12)


@pytest.mark.parametrize("temperature", [0.02, 0.5, 1, 3, 60])
def test_the_temperature_of_labels_drawn_from_a_softened_posterior_is_recovered(temperature):
    # every label as often as the softened posterior, in sixteenths, says
    sixteenths = np.array([[10, 4, 2], [1, 12, 3], [6, 5, 5], [1, 1, 14]])
    logits = temperature * np.log(sixteenths) + np.array([[0], [3], [-8], [1e3]])
    labels = np.concatenate([np.repeat(np.arange(3), row) for row in sixteenths])
    fitted = metrics.fit_temperature(np.repeat(logits, 16, axis=0), labels)
    assert fitted == pytest.approx(temperature, rel=1e-8)


def test_the_temperature_scales_with_the_logits():
    fitted = metrics.fit_temperature(LOGITS, LABELS)
    assert metrics.fit_temperature(7 * LOGITS, LABELS) == pytest.approx(7 * fitted)
    assert metrics.fit_temperature(1000 * LOGITS, LABELS) == 100
    assert metrics.fit_temperature(LOGITS / 1000, LABELS) == 0.01


def test_the_temperature_is_a_bound_where_the_likelihood_has_no_maximum():
    assert metrics.fit_temperature(LOGITS, LOGITS.argmax(-1)) == 0.01
    assert metrics.fit_temperature(LOGITS, LOGITS.argmin(-1)) == 100


def test_excluded_classes_do_not_change_the_temperature():
    excluded = np.concatenate([LOGITS, np.full((500, 2), -np.inf)], axis=1)
    fitted = metrics.fit_temperature(LOGITS, LABELS)
    assert metrics.fit_temperature(excluded, LABELS) == pytest.approx(fitted, rel=1e-9)
