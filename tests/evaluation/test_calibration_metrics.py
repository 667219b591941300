"""Calibration against loops by hand, scikit-learn, enumeration of orders, and closed forms."""

import itertools

import numpy as np
import pytest
import scipy.optimize
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from sdd_jax.evaluation import metrics

RNG = np.random.default_rng(1)
LOGITS = 2 * RNG.normal(size=(500, 6))
LABELS = np.where(RNG.random(500) < 0.5, LOGITS.argmax(-1), RNG.integers(0, 6, 500))
LOG_PROBS = metrics.log_softmax(LOGITS)
PROBS = np.exp(LOG_PROBS)
CONFIDENCE = PROBS.max(-1)
CORRECT = PROBS.argmax(-1) == LABELS

equal_width_and_mass = pytest.mark.parametrize("equal_mass", [False, True])


def two_classes(confidences, correct):
    """Log-probabilities and labels of examples with these confidences above 0.5, right or wrong."""
    confidences = np.asarray(confidences, float)
    return np.log(np.stack([confidences, 1 - confidences], -1)), np.where(correct, 0, 1)


def equal_width_groups(values, num_bins):
    """Indices of the examples in each bin, example by example."""
    groups = [[] for _ in range(num_bins)]
    for i, value in enumerate(values):
        for b in range(num_bins):
            if b / num_bins < value <= (b + 1) / num_bins or (b == 0 and value == 0):
                groups[b].append(i)
    return groups


@equal_width_and_mass
@pytest.mark.parametrize("num_bins", [1, 7, 15, 600])
def test_bins_and_both_errors_by_hand(equal_mass, num_bins):
    if equal_mass:
        groups = np.array_split(np.argsort(CONFIDENCE), num_bins)
    else:
        groups = equal_width_groups(CONFIDENCE, num_bins)
    count = np.array([len(group) for group in groups])
    confidence, accuracy = (
        np.array([sum(values[i] for i in g) / len(g) if len(g) else np.nan for g in groups])
        for values in (CONFIDENCE, CORRECT.astype(float))
    )
    gaps = abs(accuracy - confidence)[count > 0]
    expected = sum(count[count > 0] / 500 * gaps)
    assert expected > 0.01

    options = {"num_bins": num_bins, "equal_mass": equal_mass}
    bins = metrics.reliability(LOG_PROBS, LABELS, **options)
    np.testing.assert_array_equal(bins.count, count)
    np.testing.assert_allclose(bins.confidence, confidence)
    np.testing.assert_allclose(bins.accuracy, accuracy)
    error = metrics.expected_calibration_error(LOG_PROBS, LABELS, **options)
    assert error == pytest.approx(expected, abs=1e-12)
    error = metrics.maximum_calibration_error(LOG_PROBS, LABELS, **options)
    assert error == pytest.approx(max(gaps), abs=1e-12)


def test_bins_of_equal_width_are_scikit_learns():
    accuracy, confidence = calibration_curve(CORRECT, CONFIDENCE, n_bins=15)
    bins = metrics.reliability(LOG_PROBS, LABELS)
    filled = bins.count > 0
    assert not filled.all()
    np.testing.assert_allclose(bins.confidence[filled], confidence)
    np.testing.assert_allclose(bins.accuracy[filled], accuracy)


def test_bins_of_equal_width_include_their_upper_edge_exactly():
    # all fractions with denominators up to 100, in bins computed in integers
    numerator, denominator = np.array([(k, n) for n in range(1, 101) for k in range(1, n + 1)]).T
    log_probs = np.full((len(numerator), 2), -np.inf)
    log_probs[:, 0] = np.log(numerator / denominator)
    labels = np.zeros(len(numerator), int)
    for num_bins in range(1, 101):
        index = -(-numerator * num_bins // denominator) - 1  # ceil(k / n * num_bins) - 1
        bins = metrics.reliability(log_probs, labels, num_bins=num_bins)
        np.testing.assert_array_equal(bins.count, np.bincount(index, minlength=num_bins))


@pytest.mark.parametrize("num_examples", [1, 3, 14, 15, 16, 44, 500])
def test_bins_of_equal_mass_are_sorted_and_differ_by_one_example_at_most(num_examples):
    bins = metrics.reliability(LOG_PROBS[:num_examples], LABELS[:num_examples], equal_mass=True)
    assert bins.count.sum() == num_examples
    assert bins.count.max() - bins.count.min() <= 1
    filled = bins.count > 0
    assert filled.sum() == min(num_examples, 15)
    assert (np.diff(bins.confidence[filled]) > 0).all()


def test_errors_of_five_examples():
    # bins (0.5, 0.6], (0.7, 0.8], (0.9, 1]: gaps 0.55 - 0.5, 0.75 - 0, 1 - 0.95
    examples = two_classes([0.54, 0.56, 0.75, 0.94, 0.96], [True, False, False, True, True])
    expected = (2 * 0.05 + 1 * 0.75 + 2 * 0.05) / 5
    assert metrics.expected_calibration_error(*examples, num_bins=10) == pytest.approx(expected)
    assert metrics.maximum_calibration_error(*examples, num_bins=10) == pytest.approx(0.75)


@equal_width_and_mass
@pytest.mark.parametrize("num_bins", [2, 4, 8])
def test_perfect_calibration_has_no_error(equal_mass, num_bins):
    confidences = np.repeat([0.625, 0.75, 0.875, 0.9375], 16)
    correct = np.concatenate([np.arange(16) < right for right in (10, 12, 14, 15)])
    examples = two_classes(confidences, correct)
    options = {"num_bins": num_bins, "equal_mass": equal_mass}
    errors = [
        metrics.expected_calibration_error(*examples, **options),
        metrics.maximum_calibration_error(*examples, **options),
        metrics.classwise_calibration_error(*examples, num_bins=num_bins),
    ]
    assert errors == pytest.approx([0, 0, 0], abs=1e-15)


def test_equal_confidences_have_the_mean_accuracy_over_all_orders():
    confidences = np.array([0.6, 0.7, 0.7, 0.7, 0.7, 0.9])
    correct = np.array([False, True, False, False, True, True])
    orders = [[0, *middle, 5] for middle in itertools.permutations(range(1, 5))]
    accuracies = [[p.mean() for p in np.array_split(correct[order], 4)] for order in orders]
    assert np.ptp(accuracies, axis=0).max() == 1  # a single order differs
    bins = metrics.reliability(*two_classes(confidences, correct), num_bins=4, equal_mass=True)
    np.testing.assert_allclose(bins.accuracy, np.mean(accuracies, axis=0))
    np.testing.assert_allclose(bins.confidence, [0.65, 0.7, 0.7, 0.9])
    np.testing.assert_array_equal(bins.count, [2, 2, 1, 1])


@equal_width_and_mass
def test_the_order_of_examples_does_not_matter(equal_mass):
    log_probs = metrics.log_softmax(np.round(LOGITS / 3))
    assert len(np.unique(log_probs.max(-1))) < 100
    expected = metrics.reliability(log_probs, LABELS, equal_mass=equal_mass)
    classwise = metrics.classwise_calibration_error(log_probs, LABELS)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(500)
        bins = metrics.reliability(log_probs[order], LABELS[order], equal_mass=equal_mass)
        np.testing.assert_array_equal(bins.count, expected.count)
        np.testing.assert_allclose(bins.accuracy, expected.accuracy, rtol=1e-12)
        np.testing.assert_allclose(bins.confidence, expected.confidence, rtol=1e-12)
        error = metrics.classwise_calibration_error(log_probs[order], LABELS[order])
        assert error == pytest.approx(classwise, rel=1e-12)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_classwise_error_by_hand(num_bins):
    expected = 0.0
    for k in range(6):
        for group in equal_width_groups(PROBS[:, k], num_bins):
            if group:
                frequency = sum(LABELS[i] == k for i in group) / len(group)
                probability = sum(PROBS[i, k] for i in group) / len(group)
                expected += len(group) / 500 * abs(frequency - probability) / 6
    error = metrics.classwise_calibration_error(LOG_PROBS, LABELS, num_bins=num_bins)
    assert error == pytest.approx(expected, abs=1e-12)
    assert error > 0.01


@equal_width_and_mass
def test_bins_are_nan_with_an_undefined_example_and_empty_without_examples(equal_mass):
    undefined = metrics.log_softmax([[0, 1], [np.nan, 0]]), np.array([0, 1])
    absent = np.zeros((0, 2)), np.zeros(0, int)
    for examples, count in ((undefined, np.nan), (absent, 0)):
        bins = metrics.reliability(*examples, equal_mass=equal_mass)
        np.testing.assert_array_equal(bins.count, np.full(15, count))
        np.testing.assert_array_equal(bins.confidence, np.full(15, np.nan))
        np.testing.assert_array_equal(bins.accuracy, np.full(15, np.nan))


@pytest.mark.parametrize(
    "metric",
    [
        metrics.reliability,
        metrics.expected_calibration_error,
        metrics.maximum_calibration_error,
        metrics.classwise_calibration_error,
    ],
)
def test_the_number_of_bins_must_be_positive(metric):
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        metric(LOG_PROBS, LABELS, num_bins=0)


def test_the_fitted_temperature_minimises_scikit_learns_log_loss():
    def nll(temperature):
        probs = np.exp(metrics.log_softmax(LOGITS / temperature))
        return log_loss(LABELS, probs, labels=np.arange(6))

    expected = scipy.optimize.fminbound(nll, 0.01, 100)
    fitted = metrics.fit_temperature(LOGITS, LABELS)
    assert fitted == pytest.approx(expected, rel=1e-4)
    assert 1.2 < fitted < 10
    assert nll(fitted) <= min(nll(0.999 * fitted), nll(1.001 * fitted), nll(expected) + 1e-12)


@pytest.mark.parametrize("temperature", [0.02, 0.5, 1, 3, 60])
def test_the_temperature_of_labels_drawn_from_a_softened_posterior_is_recovered(temperature):
    # each label as often as the softened posterior says, in sixteenths
    sixteenths = np.array([[10, 4, 2], [1, 12, 3], [6, 5, 5], [1, 1, 14]])
    logits = temperature * np.log(sixteenths) + np.array([[0], [3], [-8], [1e3]])
    labels = np.concatenate([np.repeat(np.arange(3), row) for row in sixteenths])
    fitted = metrics.fit_temperature(np.repeat(logits, 16, axis=0), labels)
    assert fitted == pytest.approx(temperature, rel=1e-8)


def test_the_temperature_scales_with_the_logits_and_ignores_excluded_classes():
    fitted = metrics.fit_temperature(LOGITS, LABELS)
    assert metrics.fit_temperature(7 * LOGITS, LABELS) == pytest.approx(7 * fitted)
    excluded = np.concatenate([LOGITS, np.full((500, 2), -np.inf)], axis=1)
    assert metrics.fit_temperature(excluded, LABELS) == pytest.approx(fitted, rel=1e-9)


@pytest.mark.parametrize(
    ("logits", "labels", "bound"),
    [
        (LOGITS, LOGITS.argmax(-1), 0.01),  # the likelihood has no maximum
        (LOGITS, LOGITS.argmin(-1), 100),
        (LOGITS / 1000, LABELS, 0.01),  # the maximum is out of bounds
        (LOGITS * 1000, LABELS, 100),
    ],
)
def test_the_temperature_is_bounded(logits, labels, bound):
    assert metrics.fit_temperature(logits, labels) == bound
