"""All losses: their equations, shapes, dtypes, extreme logits, excluded classes and errors."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import entr, expit, log_softmax, rel_entr, softmax

from sdd_jax import losses

A, B = np.random.default_rng(0).normal(size=(2, 6, 5)) * 2  # logits or features
LABELS = np.array([0, 2, 2, 1, 0, 1], np.int32)
KEYS = jax.random.split(jax.random.key(0), 6)  # one per example


def positive(z):
    return jnp.where(jnp.isfinite(z), jnp.abs(z), 0)


def linear_sd_dropout(a, b, y, k, head, **options):
    kernel = jnp.eye(a.shape[-1], dtype=a.dtype)
    return losses.linear_sd_dropout_loss(a, kernel, None, k, chunk_size=2, **options)


def linear_cross_entropy(a, b, y, k, head):
    kernel = jnp.eye(a.shape[-1], dtype=a.dtype)
    return losses.linear_cross_entropy(a, kernel, None, y, chunk_size=128)


def distillation(a, b, y, k, head, divergence):
    return losses.dropout_distillation_loss(head(a), head(b), divergence=divergence)


def dirichlet_proxy(a, b, y, k, head):
    teacher = jnp.stack([head(b), head(b) / 2])
    return losses.dirichlet_proxy_loss(head(a), teacher, sample_axis=0)


def mutual_information(a, b, y, k, head):
    return losses.mutual_information_loss(a[..., 0], head(b), head(-b))


# Each takes logits (or features) a and b, labels, keys, and a head that is applied to a and b.
LABELLED = {
    "cross_entropy": lambda a, b, y, k, head: losses.cross_entropy(head(a), y),
    "label_smoothing": lambda a, b, y, k, head, **o: losses.label_smoothing(head(a), y, **o),
    "generalised_cross_entropy": lambda a, b, y, k, head, **o: losses.generalised_cross_entropy(
        head(a), y, **o
    ),
    "ps_kd": lambda a, b, y, k, head, alpha=0.3: losses.ps_kd_loss(
        head(a), y, positive(head(b)), alpha=alpha
    ),
    "tf_kd": lambda a, b, y, k, head, **o: losses.tf_kd_loss(head(a), y, **o),
    "linear_cross_entropy": linear_cross_entropy,
}
ONE_WAY = {"cs_kd": losses.cs_kd_loss, "dlb": losses.dlb_loss, "byot": losses.byot_loss}
MUTUAL = {"ddgsd": losses.ddgsd_loss, "dml": losses.dml_loss}
WITH_GRADIENT = {
    "kl_divergence": losses.kl_divergence,
    "symmetric_kl": losses.symmetric_kl,
    "symmetric_bernoulli_kl": losses.symmetric_bernoulli_kl,
    "squared_error": losses.squared_error,
    "pairwise_symmetric_kl": lambda a, b, **o: losses.pairwise_symmetric_kl([a, b, 2 * a], **o),
    "sd_dropout_from_logits": lambda a, b, **o: losses.sd_dropout_loss_from_logits([a, b], **o),
}
PAIRED = {
    name: lambda a, b, y, k, head, loss=loss, **options: loss(head(a), head(b), **options)
    for name, loss in (WITH_GRADIENT | ONE_WAY | MUTUAL | {"r_drop": losses.r_drop_loss}).items()
}
DROPPED = {
    "sd_dropout": lambda a, b, y, k, head, **o: losses.sd_dropout_loss(a, head, k, **o),
    "clean_student": lambda a, b, y, k, head, **o: losses.sd_dropout_clean_student_loss(
        a, head, k, **o
    ),
}
OTHER = {
    "linear_sd_dropout": linear_sd_dropout,
    "entropy": lambda a, b, y, k, head: losses.entropy(head(a)),
    "byot_features": lambda a, b, y, k, head: losses.byot_feature_loss(a, b),
    "kl": lambda *args: distillation(*args, "kl"),
    "brier": lambda *args: distillation(*args, "brier"),
    "reverse_kl": lambda *args: distillation(*args, "reverse_kl"),
    "dirichlet_nll": lambda a, b, y, k, head, **o: losses.dirichlet_nll_loss(head(a), head(b), **o),
    "dirichlet_proxy": dirichlet_proxy,
    "logit_gaussian": lambda a, b, y, k, head: losses.logit_gaussian_loss(
        head(a), jnp.clip(a, -1, 1), head(b)
    ),
    "mutual_information": mutual_information,
}
DISTRIBUTIONS = ("dirichlet_nll", "dirichlet_proxy", "logit_gaussian", "mutual_information")
LOSSES = LABELLED | PAIRED | DROPPED | OTHER
WITH_WHERE = [*PAIRED, *DROPPED]
WITH_TEMPERATURE = [*WITH_WHERE, "linear_sd_dropout", "tf_kd"]
every_loss = pytest.mark.parametrize("name", LOSSES)


def call(name, a, b, labels=LABELS, keys=KEYS, head=lambda z: z, **options):
    return LOSSES[name](a, b, labels, keys, head, **options)


def value_and_gradients(name, a, b, **options):
    return jax.value_and_grad(lambda a, b: jnp.sum(call(name, a, b, **options)), (0, 1))(a, b)


compiled = jax.jit(value_and_gradients, static_argnames=("name", "temperature"))


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def assert_all_close(actual, expected):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------- equations


def kl(target, prediction, t=1.0):
    return rel_entr(softmax(target / t, axis=-1), softmax(prediction / t, axis=-1)).sum(axis=-1)


def both(u, v, t=1.0):
    return kl(u, v, t) + kl(v, u, t)


def mixed(weight, other):
    target = (1 - weight) * np.eye(5)[LABELS] + weight * other
    return -(target * log_softmax(A, axis=-1)).sum(axis=-1)


def probability_of_the_label():
    return softmax(A, axis=-1)[np.arange(6), LABELS]


def tf_kd(correct=0.99, temperature=20.0):
    """Equation 8 of the paper, softened: powers of the probabilities, normalised."""
    teacher = np.where(np.eye(5)[LABELS] == 1, correct, (1 - correct) / 4) ** (1 / temperature)
    return kl(np.log(teacher), A / temperature)


def one_way(default):
    return lambda temperature=default: temperature**2 * kl(B, A, temperature)


def mutual(default):
    return lambda temperature=default: temperature**2 * both(A, B, temperature)


def bernoulli(temperature=1.0):
    p, q = (np.stack([expit(z / temperature), expit(-z / temperature)], -1) for z in (A, B))
    return (rel_entr(p, q) + rel_entr(q, p)).sum(axis=(-1, -2))


EQUATIONS = {  # with the default of each option
    "cross_entropy": lambda: mixed(0, 0),
    "linear_cross_entropy": lambda: mixed(0, 0),
    "label_smoothing": lambda smoothing=0.1: mixed(smoothing, 1 / 5),
    "generalised_cross_entropy": lambda q=0.7: (1 - probability_of_the_label() ** q) / q,
    "ps_kd": lambda alpha=0.3: mixed(alpha, np.abs(B)),
    "tf_kd": tf_kd,
    "entropy": lambda: entr(softmax(A, axis=-1)).sum(axis=-1),
    "kl_divergence": lambda temperature=1.0: kl(A, B, temperature),
    "symmetric_kl": lambda temperature=1.0: both(A, B, temperature),
    "symmetric_bernoulli_kl": bernoulli,
    "squared_error": lambda temperature=1.0: (((A - B) / temperature) ** 2).sum(axis=-1),
    "pairwise_symmetric_kl": lambda temperature=1.0: np.mean(
        [both(u, v, temperature) for u, v in itertools.combinations([A, B, 2 * A], 2)], axis=0
    ),
    "r_drop": lambda temperature=1.0: both(A, B, temperature) / 2,
    "sd_dropout_from_logits": mutual(3.0),
    **{name: one_way(4.0 if name == "cs_kd" else 3.0) for name in ONE_WAY},
    **{name: mutual(3.0) for name in MUTUAL},
    "byot_features": lambda: ((A - B) ** 2).mean(axis=-1),
    "kl": lambda: kl(B, A),
    "brier": lambda: ((softmax(A, axis=-1) - softmax(B, axis=-1)) ** 2).sum(axis=-1),
    "reverse_kl": lambda: kl(A, B),
}
OPTIONS = {
    "label_smoothing": [{"smoothing": s} for s in (0.0, 0.5, 1.0)],
    "generalised_cross_entropy": [{"q": q} for q in (0.05, 0.5, 1)],
    "ps_kd": [{"alpha": a} for a in (0.0, 1)],
    "tf_kd": [{"correct": c, "temperature": t} for c, t in ((0.2, 1), (0.9, 1), (0.9, 5.0))],
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_value_equals_the_equation_in_numpy(name):
    temperatures = [{"temperature": t} for t in (0.5, 1, 6.0)] if name in WITH_TEMPERATURE else []
    for options in [{}, *OPTIONS.get(name, temperatures)]:
        expected = EQUATIONS[name](**options)
        for dtype, tolerance in ((np.float32, 1e-4), (np.float64, 1e-11)):
            with jax.enable_x64(dtype == np.float64):
                value = call(name, jnp.asarray(A, dtype), jnp.asarray(B, dtype), **options)
                assert (value.dtype, value.shape) == (dtype, (6,))
                np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance / 100)


# --------------------------------------------------------------------------- shapes and dtypes


@every_loss
def test_loss_is_per_example_for_any_leading_shape_and_under_vmap(name):
    @jax.jit
    def shapes(a, b, labels, keys):
        shaped = [x.reshape(2, 3, *x.shape[1:]) for x in (a, b, labels, keys)]
        one_by_one = jax.vmap(lambda *example: call(name, *example))
        return call(name, a, b), call(name, *shaped).reshape(6), one_by_one(a, b, labels, keys)

    batch, shaped, one_by_one = shapes(*float32(A, B), LABELS, KEYS)
    assert batch.shape == (6,)
    assert_all_close((shaped, one_by_one), (batch, batch))


@every_loss
def test_half_precision_is_computed_and_returned_in_float32(name):
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (A, B)]  # exact in float16 too
    pairs = [[x.astype(t) for x in rounded] for t in (jnp.float16, jnp.bfloat16, jnp.float32)]
    *values, expected = jax.jit(lambda *pairs: [call(name, *pair) for pair in pairs])(*pairs)
    for value, pair in zip(values, pairs, strict=False):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
        _, gradients = jax.eval_shape(lambda a, b: value_and_gradients(name, a, b), *pair)
        assert [g.dtype for g in gradients] == [x.dtype for x in pair]


@every_loss
def test_float64_stays_and_gradients_agree_with_finite_differences(name):
    with jax.enable_x64(True):
        a, b = jnp.asarray(A), jnp.asarray(B)
        loss = jax.jit(lambda a: call(name, a, b))
        assert jax.eval_shape(loss, a).dtype == jnp.float64
        if name not in MUTUAL:  # they stop a part of the gradient of each argument
            check_grads(loss, (a,), order=1, modes=["rev"])


@pytest.mark.parametrize("name", LABELLED)
def test_labels_may_have_any_integer_dtype(name):
    """Also one that cannot number all classes."""
    a, b = float32(*(np.tile(x, 60) for x in (A, B)))
    labels = [np.array([0, 100, 127, 5, 2, 1], t) for t in (np.int32, np.int8, np.uint8, np.int64)]
    values = jax.jit(lambda a, b: [call(name, a, b, y) for y in labels])(a, b)
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], rtol=1e-6)


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_temperature_may_be_traced(name):
    values = jax.jit(lambda t: [call(name, *float32(A, B), temperature=x) for x in (2.0, t)])
    np.testing.assert_allclose(*values(2.0), rtol=1e-6, atol=1e-7)


# --------------------------------------------------------------------------- stopped gradients


@pytest.mark.parametrize("name", [*ONE_WAY, *MUTUAL])
def test_a_student_gets_the_gradient_towards_its_stopped_teacher(name):
    _, gradients = compiled(name, *float32(A, B), temperature=2.0)
    expected = 2 * (softmax(A / 2, axis=-1) - softmax(B / 2, axis=-1))
    assert_all_close(gradients, (expected, -expected if name in MUTUAL else np.zeros((6, 5))))


@pytest.mark.parametrize("name", ["ps_kd", "byot_features", *losses.DIVERGENCES, *DISTRIBUTIONS])
def test_a_teacher_gets_no_gradient(name):
    _, (_, gradient) = compiled(name, *float32(A, B))
    np.testing.assert_array_equal(gradient, 0)


# --------------------------------------------------------------------------- classes without mass


@every_loss
def test_value_and_gradients_are_finite_at_extreme_logits(name):
    a = jnp.tile(jnp.asarray([1e4, -1e4, 0.0, 1e4, 0.0]), (6, 1))
    results = jax.tree.leaves(compiled(name, a, -a))
    assert all(np.isfinite(result).all() for result in results)


# A smoothed or virtual target has mass on every class: excluding one makes those losses infinite.
# The outputs of a regression are no classes.
@pytest.mark.parametrize(
    "name",
    [
        *("cross_entropy", "generalised_cross_entropy", "ps_kd", "entropy"),
        *(*losses.DIVERGENCES, *(name for name in PAIRED if name != "squared_error"), *DROPPED),
    ],
)
def test_logits_of_minus_infinity_equal_classes_that_are_removed(name):
    excluded = jnp.asarray([[0.0, 0.0, 0.0, -jnp.inf, -jnp.inf]])
    heads = lambda z: z + jnp.broadcast_to(excluded, z.shape), lambda z: z[..., :3]
    results = jax.jit(lambda a, b: [value_and_gradients(name, a, b, head=head) for head in heads])
    assert_all_close(*results(*float32(A, B)))


@pytest.mark.parametrize("name", WITH_WHERE)
def test_classes_that_are_ignored_equal_classes_that_are_removed(name):
    keep = np.array([True, False, True, True, False])
    options = {"where": jnp.asarray(keep)}, {"head": lambda z: z[..., keep]}
    results = jax.jit(lambda a, b: [value_and_gradients(name, a, b, **o) for o in options])
    for filler in (0.0, 50.0, -np.inf, np.inf, np.nan):
        a, b = float32(np.where(keep, A, filler), np.where(keep, B, -filler))
        assert_all_close(*results(a, b))


# One for each way to ignore something.
@pytest.mark.parametrize(
    "name", ["r_drop", "pairwise_symmetric_kl", "symmetric_bernoulli_kl", "squared_error"]
)
def test_locations_that_are_ignored_have_no_loss_and_no_gradient(name):
    """Whatever their logits are, so that padding needs no clean-up."""
    valid = np.array([[True], [False], [True], [True], [False], [True]])

    def loss_and_gradients(a, b):
        values, pullback = jax.vjp(lambda a, b: call(name, a, b, where=jnp.asarray(valid)), a, b)
        return values[:, None], *pullback(jnp.ones(6))

    loss_and_gradients = jax.jit(loss_and_gradients)
    expected = [np.where(valid, x, 0) for x in loss_and_gradients(*float32(A, B))]
    for filler in (np.inf, np.nan):
        a, b = float32(np.where(valid, A, filler), np.where(valid, B, -filler))
        assert_all_close(loss_and_gradients(a, b), expected)


# --------------------------------------------------------------------------- errors

NAN = float("nan")
RANGES = [
    *((name, "temperature", "greater than 0 and finite", (0, -1.5, NAN, float("inf")))
      for name in WITH_TEMPERATURE),
    *((name, "gradient", "one of both, forward, reverse", ("detach",))
      for name in (*WITH_GRADIENT, *DROPPED, "linear_sd_dropout")),
    ("label_smoothing", "smoothing", r"in \[0, 1\]", (-0.1, 1.5, NAN)),
    ("generalised_cross_entropy", "q", r"in \(0, 1\]", (0, -0.1, 1.5, NAN)),
    ("ps_kd", "alpha", r"in \[0, 1\]", (-0.1, 1.5, NAN)),
    ("tf_kd", "correct", r"in \[1/5, 1\)", (0.1, 1.0, NAN)),
    ("dirichlet_nll", "smoothing", r"in \[0, 1\]", (-0.1, 1.5, NAN)),
    ("dirichlet_nll", "temperature", "greater than 0 and finite", (0, NAN)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "option", "allowed", "wrong"), RANGES)
def test_an_option_outside_its_range_is_an_error(name, option, allowed, wrong):
    for value in wrong:
        with pytest.raises(ValueError, match=f"{option} must be {allowed}, got {value!r}"):
            jax.eval_shape(lambda a, b, o={option: value}: call(name, a, b, **o), *float32(A, B))


SCALARS = {"ps_kd": "alpha", "label_smoothing": "smoothing", "generalised_cross_entropy": "q"}


@pytest.mark.parametrize("name", [*WITH_TEMPERATURE, *SCALARS])
def test_options_that_are_arrays_are_checked_as_numbers_are(name):
    a, b = float32(A, B)
    option = SCALARS.get(name, "temperature")
    for bad in (jnp.float32(-1), np.float32(NAN), jnp.int32(-2), jnp.float32("inf")):
        with pytest.raises(ValueError, match=f"{option} must be .*, got "):
            call(name, a, b, **{option: bad})
    for bad in ("3.0", None, 1j):
        with pytest.raises(TypeError, match=f"{option} must be a number, got "):
            call(name, a, b, **{option: bad})
    with pytest.raises(ValueError, match=rf"{option} must be a scalar, got .* shape \(6, 1\)"):
        call(name, a, b, **{option: jnp.ones((6, 1))})


SAME_SHAPE = [*PAIRED, "byot_features", *losses.DIVERGENCES, "ps_kd"]


@pytest.mark.parametrize("name", SAME_SHAPE)
@pytest.mark.parametrize("shape", [(6, 1), (1, 5), (5,), (6, 1, 5), (6, 4)], ids=str)
def test_logits_do_not_broadcast(name, shape):
    a, b = float32(A, np.ones(shape))
    message = r"must have the (same )?shape.* got \(.*\)"
    for pair in ((a, b), (b, a)) if name != "ps_kd" else ((a, b),):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda a, b: call(name, a, b), *pair)


def test_the_features_of_two_views_do_not_broadcast():
    with pytest.raises(ValueError, match=r"features_1, features_2 must have the same shape, got "):
        losses.ddgsd_feature_loss(*float32(A, A[:, :1]))


WITH_LABELS = [name for name in LABELLED if name != "linear_cross_entropy"]


@pytest.mark.parametrize("name", WITH_LABELS)
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint32])
def test_a_label_outside_the_classes_gives_nan(name, dtype):
    """Not the loss of another class; and the other examples are trained as before."""
    valid = np.array([True, False, True, True, False, True])

    @jax.jit
    def gradient_and_losses(a, b, labels):
        def total(a):
            values = call(name, a, b, labels)
            return jnp.sum(jnp.where(valid, values, 0)), values

        return jax.grad(total, has_aux=True)(a)

    logits = float32(A, B)
    gradient, values = gradient_and_losses(*logits, LABELS.astype(dtype))
    for outside in (-1, -5, -100, 5, 100):
        labels = np.where(valid, LABELS, outside).astype(dtype)
        actual_gradient, actual = gradient_and_losses(*logits, labels)
        np.testing.assert_array_equal(actual, np.where(valid, values, NAN))
        np.testing.assert_array_equal(actual_gradient, gradient)


def test_a_large_label_does_not_wrap_where_labels_become_int32():
    labels = np.where(LABELS == 2, 2**40, LABELS.astype(np.int64))
    values = losses.cross_entropy(*float32(A), labels)
    np.testing.assert_array_equal(np.isnan(values), LABELS == 2)


@pytest.mark.parametrize("name", WITH_LABELS)
def test_labels_are_one_integer_per_example(name):
    for bad in (LABELS[:, None], LABELS[:1], np.zeros((6, 5), np.int32)):
        with pytest.raises(ValueError, match=r"labels must have the shape .*, \(6,\), got "):
            call(name, *float32(A, B), labels=bad)
    for bad in (LABELS.astype(np.float32), LABELS == 0, [0, 2, 2, 1, 0, 1], 0):
        with pytest.raises(TypeError, match="labels must be an array of integers, got "):
            call(name, *float32(A, B), labels=bad)


def test_ps_kd_takes_a_traced_alpha_and_a_past_of_another_dtype():
    with jax.enable_x64(True):
        logits, past = jnp.asarray(A), jnp.asarray(np.abs(B), jnp.float32)
        loss = jax.jit(lambda alpha: losses.ps_kd_loss(logits, LABELS, past, alpha=alpha))
        np.testing.assert_allclose(loss(jnp.float32(0.3)), EQUATIONS["ps_kd"](), rtol=1e-6)


def test_generalised_cross_entropy_goes_from_cross_entropy_to_the_probability_of_an_error():
    (logits,) = float32(A)
    small, one = (losses.generalised_cross_entropy(logits, LABELS, q=q) for q in (1e-6, 1.0))
    np.testing.assert_allclose(small, losses.cross_entropy(logits, LABELS), rtol=1e-5)
    np.testing.assert_allclose(one, 1 - probability_of_the_label(), rtol=1e-5)
    underflown = losses.generalised_cross_entropy(logits, LABELS, q=1e-300)
    np.testing.assert_allclose(underflown, losses.cross_entropy(logits, LABELS), rtol=1e-5)


def test_generalised_cross_entropy_scales_the_gradient_by_a_power_of_the_probability():
    """Section 3.2 of the paper: the gradient of the cross-entropy times p_y^q."""
    for q in (0.05, 0.7, 1.0):
        _, (gradient, _) = value_and_gradients("generalised_cross_entropy", *float32(A, B), q=q)
        p = softmax(A, axis=-1)
        expected = probability_of_the_label()[:, None] ** q * (p - np.eye(5)[LABELS])
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_generalised_cross_entropy_is_bounded_and_stops_training_a_hopeless_label():
    logits = jnp.asarray([[1e4, -1e4], [0.0, -jnp.inf]])
    loss = partial(losses.generalised_cross_entropy, labels=jnp.array([1, 1]), q=0.5)
    np.testing.assert_array_equal(loss(logits), [2.0, 2.0])
    gradient = jax.grad(lambda z: jnp.sum(loss(z)))(logits)
    np.testing.assert_array_equal(gradient, np.zeros((2, 2)))


def test_generalised_cross_entropy_takes_a_traced_q_of_another_dtype():
    with jax.enable_x64(True):
        loss = jax.jit(lambda q: losses.generalised_cross_entropy(jnp.asarray(A), LABELS, q=q))
        expected = EQUATIONS["generalised_cross_entropy"](0.5)
        np.testing.assert_allclose(loss(jnp.float32(0.5)), expected, rtol=1e-6)
        assert loss(jnp.float32(0.5)).dtype == jnp.float64
