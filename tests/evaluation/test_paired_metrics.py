"""Contributions of images to metrics, and intervals of paired differences."""

import numpy as np
import pytest

from sdd_jax.evaluation import metrics

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
    np.testing.assert_allclose((low + high) / 2, other - first, rtol=0.01, atol=1e-4)

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


def test_there_is_no_interval_without_the_same_images_or_with_values_that_are_not_finite():
    ones, nan = np.ones(4), np.array([0.0, np.nan, 1.0, 0.5])
    assert metrics.paired_interval([ones], [np.ones(5)]) is None
    assert metrics.paired_interval([ones], [ones, ones]) is None
    assert metrics.paired_interval([ones[:1]], [ones[:1]]) is None
    assert metrics.paired_interval([], []) is None
    assert metrics.paired_interval([ones], [nan]) is None
    labels, log_probs, _ = networks(num_images=20)
    log_probs[3] = np.nan
    for name, values in metrics.contributions(log_probs, labels, *NAMES).items():
        assert np.isnan(values).any() == (name != "accuracy")
    assert [len(x) for x in metrics.auroc_contributions([1.0, np.nan], [0.0])] == [0, 0]


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="names must be among accuracy, .*got 'mce'"):
        metrics.contributions(np.log([[0.5, 0.5]]), [0], "mce")
