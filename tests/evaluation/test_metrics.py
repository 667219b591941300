"""Metrics against scikit-learn, and against loops by hand."""

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from sdd_jax.evaluation import metrics

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(500, 8))).astype(np.float32)
LABELS = np.where(RNG.random(500) < 0.6, LOGITS.argmax(-1), RNG.integers(0, 8, 500))
LOG_PROBS = metrics.log_softmax(LOGITS)
PROBS = np.exp(LOG_PROBS)


def ece_by_hand(probs, labels, bins=15):
    confidence, predicted = probs.max(-1), probs.argmax(-1)
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            accuracy = (predicted[inside] == labels[inside]).mean()
            total += inside.sum() * abs(accuracy - confidence[inside].mean())
    return total / len(labels)


def test_log_softmax_is_scipys_and_finite_for_extreme_logits():
    np.testing.assert_allclose(LOG_PROBS, scipy.special.log_softmax(LOGITS.astype(float), -1))
    assert np.isfinite(metrics.log_softmax(np.array([[1e4, -1e4]]))).all()


def test_accuracies_are_scikit_learns():
    assert metrics.top_k_accuracy(LOG_PROBS, LABELS) == accuracy_score(LABELS, PROBS.argmax(-1))
    expected = top_k_accuracy_score(LABELS, PROBS, k=5, labels=np.arange(8))
    assert metrics.top_k_accuracy(LOG_PROBS, LABELS, k=5) == pytest.approx(expected)


def test_ties_count_as_argmax_counts_them():
    constant = metrics.log_softmax(np.zeros((4, 10)))
    labels = np.array([0, 1, 4, 5])
    assert metrics.top_k_accuracy(constant, labels) == 0.25
    assert metrics.top_k_accuracy(constant, labels, k=5) == 0.75


def test_nll_is_scikit_learns():
    expected = log_loss(LABELS, PROBS, labels=np.arange(8))
    assert metrics.negative_log_likelihood(LOG_PROBS, LABELS) == pytest.approx(expected)


def test_brier_by_hand():
    one_hot = np.eye(8)[LABELS]
    expected = np.mean([np.sum((p - y) ** 2) for p, y in zip(PROBS, one_hot, strict=True)])
    assert metrics.brier_score(LOG_PROBS, LABELS) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_by_hand(bins):
    expected = ece_by_hand(PROBS, LABELS, bins)
    result = metrics.expected_calibration_error(LOG_PROBS, LABELS, num_bins=bins)
    assert result == pytest.approx(expected, abs=1e-12)
    assert result > 0.01


def test_constant_and_perfectly_confident_predictions():
    labels = np.arange(10)
    constant = metrics.log_softmax(np.zeros((10, 10)))
    assert metrics.negative_log_likelihood(constant, labels) == pytest.approx(np.log(10))
    assert metrics.brier_score(constant, labels) == pytest.approx(0.9)
    assert metrics.expected_calibration_error(constant, labels) == pytest.approx(0)
    right = metrics.log_softmax(1e4 * np.eye(10))
    assert metrics.expected_calibration_error(right, labels) == 0
    assert metrics.negative_log_likelihood(right, labels) == 0
    wrong = np.roll(right, 1, axis=0)
    assert metrics.expected_calibration_error(wrong, labels) == 1
    assert metrics.brier_score(wrong, labels) == 2
