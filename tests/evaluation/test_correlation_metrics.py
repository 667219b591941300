"""Rank correlation of two measures, beside SciPy's."""

import math

import numpy as np
import pytest
import scipy.stats

from sdd_jax.evaluation import metrics

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(2, 400))
MEASURES = {
    "correlated": (NOISE[0], NOISE[0] + 0.7 * NOISE[1]),
    "opposed": (NOISE[0], -np.exp(NOISE[0]) + 0.1 * NOISE[1]),
    "with ties": (np.round(NOISE[0]), np.round(NOISE[0] + NOISE[1])),
}


@pytest.mark.parametrize("name", MEASURES)
def test_rank_correlation_is_that_of_scipy(name):
    expected = scipy.stats.spearmanr(*MEASURES[name]).statistic
    assert metrics.rank_correlation(*MEASURES[name]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_the_contributions_have_the_deviation_of_resampled_correlations(name):
    first, second = MEASURES[name]
    (contributions,) = metrics.rank_correlation_contributions(first, second)
    assert contributions.mean() == pytest.approx(metrics.rank_correlation(first, second))
    drawn = np.random.default_rng(1).integers(0, 400, (1000, 400))
    resampled = [metrics.rank_correlation(first[i], second[i]) for i in drawn]
    assert contributions.std() / 20 == pytest.approx(np.std(resampled), rel=0.1)


def test_a_correlation_that_is_undefined_is_nan():
    for pair in (([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([np.nan, 1], [1.0, 2.0])):
        assert math.isnan(metrics.rank_correlation(*pair))
        assert metrics.rank_correlation_contributions(*pair) == []
    with pytest.raises(ValueError, match=r"measures must be \[N\], of the same examples, got "):
        metrics.rank_correlation([1.0, 2.0], [1.0])
