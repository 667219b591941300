"""Self-distillation losses, compared with numpy and closed forms, and on several devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from scipy.special import rel_entr, softmax

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

# Loss -> its default temperature. The first argument of ONE_WAY learns from the second; both arguments
# of MUTUAL learn from each other; R-Drop stops no gradient.
ONE_WAY = {cs_kd_loss: 4.0, dlb_loss: 3.0, byot_loss: 3.0}
MUTUAL = {ddgsd_loss: 3.0, dml_loss: 3.0}
DEFAULTS = ONE_WAY | MUTUAL | {r_drop_loss: 1.0}


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def numpy_kl(target, prediction, temperature):
    p, q = softmax(target / temperature, axis=-1), softmax(prediction / temperature, axis=-1)
    return rel_entr(p, q).sum(axis=-1)


def numpy_loss(loss, a, b, temperature):
    if loss in ONE_WAY:
        return temperature**2 * numpy_kl(b, a, temperature)
    both = numpy_kl(a, b, temperature) + numpy_kl(b, a, temperature)
    return both / 2 if loss is r_drop_loss else temperature**2 * both


def gradients(loss, a, b, **options):
    return jax.grad(lambda a, b: loss(a, b, **options).sum(), argnums=(0, 1))(a, b)


@pytest.mark.parametrize("loss", DEFAULTS)
def test_loss_equals_numpy_also_at_its_default_temperature(loss):
    p, q = float32(P, Q)
    for temperature in (0.5, 1, 6.0):
        value = loss(p, q, temperature=temperature)
        np.testing.assert_allclose(value, numpy_loss(loss, P, Q, temperature), rtol=2e-5)
    np.testing.assert_allclose(loss(p, q), numpy_loss(loss, P, Q, DEFAULTS[loss]), rtol=2e-5)


def test_losses_of_known_posteriors():
    """The KL divergence is log(2) / 4 either way."""
    p, q = jnp.log(jnp.asarray([0.5, 0.25, 0.25])), jnp.log(jnp.asarray([0.25, 0.25, 0.5]))
    for loss in DEFAULTS:
        expected = np.log(2) / 2 if loss in MUTUAL else np.log(2) / 4
        np.testing.assert_allclose(loss(p, q, temperature=1.0), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [*ONE_WAY, *MUTUAL])
def test_a_student_gets_the_gradient_towards_its_stopped_teacher(loss):
    gradient_1, gradient_2 = gradients(loss, *float32(P, Q), temperature=2.0)
    expected = 2 * (softmax(P / 2, axis=-1) - softmax(Q / 2, axis=-1))
    np.testing.assert_allclose(gradient_1, expected, atol=1e-6)
    np.testing.assert_allclose(gradient_2, -expected if loss in MUTUAL else 0, atol=1e-6)


def test_r_drop_stops_no_gradient():
    gradient_1, gradient_2 = gradients(r_drop_loss, *float32(P, Q), temperature=2.0)
    p, q = softmax(P / 2, axis=-1), softmax(Q / 2, axis=-1)
    target_1 = p * (np.log(p / q) - numpy_kl(P, Q, 2.0)[:, None])
    target_2 = q * (np.log(q / p) - numpy_kl(Q, P, 2.0)[:, None])
    np.testing.assert_allclose(gradient_1, (p - q + target_1) / 2 / 2, atol=1e-6)
    np.testing.assert_allclose(gradient_2, (q - p + target_2) / 2 / 2, atol=1e-6)


def test_byot_feature_loss_is_the_mean_squared_difference_to_a_stopped_teacher():
    value = byot_feature_loss(*float32(P, Q))
    np.testing.assert_allclose(value, ((P - Q) ** 2).mean(axis=-1), rtol=1e-5)
    mid_grad, final_grad = gradients(byot_feature_loss, *float32(P, Q))
    np.testing.assert_allclose(mid_grad, 2 * (P - Q) / 5, rtol=1e-5)
    np.testing.assert_array_equal(final_grad, 0)


def test_ddgsd_feature_loss_is_the_squared_distance_of_the_mean_features():
    difference = P.mean(axis=0) - Q.mean(axis=0)
    value = ddgsd_feature_loss(*float32(P, Q))
    assert value.shape == ()
    np.testing.assert_allclose(value, np.sum(difference**2), rtol=1e-5)
    gradient_1, gradient_2 = gradients(ddgsd_feature_loss, *float32(P, Q))
    expected = np.broadcast_to(2 * difference / 6, (6, 5))
    np.testing.assert_allclose(gradient_1, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient_2, -expected, rtol=1e-4)
    # It ignores the order of the images.
    np.testing.assert_allclose(ddgsd_feature_loss(*float32(P, P[::-1])), 0, atol=1e-10)


def test_ddgsd_feature_loss_is_computed_in_float32_or_float64():
    p, q = jnp.asarray(P, jnp.bfloat16), jnp.asarray(Q, jnp.bfloat16)
    value = ddgsd_feature_loss(p, q)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, ddgsd_feature_loss(*float32(p, q)))
    with jax.enable_x64(True):
        assert ddgsd_feature_loss(jnp.asarray(P), jnp.asarray(Q)).dtype == jnp.float64


# Two views sharded over devices: a term that is a mean over examples, and the feature term.
VIEWS = float32(*RANDOM.normal(size=(2, 8, 3)))
KERNEL = jnp.asarray(RANDOM.normal(size=(3, 4)), jnp.float32)


def two_views_loss(kernel, x_1, x_2, axis_name=None):
    f_1, f_2 = jnp.tanh(x_1 @ kernel), jnp.tanh(x_2 @ kernel)
    distance = ddgsd_feature_loss(f_1, f_2, axis_name=axis_name)
    return jnp.mean(ddgsd_loss(f_1, f_2)) + 2 * distance, distance


@pytest.fixture(scope="module")
def whole_batch():
    """Gradient and distance for the whole batch."""
    return jax.grad(two_views_loss, has_aux=True)(KERNEL, *VIEWS)


def on_devices(axis_name):
    """Returns the mean of the devices' gradients, and the distance on each device."""

    def step(kernel, x_1, x_2):
        gradient, distance = jax.grad(two_views_loss, has_aux=True)(kernel, x_1, x_2, axis_name)
        return jax.lax.pmean(gradient, "batch"), distance

    shards = [x.reshape(DEVICES, -1, 3) for x in VIEWS]
    step = jax.pmap(
        step, "batch", in_axes=(None, 0, 0), out_axes=(None, 0), devices=jax.devices()[:DEVICES]
    )
    return step(KERNEL, *shards)


def test_the_mean_of_the_devices_gradients_is_the_gradient_of_the_whole_batch(whole_batch):
    expected_gradient, expected_distance = whole_batch
    gradient, distances = on_devices("batch")
    np.testing.assert_allclose(distances, np.full(DEVICES, expected_distance), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_without_axis_name_the_feature_loss_is_computed_per_device(whole_batch):
    expected_gradient, expected_distance = whole_batch
    gradient, distances = on_devices(None)
    assert np.mean(distances) > 1.5 * expected_distance
    assert np.abs(gradient - expected_gradient).max() > 0.1


@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_shard_map_gives_the_gradient_of_the_whole_batch(inside, whole_batch):
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("batch",))
    batch, whole = PartitionSpec("batch"), PartitionSpec()
    over_devices = partial(
        jax.shard_map, mesh=mesh, in_specs=(whole, batch, batch), out_specs=whole
    )

    def mean_loss(kernel, x_1, x_2):
        return jax.lax.pmean(two_views_loss(kernel, x_1, x_2, "batch")[0], "batch")

    gradient = over_devices(jax.grad(mean_loss)) if inside else jax.grad(over_devices(mean_loss))
    actual = jax.jit(gradient)(KERNEL, *VIEWS)
    np.testing.assert_allclose(actual, whole_batch[0], rtol=1e-4, atol=1e-6)
