"""Risk at coverage against loops by hand, enumeration of orders, and closed forms."""

import itertools
import math

import numpy as np
import pytest

from sdd_jax.evaluation import metrics


def two_classes(confidences, wrong):
    """Log-probabilities and labels of examples with these confidences above 0.5, right or wrong."""
    confidences = np.asarray(confidences, float)
    return np.log(np.stack([confidences, 1 - confidences], -1)), np.where(wrong, 1, 0)


def ordered(wrong):
    """Examples from the most to the least confident, all different."""
    return two_classes(np.linspace(0.99, 0.51, len(wrong)), wrong)


def test_risks_by_hand():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(200, 5))
    labels = np.argmax(logits + rng.gumbel(size=(200, 5)), axis=-1)  # drawn from the posterior
    log_probs = metrics.log_softmax(logits)
    expected, errors = [], 0
    for count, i in enumerate(sorted(range(200), key=lambda i: -log_probs[i].max()), 1):
        errors += int(log_probs[i].argmax() != labels[i])
        expected.append(errors / count)
    np.testing.assert_allclose(metrics.risk_coverage(log_probs, labels), expected)
    area = metrics.area_under_risk_coverage(log_probs, labels)
    assert area == pytest.approx(sum(expected) / 200)
    assert 0.1 < area < expected[-1]


def test_the_area_is_a_mean_of_risks_without_trapezoids():
    examples = two_classes([0.6, 0.9, 0.8, 0.7], [True, False, True, False])
    risks = [0, 1 / 2, 1 / 3, 1 / 2]
    np.testing.assert_allclose(metrics.risk_coverage(*examples), risks)
    assert metrics.area_under_risk_coverage(*examples) == pytest.approx(1 / 3)
    assert np.trapezoid(risks, [1 / 4, 2 / 4, 3 / 4, 1]) == pytest.approx(13 / 48)


@pytest.mark.parametrize(("num_examples", "errors"), [(10, 3), (7, 0), (5, 5), (20000, 5000)])
def test_area_of_the_perfect_order_in_closed_form(num_examples, errors):
    right = num_examples - errors
    area = metrics.area_under_risk_coverage(*ordered(np.arange(num_examples) >= right))
    expected = sum(j / (right + j) for j in range(1, errors + 1)) / num_examples
    assert area == pytest.approx(expected, abs=1e-12)
    if num_examples == 20000:
        rate = errors / num_examples
        assert area == pytest.approx(rate + (1 - rate) * math.log(1 - rate), abs=1e-4)


def test_the_perfect_order_has_the_least_area_and_its_reverse_the_largest():
    areas = {
        wrong: metrics.area_under_risk_coverage(*ordered(wrong))
        for wrong in set(itertools.permutations([True] * 3 + [False] * 4))
    }
    assert len(areas) == 35
    assert min(areas, key=areas.__getitem__) == (False,) * 4 + (True,) * 3
    assert max(areas, key=areas.__getitem__) == (True,) * 3 + (False,) * 4


def test_equal_confidences_have_the_mean_risk_over_all_orders():
    confidences = np.array([0.9, 0.8, 0.8, 0.8, 0.8, 0.6])
    wrong = np.array([False, True, True, False, True, False])
    orders = [[0, *middle, 5] for middle in itertools.permutations(range(1, 5))]
    curves = [[wrong[order[:i]].mean() for i in range(1, 7)] for order in orders]
    assert np.ptp(curves, axis=0).max() == 0.5  # a single order differs
    risks = metrics.risk_coverage(*two_classes(confidences, wrong))
    np.testing.assert_allclose(risks, np.mean(curves, axis=0))


def test_the_order_of_examples_does_not_matter():
    rng = np.random.default_rng(0)
    log_probs = metrics.log_softmax(rng.integers(0, 3, size=(300, 4)).astype(float))
    labels = rng.integers(0, 4, 300)
    assert len(np.unique(log_probs.max(-1))) < 100
    expected = metrics.risk_coverage(log_probs, labels)
    for _ in range(5):
        order = rng.permutation(300)
        risks = metrics.risk_coverage(log_probs[order], labels[order])
        np.testing.assert_array_equal(risks, expected)


def test_equal_confidence_throughout_has_the_error_rate_at_every_coverage():
    risks = metrics.risk_coverage(*two_classes(np.full(50, 0.7), np.arange(50) < 13))
    np.testing.assert_allclose(risks, np.full(50, 13 / 50))


def test_risks_are_nan_with_an_undefined_example_and_none_without_examples():
    log_probs = metrics.log_softmax([[0.0, 1], [np.nan, 0], [1, 0]])
    risks = metrics.risk_coverage(log_probs, np.array([0, 1, 0]))
    np.testing.assert_array_equal(risks, np.full(3, np.nan))
    assert metrics.risk_coverage(np.zeros((0, 2)), np.zeros(0, int)).shape == (0,)
