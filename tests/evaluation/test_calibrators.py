"""Vector and Dirichlet scaling, isotonic regression and normalised logits, against other libraries."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sdd_jax.evaluation import metrics

PEER = json.loads((Path(__file__).parent / "peers" / "calibrators.json").read_text())
LOGITS, LABELS, TEST_LOGITS, TEST_LABELS = (
    np.array(PEER["inputs"][name]) for name in ("logits", "labels", "test_logits", "test_labels")
)
LOG_PROBS, TEST_LOG_PROBS = metrics.log_softmax(LOGITS), metrics.log_softmax(TEST_LOGITS)
CORRECT = TEST_LOG_PROBS.argmax(-1) == TEST_LABELS


def vector(log_probs=LOG_PROBS, labels=LABELS):
    return metrics.vector_scaling(TEST_LOG_PROBS, metrics.fit_vector_scaling(log_probs, labels))


def dirichlet(log_probs=LOG_PROBS, labels=LABELS, odir=PEER["odir"]):
    fitted = metrics.fit_dirichlet_scaling(log_probs, labels, odir=odir)
    return metrics.dirichlet_scaling(TEST_LOG_PROBS, fitted)


def isotonic(log_probs=LOG_PROBS, labels=LABELS):
    return metrics.isotonic(TEST_LOG_PROBS, metrics.fit_isotonic(log_probs, labels))


CALIBRATORS = {"vector": vector, "dirichlet": dirichlet, "isotonic": isotonic}
every_calibrator = pytest.mark.parametrize("name", CALIBRATORS)


@every_calibrator
def test_calibrated_probabilities_are_those_of_the_peer(name):
    # netcal's gradients are finite differences, torch's L-BFGS stops early
    expected = np.array(PEER["probs"][name])
    assert np.abs(expected - np.exp(TEST_LOG_PROBS)).max() > 0.1
    np.testing.assert_allclose(np.exp(CALIBRATORS[name]()), expected, atol=1e-4)


@every_calibrator
def test_fits_are_deterministic_and_do_not_raise_the_nll_of_a_fitted_temperature(name):
    np.testing.assert_array_equal(CALIBRATORS[name](), CALIBRATORS[name]())
    temperature = metrics.fit_temperature(LOGITS, LABELS)
    scaled = metrics.log_softmax(LOGITS / temperature)
    fits = {
        "vector": lambda: metrics.vector_scaling(
            LOGITS, metrics.fit_vector_scaling(LOGITS, LABELS)
        ),
        "dirichlet": lambda: metrics.dirichlet_scaling(
            LOG_PROBS, metrics.fit_dirichlet_scaling(LOG_PROBS, LABELS, odir=0)
        ),
        "isotonic": lambda: metrics.isotonic(LOG_PROBS, metrics.fit_isotonic(LOG_PROBS, LABELS)),
    }
    calibrated, of_temperature = (
        metrics.negative_log_likelihood(log_probs, LABELS) for log_probs in (fits[name](), scaled)
    )
    assert calibrated < of_temperature


@every_calibrator
def test_undefined_or_absent_examples_make_every_probability_nan(name):
    undefined = np.where(np.arange(len(LABELS))[:, None] == 3, np.nan, LOG_PROBS)
    for log_probs, labels in ((undefined, LABELS), (LOG_PROBS[:0], LABELS[:0])):
        assert np.isnan(CALIBRATORS[name](log_probs, labels)).all()


def test_vector_scaling_recovers_the_map_that_drew_the_labels():
    sixteenths = np.array([[10, 4, 2], [1, 12, 3], [6, 5, 5], [1, 1, 14]])
    weights, bias = np.array([0.5, 2, 1]), np.array([0.3, -1, 0])
    logits = np.repeat((np.log(sixteenths) - bias) / weights, 16, axis=0)
    labels = np.concatenate([np.repeat(np.arange(3), row) for row in sixteenths])
    fitted = metrics.fit_vector_scaling(logits, labels)
    np.testing.assert_allclose(fitted.weights, weights, rtol=1e-3)
    np.testing.assert_allclose(fitted.bias - fitted.bias[2], bias, atol=1e-3)


def test_scalings_are_bounded_where_the_likelihood_has_no_maximum():
    labels = LOGITS.argmax(-1)  # separable, and one class never occurs
    fits = [
        metrics.fit_vector_scaling(LOGITS[labels != 3], labels[labels != 3]),
        metrics.fit_dirichlet_scaling(LOG_PROBS, labels, odir=0),
    ]
    for fitted in fits:
        assert max(np.abs(fitted.weights).max(), np.abs(fitted.bias).max()) <= 100
    assert metrics.fit_vector_scaling(LOGITS, labels).weights.min() >= 0.01


def test_strong_odir_leaves_the_diagonal_alone():
    fitted = metrics.fit_dirichlet_scaling(LOG_PROBS, LABELS, odir=1e9)
    assert np.abs(fitted.weights[~np.eye(4, dtype=bool)]).max() < 1e-6
    assert np.abs(fitted.bias).max() < 1e-6
    assert np.ptp(np.diag(fitted.weights)) > 0.1


def test_odir_is_selected_by_cross_validation():
    losses = {}
    for odir in (0.01, 1.0, 100.0):
        losses[odir] = 0
        for fold in range(3):
            out = np.arange(len(LABELS)) % 3 == fold
            fitted = metrics.fit_dirichlet_scaling(LOG_PROBS[~out], LABELS[~out], odir=odir)
            scaled = metrics.dirichlet_scaling(LOG_PROBS[out], fitted)
            losses[odir] -= scaled[np.arange(out.sum()), LABELS[out]].sum()
    assert metrics.select_odir(LOG_PROBS, LABELS, tuple(losses)) == min(losses, key=losses.get)
    with pytest.raises(ValueError, match="odir must be at least 0, got -1"):
        metrics.fit_dirichlet_scaling(LOG_PROBS, LABELS, odir=-1)


def test_isotonic_probabilities_are_at_least_a_millionth_and_equal_where_all_are():
    maps = [metrics.IsotonicMap(np.array([0.4, 0.9]), np.array([0.0, 1.0]))] * 3
    mapped = np.exp(metrics.isotonic(np.log([[0.3, 0.3, 0.4], [0.9, 0.05, 0.05]]), maps))
    np.testing.assert_allclose(mapped, [[1 / 3] * 3, [1 - 2e-6, 1e-6, 1e-6]], rtol=1e-5)


def test_selective_metrics_are_torch_uncertaintys_by_its_convention():
    # it integrates by trapezoids from coverage 1 / N, and divides by 1 - 1 / N
    count, peer = len(TEST_LABELS), PEER["metrics"]
    risks = metrics.risk_coverage(TEST_LOG_PROBS, TEST_LABELS)
    area = metrics.area_under_generalized_risk_coverage(TEST_LOG_PROBS, TEST_LABELS)
    first = risks[0] / (2 * count**2)
    assert (area - first) / (1 - 1 / count) == pytest.approx(peer["augrc"], abs=1e-6)
    area = np.trapezoid(risks, np.arange(1, count + 1) / count)
    assert area / (1 - 1 / count) == pytest.approx(peer["aurc"], abs=1e-6)
    for percent in (5, 30):
        coverage = metrics.coverage_at_risk(TEST_LOG_PROBS, TEST_LABELS, risk=percent / 100)
        assert coverage == pytest.approx(peer[f"coverage_at_{percent}"])


def test_augrc_is_the_papers_function_of_auroc_and_accuracy_ties_included():
    scores = [None, TEST_LOG_PROBS.max(-1).round(1), np.zeros(len(TEST_LABELS))]
    for score in scores:
        area = metrics.area_under_generalized_risk_coverage(
            TEST_LOG_PROBS, TEST_LABELS, confidence=score
        )
        auroc = roc_auc_score(CORRECT, TEST_LOG_PROBS.max(-1) if score is None else score)
        accuracy = CORRECT.mean()
        expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
        assert area == pytest.approx(expected, abs=1e-12)


def test_coverage_at_a_risk_that_none_or_all_have():
    log_probs = np.log([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert metrics.coverage_at_risk(log_probs, [1, 0, 0], risk=0.2) == 0
    assert metrics.coverage_at_risk(log_probs, [1, 0, 0], risk=0.4) == 1  # risks 1, 1/2, 1/3
    assert metrics.coverage_at_risk(log_probs, [0, 0, 1]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"risk must be in \[0, 1\], got 5"):
        metrics.coverage_at_risk(log_probs, [0, 0, 0], risk=5)


def test_risks_follow_the_given_confidence():
    log_probs, labels = np.log([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]), [0, 1, 0]
    risks = metrics.risk_coverage(log_probs, labels, confidence=[1, 3, 2])
    np.testing.assert_allclose(risks, [1, 1 / 2, 1 / 3])
    risks = metrics.risk_coverage(log_probs, labels, confidence=[1, np.nan, 2])
    np.testing.assert_array_equal(risks, np.full(3, np.nan))
    with pytest.raises(ValueError, match=r"confidence must be \(3,\), got shape \(2,\)"):
        metrics.risk_coverage(log_probs, labels, confidence=[1, 2])


@pytest.mark.parametrize("p", [1, 2, 5])
def test_normalised_logits_by_the_equation(p):
    expected = []
    for row in TEST_LOGITS:
        centred = [z - sum(row) / 4 for z in row]
        expected.append(max(centred) / sum(abs(z) ** p for z in centred) ** (1 / p))
    scores = metrics.normalized_maximum_logit(TEST_LOGITS, p=p)
    np.testing.assert_allclose(scores, expected)
    scores = metrics.normalized_maximum_logit(1e200 * TEST_LOGITS + 3, p=p)
    np.testing.assert_allclose(scores, expected)


def test_normalised_logits_restore_the_order_that_label_smoothing_spoils():
    # right predictions with small logits, wrong ones with large logits of two classes
    right = np.array([[2.0, 0, 0, 0], [1.5, 0, 0, 0]])
    wrong = np.array([[9.0, 6, 0, 0], [8.0, 5, 0, 0]])
    logits, labels = np.concatenate([right, wrong]), np.array([0, 0, 1, 1])
    log_probs = metrics.log_softmax(logits)
    scores = metrics.normalized_maximum_logit(logits, p=metrics.fit_logit_norm(logits, labels))
    areas = [
        metrics.area_under_risk_coverage(log_probs, labels, confidence=score)
        for score in (None, scores)
    ]
    assert areas[0] > 0.7
    assert areas[1] == pytest.approx((1 / 3 + 1 / 2) / 4)  # of the perfect order


def test_the_norm_has_the_smallest_area_on_the_examples_that_it_is_fitted_to():
    areas = {
        p: metrics.area_under_risk_coverage(
            LOG_PROBS, LABELS, confidence=metrics.normalized_maximum_logit(LOGITS, p=p)
        )
        for p in range(1, 9)
    }
    assert len(set(areas.values())) > 1
    assert metrics.fit_logit_norm(LOGITS, LABELS) == min(areas, key=areas.get)


def test_normalised_logits_without_an_order():
    logits = [[1.0, 1, 1], [np.nan, 0, 1], [-np.inf, 0, 1]]
    scores = metrics.normalized_maximum_logit(logits, p=2)
    np.testing.assert_array_equal(scores, [0, np.nan, np.nan])
    two = metrics.normalized_maximum_logit([[5.0, 1], [0, 0.1]], p=2)
    np.testing.assert_allclose(two, 2**-0.5)
    assert np.isnan(metrics.fit_logit_norm(logits, [0, 1, 2]))
    with pytest.raises(ValueError, match=r"p must be at least 1, got 0\.5"):
        metrics.normalized_maximum_logit(logits, p=0.5)
