"""The contract that all losses share: shapes, dtypes, extreme logits, excluded classes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdd_jax import losses

RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(2, 6, 5)) * 2  # logits or features
LABELS = np.array([0, 2, 2, 1, 0, 1], np.int32)
KEYS = jax.random.split(jax.random.key(0), 6)  # one per example


def positive(z):
    return jnp.where(jnp.isfinite(z), jnp.abs(z), 0)


# Each takes logits (or features) a and b, labels, keys, and a head that is applied to a and b.
LABELLED = {
    "cross_entropy": lambda a, b, y, k, head: losses.cross_entropy(head(a), y),
    "label_smoothing": lambda a, b, y, k, head: losses.label_smoothing(head(a), y),
    "ps_kd": lambda a, b, y, k, head: losses.ps_kd_loss(head(a), y, positive(head(b)), alpha=0.3),
    "tf_kd": lambda a, b, y, k, head, **options: losses.tf_kd_loss(head(a), y, **options),
    "linear_cross_entropy": lambda a, b, y, k, head: losses.linear_cross_entropy(
        a, jnp.eye(a.shape[-1], dtype=a.dtype), None, y, chunk_size=128
    ),
}
PAIRED = {
    name: lambda a, b, y, k, head, loss=loss, **options: loss(head(a), head(b), **options)
    for name, loss in {
        "kl_divergence": losses.kl_divergence,
        "symmetric_kl": losses.symmetric_kl,
        "pairwise_symmetric_kl": lambda a, b, **o: losses.pairwise_symmetric_kl([a, b, 2 * a], **o),
        "sd_dropout_from_logits": lambda a, b, **o: losses.sd_dropout_loss_from_logits([a, b], **o),
        "cs_kd": losses.cs_kd_loss,
        "dlb": losses.dlb_loss,
        "byot": losses.byot_loss,
        "ddgsd": losses.ddgsd_loss,
        "dml": losses.dml_loss,
        "r_drop": losses.r_drop_loss,
    }.items()
}
DROPPED = {
    "sd_dropout": lambda a, b, y, k, head, **options: losses.sd_dropout_loss(a, head, k, **options),
    "clean_student": lambda a, b, y, k, head, **options: losses.sd_dropout_clean_student_loss(
        a, head, k, **options
    ),
}
LINEAR_SD_DROPOUT = {
    "linear_sd_dropout": lambda a, b, y, k, head, **options: losses.linear_sd_dropout_loss(
        a, jnp.eye(a.shape[-1], dtype=a.dtype), None, k, chunk_size=2, **options
    ),
}
OTHER = {
    "entropy": lambda a, b, y, k, head: losses.entropy(head(a)),
    "byot_features": lambda a, b, y, k, head: losses.byot_feature_loss(a, b),
} | {
    divergence: lambda a, b, y, k, head, divergence=divergence: losses.dropout_distillation_loss(
        head(a), head(b), divergence=divergence
    )
    for divergence in losses.DIVERGENCES
}
LOSSES = LABELLED | PAIRED | DROPPED | LINEAR_SD_DROPOUT | OTHER
WITH_WHERE = [*PAIRED, *DROPPED]
WITH_TEMPERATURE = [*WITH_WHERE, *LINEAR_SD_DROPOUT, "tf_kd"]
every_loss = pytest.mark.parametrize("name", LOSSES)


def call(name, a, b, labels=LABELS, keys=KEYS, head=lambda z: z, **options):
    return LOSSES[name](a, b, labels, keys, head, **options)


def value_and_gradients(name, a, b, **options):
    def total(a, b):
        return jnp.sum(call(name, a, b, **options))

    return jax.value_and_grad(total, (0, 1))(a, b)


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@every_loss
def test_loss_is_per_example_for_any_leading_shape_and_under_vmap(name):
    @jax.jit
    def shapes(a, b, labels, keys):
        shaped = [x.reshape(2, 3, *x.shape[1:]) for x in (a, b, labels, keys)]
        one_by_one = jax.vmap(lambda *example: call(name, *example))
        return call(name, a, b), call(name, *shaped), one_by_one(a, b, labels, keys)

    batch, shaped, one_by_one = shapes(*float32(A, B), LABELS, KEYS)
    assert batch.shape == (6,)
    np.testing.assert_allclose(shaped, batch.reshape(2, 3), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one_by_one, batch, rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(name, dtype):
    half = jnp.asarray(A, dtype), jnp.asarray(B, dtype)
    value, single = jax.jit(lambda half, single: (call(name, *half), call(name, *single)))(
        half, float32(*half)
    )
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, single, rtol=1e-6, atol=1e-6)
    _, gradients = jax.eval_shape(lambda a, b: value_and_gradients(name, a, b), *half)
    assert [g.dtype for g in gradients] == [dtype, dtype]


@every_loss
def test_float64_stays_and_gradients_agree_with_finite_differences(name):
    with jax.enable_x64(True):
        a, b = jnp.asarray(A), jnp.asarray(B)
        loss = jax.jit(lambda a: call(name, a, b))
        assert jax.eval_shape(loss, a).dtype == jnp.float64
        if name not in ("ddgsd", "dml"):  # they stop a part of the gradient of each argument
            check_grads(loss, (a,), order=1, modes=["rev"])


@every_loss
def test_value_and_gradients_are_finite_at_extreme_logits(name):
    a = jnp.tile(jnp.asarray([1e4, -1e4, 0.0, 1e4, 0.0]), (6, 1))
    results = jax.jit(lambda a, b: value_and_gradients(name, a, b))(a, -a)
    for result in jax.tree.leaves(results):
        assert np.isfinite(result).all()


def assert_all_close(actual, expected):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


# A smoothed or virtual target has mass on every class: excluding one makes those losses infinite.
@pytest.mark.parametrize(
    "name", ["cross_entropy", "ps_kd", "entropy", *losses.DIVERGENCES, *PAIRED, *DROPPED]
)
def test_logits_of_minus_infinity_equal_classes_that_are_removed(name):
    excluded = jnp.asarray([[0.0, 0.0, 0.0, -jnp.inf, -jnp.inf]])

    def exclude(z):
        return z + jnp.broadcast_to(excluded, z.shape)

    @jax.jit
    def excluded_and_removed(a, b):
        heads = exclude, lambda z: z[..., :3]
        return [value_and_gradients(name, a, b, head=head) for head in heads]

    assert_all_close(*excluded_and_removed(*float32(A, B)))


@pytest.mark.parametrize("name", WITH_WHERE)
def test_classes_that_are_ignored_equal_classes_that_are_removed(name):
    keep = np.array([True, False, True, True, False])

    @jax.jit
    def ignored_and_removed(a, b):
        options = {"where": jnp.asarray(keep)}, {"head": lambda z: z[..., keep]}
        return [value_and_gradients(name, a, b, **o) for o in options]

    for filler in (0.0, 50.0, -np.inf, np.inf, np.nan):
        a, b = float32(np.where(keep, A, filler), np.where(keep, B, -filler))
        assert_all_close(*ignored_and_removed(a, b))


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_temperature_may_be_traced(name):
    a, b = float32(A, B)
    fixed, traced = jax.jit(
        lambda t: (call(name, a, b, temperature=2.0), call(name, a, b, temperature=t))
    )(2.0)
    np.testing.assert_allclose(traced, fixed, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
@pytest.mark.parametrize("temperature", [0, -1.5, float("nan"), float("inf")])
def test_temperature_that_is_not_positive_is_an_error(name, temperature):
    message = f"temperature must be greater than 0 and finite, got {temperature}"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda a, b: call(name, a, b, temperature=temperature), *float32(A, B))


@pytest.mark.parametrize(
    "name",
    [
        *("kl_divergence", "symmetric_kl", "pairwise_symmetric_kl", "sd_dropout_from_logits"),
        *(*DROPPED, *LINEAR_SD_DROPOUT),
    ],
)
def test_unknown_gradient_is_an_error(name):
    message = "gradient must be one of both, forward, reverse, got 'detach'"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda a, b: call(name, a, b, gradient="detach"), *float32(A, B))


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_labels_may_have_any_integer_dtype(name, dtype):
    """Also one that cannot number all classes."""
    a, b = float32(*RANDOM.normal(size=(2, 6, 300)))
    labels = np.array([0, 100, 127, 5, 2, 1])
    actual, expected = jax.jit(
        lambda a, b: [call(name, a, b, labels.astype(t)) for t in (dtype, np.int32)]
    )(a, b)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
