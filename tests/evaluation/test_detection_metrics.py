"""Detection against scikit-learn, against counting pairs and thresholds by hand, and at its limits."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from sdd_jax.evaluation import metrics

pytestmark = pytest.mark.filterwarnings("error")

RNG = np.random.default_rng(0)
SCORES = {
    "continuous": (RNG.normal(1, 1, 130), RNG.normal(0, 1, 70)),
    "with_ties": (RNG.integers(2, 9, 130), RNG.integers(0, 7, 70)),
    "worse_than_chance": (RNG.normal(0, 1, 40), RNG.normal(1, 2, 90)),
    "one_each": ([0.3], [0.1]),
}
each = pytest.mark.parametrize(("inside", "outside"), SCORES.values(), ids=SCORES)


def average_precision(positive, negative):
    """Sum over thresholds, from high to low, of precision times the rise in recall."""
    area, recall = 0.0, 0.0
    for threshold in sorted({*positive, *negative}, reverse=True):
        hits = sum(score >= threshold for score in positive)
        alarms = sum(score >= threshold for score in negative)
        area += hits / (hits + alarms) * (hits / len(positive) - recall)
        recall = hits / len(positive)
    return area


def smallest_share_accepted(inside, outside):
    """Of ``outside``, over all thresholds that accept at least 95 of 100 ``inside``."""
    shares = []
    for threshold in (*inside, *outside):
        if 100 * sum(score >= threshold for score in inside) >= 95 * len(inside):
            shares.append(sum(score >= threshold for score in outside) / len(outside))
    return min(shares)


@each
def test_areas_are_scikit_learns(inside, outside):
    found = metrics.detection(inside, outside)
    assert list(found) == ["auroc", "aupr_in", "aupr_out", "fpr95"]
    assert {type(value) for value in found.values()} == {float}
    is_in = np.repeat([1, 0], [len(inside), len(outside)])
    scores = np.concatenate([inside, outside])
    assert found["auroc"] == pytest.approx(roc_auc_score(is_in, scores))
    assert found["aupr_in"] == pytest.approx(average_precision_score(is_in, scores))
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - is_in, -scores))
    fpr, tpr, _ = roc_curve(is_in, scores, drop_intermediate=False)
    np.testing.assert_allclose(metrics.roc(inside, outside), [fpr, tpr])


@each
def test_areas_and_fpr95_by_hand(inside, outside):
    found = metrics.detection(inside, outside)
    wins = [(i > o) + (i == o) / 2 for i in inside for o in outside]
    negated = [-score for score in outside], [-score for score in inside]
    expected = {
        "auroc": sum(wins) / len(wins),
        "aupr_in": average_precision(inside, outside),
        "aupr_out": average_precision(*negated),
        "fpr95": smallest_share_accepted(inside, outside),
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("num_inside", "rejected"), [(19, 0), (20, 1), (21, 1), (39, 1), (40, 2), (60, 3), (100, 5)]
)
def test_fpr95_accepts_at_least_95_percent_and_no_more_than_it_must(num_inside, rejected):
    threshold = rejected  # the lowest accepted score
    outside = np.array(
        [threshold - 0.5, threshold - 0.5, threshold - 0.5, threshold, threshold + 0.5]
    )
    assert metrics.detection(np.arange(num_inside), outside)["fpr95"] == 0.4


def test_fpr95_can_lie_between_the_corners_of_the_roc_curve():
    # each threshold accepts one more of both, so that the curve is one straight line
    scores = np.arange(100)
    assert metrics.detection(scores, scores)["fpr95"] == 0.95


@each
def test_only_the_order_of_scores_matters(inside, outside):
    inside, outside = np.asarray(inside, float), np.asarray(outside, float)
    found = metrics.detection(inside, outside)
    assert metrics.detection(np.exp(inside / 3) - 7, np.exp(outside / 3) - 7) == found
    assert metrics.detection(inside[::-1], RNG.permutation(outside)) == found
    tiny = metrics.detection(inside * 1e-300, outside * 1e-300)
    assert tiny == found


def test_infinite_scores_are_the_highest_and_lowest():
    inside, outside = np.array([3.0, np.inf, -1.0, np.inf]), np.array([-np.inf, 0.0, np.inf])
    finite = [np.clip(scores, -10, 10) for scores in (inside, outside)]
    assert metrics.detection(inside, outside) == metrics.detection(*finite)
    np.testing.assert_array_equal(metrics.roc(inside, outside), metrics.roc(*finite))


def test_perfect_separation_and_its_reverse():
    low, high = np.arange(30.0), np.arange(30.0, 50.0)
    perfect = {"auroc": 1, "aupr_in": 1, "aupr_out": 1, "fpr95": 0}
    assert metrics.detection(high, low) == pytest.approx(perfect)
    reverse = metrics.detection(low, high)
    assert reverse["auroc"] == 0
    assert reverse["fpr95"] == 1
    assert reverse["aupr_in"] == pytest.approx(np.mean([i / (20 + i) for i in range(1, 31)]))


def test_equal_scores_are_chance():
    found = metrics.detection(np.full(30, 1.5), np.full(10, 1.5))
    assert found == {"auroc": 0.5, "aupr_in": 0.75, "aupr_out": 0.25, "fpr95": 1}
    np.testing.assert_array_equal(metrics.roc(np.full(30, 1.5), np.full(10, 1.5)), [[0, 1], [0, 1]])


def test_the_roc_curve_has_a_point_for_each_score():
    fpr, tpr = metrics.roc([3, 2, 2, 0], [2, 1])
    np.testing.assert_array_equal(fpr, [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(tpr, [0, 0.25, 0.75, 0.75, 1])


@pytest.mark.parametrize(
    ("inside", "outside"),
    [([], [1.0]), ([1.0], []), ([], []), ([1.0, np.nan], [0.0]), ([1.0], [np.nan, np.inf])],
)
def test_an_empty_side_or_a_score_of_nan_makes_everything_nan(inside, outside):
    found = metrics.detection(np.array(inside), np.array(outside))
    assert list(found) == ["auroc", "aupr_in", "aupr_out", "fpr95"]
    assert np.isnan(list(found.values())).all()
    np.testing.assert_array_equal(metrics.roc(inside, outside), [[np.nan], [np.nan]])


def test_scores_are_one_number_an_example():
    for figure in (metrics.detection, metrics.roc):
        with pytest.raises(ValueError, match=r"one-dimensional, got shapes \(3, 1\) and \(2,\)"):
            figure(np.zeros((3, 1)), np.zeros(2))
