"""Students that keep the spread of an ensemble, exactly: every mask of a tiny network is enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from scipy.special import (
    betaln,
    digamma,
    entr,
    expit,
    gammaln,
    log_softmax,
    logit,
    rel_entr,
    softmax,
)

import sdd_jax

RNG = np.random.default_rng(0)
MASKS = np.array(list(itertools.product([0, 2], repeat=4)), float)  # rate 1/2: equally probable
HIDDEN = np.tanh(RNG.normal(size=(5, 3)) @ RNG.normal(size=(3, 4)))
TEACHER = np.stack([HIDDEN * mask @ RNG.normal(size=(4, 3)) for mask in MASKS])  # [16, 5, 3]
PROBS = softmax(TEACHER, axis=-1)
MEAN, LOG_MEAN = PROBS.mean(axis=0), np.log(PROBS).mean(axis=0)
INFORMATION = entr(MEAN).sum(-1) - entr(PROBS).sum(-1).mean(0)
STUDENT = RNG.normal(size=(5, 3))


dirichlet_prediction = jax.jit(sdd_jax.dirichlet_prediction)


@jax.jit
def proxy(student, teacher):
    """Values and gradient of the proxy loss."""

    def total(student):
        values = sdd_jax.dirichlet_proxy_loss(student, teacher, sample_axis=0)
        return jnp.sum(values), values

    gradient, values = jax.grad(total, has_aux=True)(student)
    return values, gradient


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def expected_gradient(loss, *outputs, argument=0):
    """Gradient of the mean over all masks of the loss of one mask."""

    def mean_loss(*outputs):
        values = jax.vmap(lambda z: jnp.sum(loss(*outputs, z)))(jnp.asarray(TEACHER))
        return jnp.mean(values)

    return jax.jit(jax.grad(mean_loss, argument))(*map(jnp.asarray, outputs))


# ------------------------------------------------------------------------------ Dirichlet


def fitted_dirichlet(log_mean):
    """Maximum-likelihood concentrations, the root of digamma(a_k) - digamma(a_0) = E log p_k."""

    def equation(log_alpha):
        alpha = np.exp(log_alpha)
        return digamma(alpha) - digamma(alpha.sum()) - log_mean

    root = scipy.optimize.root(equation, np.zeros(len(log_mean)), tol=1e-13)
    assert root.success
    return root.x


def test_the_dirichlet_likelihood_is_that_of_scipy_and_unbiased_for_one_mask():
    smoothed = 0.9 * PROBS + 0.1 / 3
    expected = [
        [-scipy.stats.dirichlet.logpdf(p, np.exp(z)) for p, z in zip(mask, STUDENT, strict=True)]
        for mask in smoothed
    ]
    options = {"smoothing": 0.1}
    one_by_one = jax.vmap(lambda z: sdd_jax.dirichlet_nll_loss(STUDENT, z, **options))(
        jnp.asarray(TEACHER)
    )
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-9)
    several = sdd_jax.dirichlet_nll_loss(STUDENT, jnp.asarray(TEACHER), sample_axis=0, **options)
    np.testing.assert_allclose(several, np.mean(expected, axis=0), rtol=1e-9)
    softened = sdd_jax.dirichlet_nll_loss(STUDENT, jnp.asarray(TEACHER[0]), temperature=2.0)
    half = sdd_jax.dirichlet_nll_loss(STUDENT / 2, jnp.asarray(TEACHER[0]) / 2)
    np.testing.assert_allclose(softened, 4 * half, rtol=1e-9)


def test_the_dirichlet_likelihood_has_its_minimum_at_the_fit():
    fitted = np.stack([fitted_dirichlet(row) for row in LOG_MEAN])

    def loss(student, teacher):
        return sdd_jax.dirichlet_nll_loss(student, teacher, smoothing=0.0)

    np.testing.assert_allclose(expected_gradient(loss, fitted), 0, atol=1e-9)
    alpha = np.exp(STUDENT)
    expected = alpha * (digamma(alpha) - digamma(alpha.sum(-1, keepdims=True)) - LOG_MEAN)
    np.testing.assert_allclose(expected_gradient(loss, STUDENT), expected, rtol=1e-7)


def proxy_of_all_masks():
    spread = rel_entr(MEAN, PROBS).sum(-1).mean(axis=0)
    return (3 - 1) / (2 * spread[:, None])


def test_the_proxy_loss_is_the_divergence_of_two_dirichlet_distributions():
    precision = proxy_of_all_masks()
    for student in (STUDENT, STUDENT + 3):
        loss, _ = proxy(jnp.asarray(student), jnp.asarray(TEACHER))
        alpha, beta = 1 + np.exp(student), 1 + MEAN * precision
        # The mean over the student's distribution of the difference of the log-densities.
        mean_log = digamma(alpha) - digamma(alpha.sum(-1, keepdims=True))
        log_densities = [
            ((x - 1) * mean_log - gammaln(x)).sum(-1) + gammaln(x.sum(-1)) for x in (alpha, beta)
        ]
        expected = (log_densities[0] - log_densities[1]) / precision[:, 0]
        np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_the_proxy_loss_has_its_minimum_at_the_mean_with_the_fitted_precision():
    precision, teacher = proxy_of_all_masks(), jnp.asarray(TEACHER)
    minimiser = np.log(MEAN * precision)
    value, gradient = proxy(jnp.asarray(minimiser), teacher)
    np.testing.assert_allclose(value, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    elsewhere, _ = proxy(jnp.asarray(minimiser + 0.3 * STUDENT), teacher)
    assert (elsewhere > 1e-3).all()


def test_float32_keeps_the_gradient_of_the_proxy_loss():
    """Also where the student is far too sure, so that it comes back."""
    for shift in (0, 10, 20, 30):
        _, exact = proxy(jnp.asarray(STUDENT + shift), jnp.asarray(TEACHER))
        with jax.enable_x64(False):
            _, single = proxy(*(jnp.asarray(x, jnp.float32) for x in (STUDENT + shift, TEACHER)))
        np.testing.assert_allclose(single, exact, rtol=1e-3, atol=1e-5)
        assert np.abs(exact).max() > 0.1


def test_the_precision_of_the_proxy_is_near_the_fit_where_the_teacher_is_nearly_sure_of_itself():
    teacher = TEACHER.mean(axis=0) + 0.1 * (TEACHER - TEACHER.mean(axis=0))
    log_probs = log_softmax(teacher, axis=-1)
    mean = np.exp(log_probs).mean(axis=0)
    spread = np.sum(mean * (np.log(mean) - log_probs.mean(axis=0)), axis=-1)
    fitted = np.exp([fitted_dirichlet(row) for row in log_probs.mean(axis=0)]).sum(axis=-1)
    np.testing.assert_allclose(1 / spread, fitted, rtol=0.05)  # K - 1 is 2


def test_samples_that_agree_have_a_finite_proxy():
    with jax.enable_x64(False):
        teacher = jnp.tile(jnp.asarray([[9.0, 0.0, -30.0]], jnp.float32), (4, 1, 1))
        value, gradient = proxy(jnp.zeros((1, 3), jnp.float32), teacher)
    assert 0 < value < np.inf
    assert np.isfinite(gradient).all()
    assert gradient[0, 0] < -0.1


@pytest.mark.parametrize(("a", "b"), [(0.05, 0.3), (1.0, 1.0), (2.5, 40.0), (300.0, 500.0)])
def test_the_mutual_information_of_two_classes_is_that_of_the_beta_distribution(a, b):
    def integrand(x):  # p = expit(x) removes the poles of the density at 0 and 1
        log_density = a * np.log(expit(x)) + b * np.log(expit(-x)) - betaln(a, b)
        return np.exp(log_density) * entr([expit(x), expit(-x)]).sum()

    points = [-20, -5, np.log(a / b), 5, 20]
    expected_entropy, _ = scipy.integrate.quad(integrand, -200, 200, points=points, limit=500)
    prediction = dirichlet_prediction(jnp.log(jnp.array([a, b])))
    mean = a / (a + b)
    np.testing.assert_allclose(prediction.probs[0], mean, rtol=1e-9)
    np.testing.assert_allclose(prediction.entropy, entr([mean, 1 - mean]).sum(), rtol=1e-9)
    np.testing.assert_allclose(prediction.expected_entropy, expected_entropy, rtol=1e-6)


def test_float32_keeps_the_mutual_information_of_a_sure_student():
    logits = np.array([[30.0, 8.0, 2.0], [3.0, 3.5, 3.4], [12.0, -4.0, -90.0], [-3.0, -2.0, -5.0]])
    exact = dirichlet_prediction(jnp.asarray(logits)).mutual_information
    alpha = np.exp(logits)
    mean = alpha / alpha.sum(-1, keepdims=True)
    gaps = np.sum(mean * digamma(alpha + 1), axis=-1) - digamma(alpha.sum(-1) + 1)
    np.testing.assert_allclose(exact, entr(mean).sum(-1) + gaps, rtol=1e-8, atol=1e-14)
    with jax.enable_x64(False):
        single = dirichlet_prediction(jnp.asarray(logits, jnp.float32)).mutual_information
    np.testing.assert_allclose(single, exact, rtol=2e-5)


def test_a_class_without_mass_has_no_part_in_the_prediction():
    whole = dirichlet_prediction(jnp.array([1.0, 2.0, -jnp.inf]))
    rest = dirichlet_prediction(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(whole.mutual_information, rest.mutual_information, rtol=1e-12)


# ---------------------------------------------------------------------- Gaussian of the logits


def test_the_gaussian_likelihood_is_that_of_scipy():
    log_variance = RNG.normal(size=(5, 3))
    density = scipy.stats.norm(STUDENT, np.exp(log_variance / 2))
    expected = -density.logpdf(TEACHER).sum(axis=-1).mean(axis=0)
    loss = sdd_jax.logit_gaussian_loss(STUDENT, log_variance, jnp.asarray(TEACHER), sample_axis=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_the_gaussian_likelihood_has_its_minimum_at_the_moments_of_the_logits():
    mean, variance = TEACHER.mean(axis=0), TEACHER.var(axis=0)
    loss = sdd_jax.logit_gaussian_loss
    for gradient in expected_gradient(loss, mean, np.log(variance), argument=(0, 1)):
        np.testing.assert_allclose(gradient, 0, atol=1e-12)
    gradients = expected_gradient(loss, mean + 0.5, np.log(2 * variance), argument=(0, 1))
    expected = 0.5 / (2 * variance), (1 - (variance + 0.25) / (2 * variance)) / 2
    for gradient, value in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, value, rtol=1e-9)


def test_the_gaussian_prediction_is_that_of_quadrature():
    """With two classes the posterior depends on one Gaussian number, the difference of the logits."""
    mean, log_variance = np.array([[1.0, -0.5], [4.0, 0.0]]), np.array([[0.5, -1.0], [-8.0, -9.0]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    differences = np.subtract(*mean.T)[:, None]
    deviations = np.sqrt(np.exp(log_variance).sum(axis=-1))[:, None]
    p = expit(differences + deviations * nodes)
    weights = weights / weights.sum()
    expected = p @ weights
    expected_entropy = (entr(p) + entr(1 - p)) @ weights
    information = entr(expected) + entr(1 - expected) - expected_entropy
    prediction = sdd_jax.logit_gaussian_prediction(
        jnp.asarray(mean), jnp.asarray(log_variance), jax.random.key(0), num_samples=20_000
    )
    np.testing.assert_allclose(prediction.probs[:, 0], expected, rtol=0.01)
    np.testing.assert_allclose(prediction.mutual_information, information, rtol=0.05)
    sums = prediction.expected_entropy + prediction.mutual_information
    np.testing.assert_allclose(sums, prediction.entropy, rtol=1e-9)


# ---------------------------------------------------------------------------------- two heads


def test_the_second_head_learns_the_mutual_information_from_single_masks():
    at_the_mean = np.log(MEAN)
    for student in (at_the_mean, STUDENT):
        divergence = rel_entr(MEAN, softmax(student, axis=-1)).sum(axis=-1)
        share = (INFORMATION + divergence) / np.log(3)
        r = RNG.normal(size=5)
        gradients = expected_gradient(sdd_jax.mutual_information_loss, r, student, argument=(0, 1))
        np.testing.assert_allclose(gradients[0], expit(r) - share, atol=1e-9)
        np.testing.assert_array_equal(gradients[1], 0)
    r = logit(INFORMATION / np.log(3))  # where the gradient is 0 if the student is the mean
    prediction = sdd_jax.two_head_prediction(jnp.asarray(at_the_mean), jnp.asarray(r))
    np.testing.assert_allclose(prediction.mutual_information, INFORMATION, rtol=1e-9)
    np.testing.assert_allclose(prediction.expected_entropy, entr(PROBS).sum(-1).mean(0), rtol=1e-9)


def test_the_mutual_information_is_at_most_the_entropy():
    prediction = sdd_jax.two_head_prediction(jnp.array([[5.0, 0.0, 0.0]]), jnp.array([3.0]))
    np.testing.assert_array_equal(prediction.mutual_information, prediction.entropy)
    np.testing.assert_array_equal(prediction.expected_entropy, 0)


# -------------------------------------------------------------------------------------- errors


def test_bad_arguments_are_errors():
    z, samples = jnp.zeros((5, 3)), jnp.zeros((1, 5, 3))
    with pytest.raises(ValueError, match="must hold at least 2 samples, got 1"):
        sdd_jax.dirichlet_proxy_loss(z, samples, sample_axis=0)
    with pytest.raises(ValueError, match=r"without the classes, \(5,\), got \(5, 1\)"):
        sdd_jax.mutual_information_loss(jnp.zeros((5, 1)), z, z)
    with pytest.raises(ValueError, match=r"mean, log_variance must have the same shape, got "):
        sdd_jax.logit_gaussian_loss(z, z[:, :1], z)
    with pytest.raises(ValueError, match=r"mean, log_variance must have the same shape, got "):
        sdd_jax.logit_gaussian_prediction(z, z[:, :1], jax.random.key(0))
    with pytest.raises(ValueError, match="num_samples .* at least 1, got 0"):
        sdd_jax.logit_gaussian_prediction(z, z, jax.random.key(0), num_samples=0)
