"""Losses by which one posterior, or feature, of a network teaches another."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from sdd_jax import (
    byot_feature_loss,
    byot_loss,
    cs_kd_loss,
    ddgsd_feature_loss,
    ddgsd_loss,
    dlb_loss,
    dml_loss,
    r_drop_loss,
)

DEVICES = 4
RANDOM = np.random.default_rng(0)
P, Q = RANDOM.normal(size=(2, 6, 5)) * 2

# With the temperature that each has by default. The first argument learns from the second; the two
# learn from each other; they are pulled together with no gradient stopped.
ONE_WAY = {cs_kd_loss: 4.0, dlb_loss: 3.0, byot_loss: 3.0}
MUTUAL = {ddgsd_loss: 3.0, dml_loss: 3.0}
LOSSES = [*ONE_WAY, *MUTUAL, r_drop_loss]


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def numpy_softmax(logits, temperature):
    weights = np.exp(np.asarray(logits, np.float64) / temperature)
    return weights / weights.sum(axis=-1, keepdims=True)


def numpy_kl(target, prediction, temperature):
    p, q = numpy_softmax(target, temperature), numpy_softmax(prediction, temperature)
    return (p * np.log(p / q)).sum(axis=-1)


def numpy_loss(loss, a, b, temperature):
    if loss in ONE_WAY:
        return temperature**2 * numpy_kl(b, a, temperature)
    both = numpy_kl(a, b, temperature) + numpy_kl(b, a, temperature)
    return both / 2 if loss is r_drop_loss else temperature**2 * both


def gradients(loss, a, b, **options):
    return jax.grad(lambda a, b: loss(a, b, **options).sum(), argnums=(0, 1))(a, b)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [0.5, 1, 6.0])
def test_loss_equals_numpy(loss, temperature):
    value = loss(*float32(P, Q), temperature=temperature)
    assert value.shape == (6,)
    np.testing.assert_allclose(value, numpy_loss(loss, P, Q, temperature), rtol=2e-5)


@pytest.mark.parametrize(
    ("loss", "temperature"), [*ONE_WAY.items(), *MUTUAL.items(), (r_drop_loss, 1.0)]
)
def test_default_temperature_is_the_methods(loss, temperature):
    np.testing.assert_allclose(loss(*float32(P, Q)), numpy_loss(loss, P, Q, temperature), rtol=2e-5)


def test_losses_of_known_posteriors():
    """KL is log(2) / 4 either way."""
    p, q = jnp.log(jnp.asarray([0.5, 0.25, 0.25])), jnp.log(jnp.asarray([0.25, 0.25, 0.5]))
    for loss in ONE_WAY:
        np.testing.assert_allclose(loss(p, q, temperature=1.0), np.log(2) / 4, rtol=1e-6)
    for loss in MUTUAL:
        np.testing.assert_allclose(loss(p, q, temperature=1.0), np.log(2) / 2, rtol=1e-6)
    np.testing.assert_allclose(r_drop_loss(p, q), np.log(2) / 4, rtol=1e-6)


@pytest.mark.parametrize("loss", ONE_WAY)
def test_only_the_pupil_gets_a_gradient_towards_its_teacher(loss):
    of_pupil, of_teacher = gradients(loss, *float32(P, Q), temperature=2.0)
    expected = 2 * (numpy_softmax(P, 2.0) - numpy_softmax(Q, 2.0))
    np.testing.assert_allclose(of_pupil, expected, atol=1e-6)
    np.testing.assert_array_equal(of_teacher, 0)


@pytest.mark.parametrize("loss", MUTUAL)
def test_each_of_two_gets_the_gradient_of_a_pupil_alone(loss):
    of_1, of_2 = gradients(loss, *float32(P, Q), temperature=2.0)
    expected = 2 * (numpy_softmax(P, 2.0) - numpy_softmax(Q, 2.0))
    np.testing.assert_allclose(of_1, expected, atol=1e-6)
    np.testing.assert_allclose(of_2, -expected, atol=1e-6)


def test_r_drop_has_the_gradient_as_a_target_too():
    of_1, of_2 = gradients(r_drop_loss, *float32(P, Q), temperature=2.0)
    p, q = numpy_softmax(P, 2.0), numpy_softmax(Q, 2.0)
    as_target_1 = p * (np.log(p / q) - numpy_kl(P, Q, 2.0)[:, None])
    as_target_2 = q * (np.log(q / p) - numpy_kl(Q, P, 2.0)[:, None])
    np.testing.assert_allclose(of_1, (p - q + as_target_1) / 2 / 2, atol=1e-6)
    np.testing.assert_allclose(of_2, (q - p + as_target_2) / 2 / 2, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_per_example_for_any_leading_shape(loss):
    p, q = float32(P, Q)
    whole = loss(p, q)
    shaped = loss(p.reshape(2, 3, 5), q.reshape(2, 3, 5))
    np.testing.assert_allclose(shaped, whole.reshape(2, 3), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(p, q), whole, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_temperature_may_be_traced(loss):
    traced = jax.jit(lambda t: loss(*float32(P, Q), temperature=t))(2.0)
    np.testing.assert_allclose(traced, numpy_loss(loss, P, Q, 2.0), rtol=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("filler", [0.0, -np.inf, np.nan])
def test_classes_that_are_masked_equal_classes_that_are_removed(loss, filler):
    keep = np.array([True, False, True, True, False])
    masked = float32(np.where(keep, P, filler), np.where(keep, Q, -filler))
    removed, where = float32(P[:, keep], Q[:, keep]), jnp.asarray(keep[None])
    np.testing.assert_allclose(loss(*masked, where=where), loss(*removed), rtol=1e-5)
    of_masked, of_removed = gradients(loss, *masked, where=where), gradients(loss, *removed)
    for with_all, with_some in zip(of_masked, of_removed, strict=True):
        np.testing.assert_allclose(with_all[:, keep], with_some, atol=1e-5)
        np.testing.assert_array_equal(with_all[:, ~keep], 0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(loss, dtype):
    p, q = jnp.asarray(P, dtype), jnp.asarray(Q, dtype)
    value = loss(p, q)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, loss(*float32(p, q)))


@pytest.mark.parametrize("loss", LOSSES)
def test_float64_stays(loss):
    with jax.enable_x64(True):
        value = loss(jnp.asarray(P), jnp.asarray(Q), temperature=2.0)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, numpy_loss(loss, P, Q, 2.0), rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradients_are_finite_at_extreme_logits(loss):
    a, b = jnp.asarray([[1e4, -1e4, 0.0]]), jnp.asarray([[-1e4, 1e4, 0.0]])
    assert np.isfinite(loss(a, b)).all()
    assert np.isfinite(gradients(loss, a, b)).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [0, -1.5, float("nan"), float("inf")])
def test_temperature_that_is_not_positive_is_an_error(loss, temperature):
    with pytest.raises(
        ValueError, match=f"temperature must be greater than 0 and finite, got {temperature}"
    ):
        loss(*float32(P, Q), temperature=temperature)


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (5,)])
def test_feature_loss_of_a_branch_is_the_mean_squared_difference(shape):
    p, q = (x.reshape(-1, 5)[: np.prod(shape[:-1], dtype=int)].reshape(shape) for x in (P, Q))
    expected = ((p - q) ** 2).mean(axis=-1)
    np.testing.assert_allclose(byot_feature_loss(*float32(p, q)), expected, rtol=1e-5)
    of_mid, of_final = gradients(byot_feature_loss, *float32(p, q))
    np.testing.assert_allclose(of_mid, 2 * (p - q) / 5, rtol=1e-5)
    np.testing.assert_array_equal(of_final, 0)


def test_feature_loss_of_two_views_is_the_squared_distance_of_their_means():
    distance = np.sum((P.mean(axis=0) - Q.mean(axis=0)) ** 2)
    value = ddgsd_feature_loss(*float32(P, Q))
    assert value.shape == ()
    np.testing.assert_allclose(value, distance, rtol=1e-5)
    of_1, of_2 = gradients(ddgsd_feature_loss, *float32(P, Q))
    expected = np.broadcast_to(2 * (P.mean(axis=0) - Q.mean(axis=0)) / 6, (6, 5))
    np.testing.assert_allclose(of_1, expected, rtol=1e-4)
    np.testing.assert_allclose(of_2, -expected, rtol=1e-4)


def test_feature_loss_of_two_views_does_not_see_the_order_of_the_images():
    p, q = float32(P, P[::-1])
    np.testing.assert_allclose(ddgsd_feature_loss(p, q), 0, atol=1e-10)


@pytest.mark.parametrize("loss", [byot_feature_loss, ddgsd_feature_loss])
def test_feature_losses_are_computed_in_float32_at_least(loss):
    p, q = jnp.asarray(P, jnp.bfloat16), jnp.asarray(Q, jnp.bfloat16)
    assert loss(p, q).dtype == jnp.float32
    np.testing.assert_array_equal(loss(p, q), loss(*float32(p, q)))
    with jax.enable_x64(True):
        assert loss(jnp.asarray(P), jnp.asarray(Q)).dtype == jnp.float64


# A batch of two views divided over devices: a term that is a mean over examples, and the feature term.
VIEWS = float32(*RANDOM.normal(size=(2, 8, 3)))
KERNEL = jnp.asarray(RANDOM.normal(size=(3, 4)), jnp.float32)


def two_views_loss(kernel, x_1, x_2, axis_name=None):
    f_1, f_2 = jnp.tanh(x_1 @ kernel), jnp.tanh(x_2 @ kernel)
    distance = ddgsd_feature_loss(f_1, f_2, axis_name=axis_name)
    return jnp.mean(ddgsd_loss(f_1, f_2)) + 2 * distance, distance


@pytest.fixture(scope="module")
def undivided():
    """The gradient and the distance for the whole batch."""
    return jax.grad(two_views_loss, has_aux=True)(KERNEL, *VIEWS)


def on_devices(axis_name):
    """Of each device the distance, and the mean over devices of the gradients of their losses."""

    def step(kernel, x_1, x_2):
        gradient, distance = jax.grad(two_views_loss, has_aux=True)(kernel, x_1, x_2, axis_name)
        return jax.lax.pmean(gradient, "batch"), distance

    shares = [x.reshape(DEVICES, -1, 3) for x in VIEWS]
    step = jax.pmap(
        step, "batch", in_axes=(None, 0, 0), out_axes=(None, 0), devices=jax.devices()[:DEVICES]
    )
    return step(KERNEL, *shares)


def test_mean_of_the_devices_gradients_is_that_of_the_undivided_batch(undivided):
    expected_gradient, expected_distance = undivided
    gradient, distances = on_devices("batch")
    np.testing.assert_allclose(distances, np.full(DEVICES, expected_distance), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_without_its_axis_the_feature_loss_is_that_of_the_parts(undivided):
    expected_gradient, expected_distance = undivided
    gradient, distances = on_devices(None)
    assert np.mean(distances) > 1.5 * expected_distance
    assert np.abs(gradient - expected_gradient).max() > 0.1


@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_shard_map_gives_the_gradient_of_the_undivided_batch(inside, undivided):
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("batch",))
    batch, whole = PartitionSpec("batch"), PartitionSpec()
    over_devices = partial(
        jax.shard_map, mesh=mesh, in_specs=(whole, batch, batch), out_specs=whole
    )

    def mean_loss(kernel, x_1, x_2):
        return jax.lax.pmean(two_views_loss(kernel, x_1, x_2, "batch")[0], "batch")

    gradient = over_devices(jax.grad(mean_loss)) if inside else jax.grad(over_devices(mean_loss))
    actual = jax.jit(gradient)(KERNEL, *VIEWS)
    np.testing.assert_allclose(actual, undivided[0], rtol=1e-4, atol=1e-6)
