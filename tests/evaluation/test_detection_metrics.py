"""Detection against counting by hand, and out-of-distribution scores against SciPy."""

import numpy as np
import pytest
import scipy.special

from sdd_jax.evaluation import metrics

NAMES = ["auroc", "aupr_in", "aupr_out", "fpr95"]
RNG = np.random.default_rng(0)
SCORES = {
    "continuous": (RNG.normal(1, 1, 130), RNG.normal(0, 1, 70)),
    "with_ties": (RNG.integers(2, 9, 130), RNG.integers(0, 7, 70)),
    "worse_than_chance": (RNG.normal(0, 1, 40), RNG.normal(1, 2, 90)),
    "one_each": ([0.3], [0.1]),
}
each = pytest.mark.parametrize(("inside", "outside"), SCORES.values(), ids=SCORES)


def shares_accepted(inside, outside):
    """The shares ``(inside, outside)`` that each threshold accepts, from high to low."""
    return [
        tuple(sum(score >= threshold for score in side) / len(side) for side in (inside, outside))
        for threshold in sorted({*inside, *outside}, reverse=True)
    ]


def average_precision(positive, negative):
    """Sum over thresholds, from high to low, of precision times the rise in recall."""
    area, before = 0.0, 0.0
    for recall, alarms in shares_accepted(positive, negative):
        hits, alarms = recall * len(positive), alarms * len(negative)
        area += hits / (hits + alarms) * (recall - before)
        before = recall
    return area


@each
def test_detection_and_roc_by_hand(inside, outside):
    shares = shares_accepted(inside, outside)
    wins = [(i > o) + (i == o) / 2 for i in inside for o in outside]
    result = metrics.detection(inside, outside)
    assert {type(value) for value in result.values()} == {float}
    assert result == pytest.approx(
        {
            "auroc": sum(wins) / len(wins),
            "aupr_in": average_precision(inside, outside),
            "aupr_out": average_precision([-s for s in outside], [-s for s in inside]),
            "fpr95": min(fpr for tpr, fpr in shares if tpr >= 0.95),
        }
    )
    tpr, fpr = zip((0, 0), *shares, strict=True)
    np.testing.assert_allclose(metrics.roc(inside, outside), [fpr, tpr])


@pytest.mark.parametrize(
    ("num_inside", "rejected"), [(19, 0), (20, 1), (21, 1), (39, 1), (40, 2), (60, 3), (100, 5)]
)
def test_fpr95_accepts_at_least_95_percent_and_no_more_than_necessary(num_inside, rejected):
    threshold = rejected  # the lowest accepted score
    outside = threshold + np.array([-0.5, -0.5, -0.5, 0, 0.5])
    assert metrics.detection(np.arange(num_inside), outside)["fpr95"] == 0.4


def test_fpr95_can_lie_between_the_corners_of_the_roc_curve():
    # each threshold accepts one more of both, so the curve is one straight line
    scores = np.arange(100)
    assert metrics.detection(scores, scores)["fpr95"] == 0.95


@each
def test_only_the_order_of_scores_matters(inside, outside):
    inside, outside = np.asarray(inside, float), np.asarray(outside, float)
    result = metrics.detection(inside, outside)
    assert metrics.detection(np.exp(inside / 3) - 7, np.exp(outside / 3) - 7) == result
    assert metrics.detection(inside[::-1], RNG.permutation(outside)) == result
    assert metrics.detection(inside * 1e-300, outside * 1e-300) == result


def test_infinite_scores_are_the_highest_and_lowest():
    inside, outside = np.array([3.0, np.inf, -1.0, np.inf]), np.array([-np.inf, 0.0, np.inf])
    finite = [np.clip(scores, -10, 10) for scores in (inside, outside)]
    assert metrics.detection(inside, outside) == metrics.detection(*finite)
    np.testing.assert_array_equal(metrics.roc(inside, outside), metrics.roc(*finite))


REVERSED_AUPR_IN = np.mean([i / (20 + i) for i in range(1, 31)])
REVERSED_AUPR_OUT = np.mean([i / (30 + i) for i in range(1, 21)])


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        (np.arange(30, 50), np.arange(30), (1, 1, 1, 0)),
        (np.arange(30), np.arange(30, 50), (0, REVERSED_AUPR_IN, REVERSED_AUPR_OUT, 1)),
        (np.full(30, 1.5), np.full(10, 1.5), (0.5, 0.75, 0.25, 1)),
        ([], [1.0], [np.nan] * 4),
        ([1.0], [], [np.nan] * 4),
        ([], [], [np.nan] * 4),
        ([1.0, np.nan], [0.0], [np.nan] * 4),
        ([1.0], [np.nan, np.inf], [np.nan] * 4),
    ],
    ids=[
        *("perfect", "reversed", "equal"),
        *("no_inside", "no_outside", "neither", "nan_inside", "nan_outside"),
    ],
)
def test_limits(inside, outside, expected):
    result = metrics.detection(np.array(inside), np.array(outside))
    assert result == pytest.approx(dict(zip(NAMES, expected, strict=True)), nan_ok=True)
    if np.isnan(expected).all():
        np.testing.assert_array_equal(metrics.roc(inside, outside), [[np.nan], [np.nan]])


@pytest.mark.parametrize("metric", [metrics.detection, metrics.roc])
def test_scores_must_be_one_dimensional(metric):
    with pytest.raises(ValueError, match=r"one-dimensional, got shapes \(3, 1\) and \(2,\)"):
        metric(np.zeros((3, 1)), np.zeros(2))


LOGITS = 4 * RNG.standard_normal((20, 5)).astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 50.0, 1000.0])
def test_maximum_softmax_probability_is_scipys(temperature):
    expected = np.log(scipy.special.softmax(LOGITS.astype(float) / temperature, axis=-1).max(-1))
    scores = metrics.maximum_softmax_probability(LOGITS, temperature=temperature)
    np.testing.assert_allclose(scores, expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_temperatures_must_be_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature must be greater than 0, got {temperature}"):
        metrics.maximum_softmax_probability(LOGITS, temperature=temperature)


def test_energy_is_scipys_logsumexp_and_does_not_overflow():
    energy = scipy.special.logsumexp(LOGITS.astype(float), axis=-1)
    np.testing.assert_allclose(metrics.negative_energy(LOGITS), energy)
    np.testing.assert_allclose(metrics.negative_energy(LOGITS.astype(float) + 1e4), energy + 1e4)
    excluded = np.concatenate([LOGITS, np.full((20, 2), -np.inf)], axis=1)
    np.testing.assert_allclose(metrics.negative_energy(excluded), energy)


def test_maximum_logit():
    np.testing.assert_array_equal(metrics.maximum_logit(LOGITS), [max(row) for row in LOGITS])
