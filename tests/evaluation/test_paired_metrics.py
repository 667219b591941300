"""Contributions of images to metrics, and intervals of paired differences."""

import numpy as np
import pytest
import scipy.stats

from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.metrics import paired

NAMES = {
    "accuracy": metrics.top_k_accuracy,
    "nll": metrics.negative_log_likelihood,
    "brier": metrics.brier_score,
    "ece": metrics.expected_calibration_error,
    "aurc": metrics.area_under_risk_coverage,
}


def networks(num_images=600, num_classes=5, seed=0):
    """Labels, and the log-probabilities of two networks that err on similar images."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_images)
    signal = np.eye(num_classes)[labels] * 1.5 + rng.normal(size=(num_images, num_classes))
    first, other = (
        metrics.log_softmax(scale * (signal + rng.normal(0, 0.4, signal.shape)))
        for scale in (1.4, 2.2)
    )
    return labels, first, other


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_the_contributions_is_the_metric(name):
    labels, log_probs, _ = networks()
    log_probs = np.round(log_probs, 1)  # with ties
    values = metrics.contributions(log_probs, labels, name)[name]
    assert values.shape == labels.shape
    np.testing.assert_allclose(values.mean(), NAMES[name](log_probs, labels), rtol=1e-12)


def test_the_means_of_the_contributions_to_auroc_are_the_auroc_on_both_sides():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 30, 200) + 3.0, rng.integers(0, 30, 300)
    expected = metrics.detection(*scores)["auroc"]
    for values, side in zip(metrics.auroc_contributions(*scores), scores, strict=True):
        assert values.shape == side.shape
        np.testing.assert_allclose(values.mean(), expected, rtol=1e-12)


def bootstrap_error(difference, *sizes):
    """Standard error over 1,000 resamples of the images."""
    rng = np.random.default_rng(1)
    resamples = ([rng.integers(size, size=size) for size in sizes] for _ in range(1000))
    return np.std([difference(*indices) for indices in resamples], ddof=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_interval_agrees_with_a_paired_bootstrap(name):
    labels, *predictions = networks()
    groups = [[metrics.contributions(p, labels, name)[name]] for p in predictions]
    low, high = metrics.paired_interval(*groups)
    first, other = (NAMES[name](p, labels) for p in predictions)
    ((of_first,), (of_other,)) = groups
    np.testing.assert_allclose(
        of_other.mean() - of_first.mean(), other - first, rtol=0.01, atol=1e-4
    )
    assert (low + high) / 2 == pytest.approx(other - first, abs=(high - low) / 20)

    def difference(index):
        a, b = (NAMES[name](p[index], labels[index]) for p in predictions)
        return b - a

    error = bootstrap_error(difference, len(labels))
    np.testing.assert_allclose((high - low) / (2 * 1.96), error, rtol=0.12)


def test_the_interval_of_auroc_agrees_with_a_paired_bootstrap():
    rng = np.random.default_rng(0)
    shared = rng.normal(0.8, 1, 300), rng.normal(0, 1, 200)
    first, other = ([x + rng.normal(0, s, len(x)) for x in shared] for s in (0.3, 0.6))
    low, high = metrics.paired_interval(*(metrics.auroc_contributions(*s) for s in (first, other)))

    def difference(i, j):
        a, b = (metrics.detection(x[i], y[j])["auroc"] for x, y in (first, other))
        return b - a

    assert low < difference(np.arange(300), np.arange(200)) < high
    error = bootstrap_error(difference, 300, 200)
    np.testing.assert_allclose((high - low) / (2 * 1.96), error, rtol=0.12)


def test_a_few_images_of_360_are_no_evidence_and_many_are():
    """Against the exact test of McNemar, by which six differing images are significant and five not."""
    right = np.arange(360) < 340
    found = {}
    for more in (1, 2, 4, 6, 10):
        low, high = metrics.paired_interval([right], [np.arange(360) < 340 + more])
        found[more] = low > 0
        assert low < more / 360 < high
    assert found == {1: False, 2: False, 4: False, 6: True, 10: True}


def test_intervals_cover_the_true_difference_19_times_in_20():
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(2000):
        shared = rng.random(400)
        first, other = (shared + rng.normal(0, 0.1, 400) < p for p in (0.9, 0.9))
        low, high = metrics.paired_interval([first], [other])
        covered.append(low <= 0 <= high)
    assert 0.94 < np.mean(covered) < 0.97


@pytest.mark.parametrize("name", NAMES)
def test_the_interval_of_a_metric_agrees_with_a_bootstrap_of_the_predictions(name):
    labels, log_probs, _ = networks()
    low, high = metrics.bootstrap_interval([metrics.contributions(log_probs, labels, name)[name]])
    assert low < NAMES[name](log_probs, labels) < high
    rng, resampled = np.random.default_rng(1), []
    for _ in range(500):
        index = rng.integers(600, size=600)
        resampled.append(NAMES[name](log_probs[index], labels[index]))
    error = np.std(resampled, ddof=1)
    # the ECE has no derivative where a bin is calibrated, so its interval is wider
    rtol = 0.25 if name == "ece" else 0.12
    np.testing.assert_allclose((high - low) / (2 * 1.96), error, rtol=rtol)


def test_percentiles_follow_the_skewness_of_the_contributions():
    """Against SciPy's percentile bootstrap, of few and skewed values."""
    values = np.random.default_rng(0).exponential(size=30)
    low, high = metrics.bootstrap_interval([values])
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose((low, high), expected, rtol=0.03)
    assert high - values.mean() > values.mean() - low


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
def test_intervals_of_an_accuracy_cover_it_19_times_in_20(rate):
    """By the exact distribution of the number of correct images."""
    count = 200
    correct = np.arange(count + 1)
    covers = []
    for k in correct:
        low, high = metrics.bootstrap_interval([np.arange(count) < k])
        assert low <= k / count <= high
        covers.append(low <= rate <= high)
    coverage = np.sum(scipy.stats.binom.pmf(correct, count, rate)[covers])
    assert 0.93 < coverage < 0.985


def test_the_same_images_are_drawn_in_any_order_of_calls_and_in_any_number_of_chunks(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = metrics.bootstrap_interval([values, values[:20]])
    assert metrics.bootstrap_interval([values, values[:20]]) == whole
    monkeypatch.setattr(paired, "CHUNK", 130)
    np.testing.assert_allclose(metrics.bootstrap_interval([values, values[:20]]), whole)


def test_there_is_no_interval_without_the_same_images_or_with_values_that_are_not_finite():
    ones, nan = np.ones(4), np.array([0.0, np.nan, 1.0, 0.5])
    assert metrics.paired_interval([ones], [np.ones(5)]) is None
    assert metrics.paired_interval([ones], [ones, ones]) is None
    assert metrics.paired_interval([ones[:1]], [ones[:1]]) is None
    assert metrics.paired_interval([], []) is None
    assert metrics.bootstrap_interval([]) is None
    assert metrics.bootstrap_interval([ones, nan]) is None
    assert metrics.bootstrap_interval([ones, ones[:1]]) is None
    assert metrics.paired_interval([ones], [nan]) is None
    labels, log_probs, _ = networks(num_images=20)
    log_probs[3] = np.nan
    for name, values in metrics.contributions(log_probs, labels, *NAMES).items():
        assert np.isnan(values).any() == (name != "accuracy")
    assert [len(x) for x in metrics.auroc_contributions([1.0, np.nan], [0.0])] == [0, 0]


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="names must be among accuracy, .*got 'mce'"):
        metrics.contributions(np.log([[0.5, 0.5]]), [0], "mce")
