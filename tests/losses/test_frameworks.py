"""Losses under transformations, on several devices, and in other frameworks."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdd_jax import ddgsd_feature_loss, ddgsd_loss, sd_dropout_loss

RANDOM = np.random.default_rng(0)
FEATURES, SECOND_VIEW = jnp.asarray(RANDOM.normal(size=(2, 8, 16)), jnp.float32)
KERNEL = jnp.asarray(RANDOM.normal(size=(16, 5)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), 8)
DEVICES = jax.devices()[:4]
MESH = Mesh(np.array(DEVICES), ("batch",))
BATCH, WHOLE = PartitionSpec("batch"), PartitionSpec()


def per_example(kernel, features, keys):
    return sd_dropout_loss(features, lambda f: f @ kernel, keys, rate=0.3)


def loss_and_gradients(kernel, features, keys):
    """Per-example losses, and the gradients of their mean."""

    def mean(kernel, features):
        losses = per_example(kernel, features, keys)
        return losses.mean(), losses

    gradients, losses = jax.grad(mean, (0, 1), has_aux=True)(kernel, features)
    return losses, *gradients


@pytest.fixture(scope="module")
def reference():
    """Without transformations."""
    return loss_and_gradients(KERNEL, FEATURES, KEYS)


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-6)


def test_importing_the_package_loads_no_framework():
    heavy = ["flax", "orbax", "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "chex"]
    program = f"import sys, sdd_jax; print([m for m in {heavy} if m in sys.modules])"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_jit(reference):
    assert_close(jax.jit(loss_and_gradients)(KERNEL, FEATURES, KEYS), reference)


def test_vmap_over_examples(reference):
    losses, kernel_grad, features_grad = jax.jit(jax.vmap(loss_and_gradients, (None, 0, 0)))(
        KERNEL, FEATURES, KEYS
    )
    assert_close((losses, kernel_grad.mean(axis=0), features_grad / 8), reference)


def test_vmap_over_ensembles_of_heads(reference):
    heads = jnp.stack([KERNEL, 2 * KERNEL])
    losses = jax.jit(jax.vmap(per_example, (0, None, None)))(heads, FEATURES, KEYS)
    assert_close(losses, jnp.stack([reference[0], per_example(2 * KERNEL, FEATURES, KEYS)]))


def test_pmap_over_devices(reference):
    def step(kernel, features, keys):
        losses, kernel_grad, features_grad = loss_and_gradients(kernel, features, keys)
        return losses, jax.lax.pmean(kernel_grad, "batch"), features_grad / len(DEVICES)

    axes = {"in_axes": (None, 0, 0), "out_axes": (0, None, 0)}
    step = jax.pmap(step, "batch", devices=DEVICES, **axes)
    losses, *gradients = step(KERNEL, FEATURES.reshape(4, 2, 16), KEYS.reshape(4, 2))
    assert_close((losses.reshape(8), gradients[0], gradients[1].reshape(8, 16)), reference)


def test_shard_map_over_devices(reference):
    sharded = jax.shard_map(per_example, mesh=MESH, in_specs=(WHOLE, BATCH, BATCH), out_specs=BATCH)
    losses, pullback = jax.vjp(jax.jit(sharded), KERNEL, FEATURES, KEYS)
    assert_close((losses, *pullback(jnp.full((8,), 1 / 8))[:2]), reference)


def test_batch_sharded_over_devices_under_jit(reference):
    batch = NamedSharding(MESH, BATCH)
    features, keys = jax.device_put((FEATURES, KEYS), batch)
    losses, *gradients = jax.jit(loss_and_gradients)(KERNEL, features, keys)
    assert losses.sharding.is_equivalent_to(batch, losses.ndim)
    assert_close((losses, *gradients), reference)


# --------------------------------------------------------------------------- a loss of the batch


def test_ddgsd_feature_loss_is_the_squared_distance_of_the_mean_features():
    views = np.asarray(FEATURES, np.float64), np.asarray(SECOND_VIEW, np.float64)
    difference = views[0].mean(axis=0) - views[1].mean(axis=0)
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        with jax.enable_x64(True):
            value = ddgsd_feature_loss(*(jnp.asarray(x, dtype) for x in views))
        assert value.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        np.testing.assert_allclose(value, np.sum(difference**2), rtol=jnp.finfo(dtype).eps * 8)
    gradients = jax.grad(ddgsd_feature_loss, (0, 1))(FEATURES, SECOND_VIEW)
    expected = np.broadcast_to(2 * difference / 8, (8, 16))
    assert_close(gradients, (expected, -expected))


def two_views_loss(kernel, view_1, view_2, axis_name=None):
    f_1, f_2 = jnp.tanh(view_1 @ kernel), jnp.tanh(view_2 @ kernel)
    distance = ddgsd_feature_loss(f_1, f_2, axis_name=axis_name)
    return jnp.mean(ddgsd_loss(f_1, f_2)) + 2 * distance, distance


@pytest.fixture(scope="module")
def whole_batch():
    """Gradient and distance for the whole batch."""
    return jax.grad(two_views_loss, has_aux=True)(KERNEL, FEATURES, SECOND_VIEW)


@pytest.mark.parametrize("axis_name", ["batch", None])
def test_feature_loss_is_that_of_the_whole_batch_given_the_axis_name(axis_name, whole_batch):
    def step(*args):
        gradient, distance = jax.grad(two_views_loss, has_aux=True)(*args, axis_name)
        return jax.lax.pmean(gradient, "batch"), distance

    axes = {"in_axes": (None, 0, 0), "out_axes": (None, 0)}
    step = jax.pmap(step, "batch", devices=DEVICES, **axes)
    gradient, distances = step(KERNEL, *(x.reshape(4, 2, 16) for x in (FEATURES, SECOND_VIEW)))
    if axis_name:
        assert_close((gradient, distances), (whole_batch[0], jnp.full(4, whole_batch[1])))
    else:  # each device has its own distance
        assert np.mean(distances) > 1.5 * whole_batch[1]
        assert np.abs(gradient - whole_batch[0]).max() > 0.1


@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_feature_loss_in_shard_map_has_the_gradient_of_the_whole_batch(inside, whole_batch):
    def over_devices(fn):
        specs = {"in_specs": (WHOLE, BATCH, BATCH), "out_specs": WHOLE}
        return jax.shard_map(fn, mesh=MESH, **specs)

    def mean_loss(*args):
        return jax.lax.pmean(two_views_loss(*args, "batch")[0], "batch")

    gradient = over_devices(jax.grad(mean_loss)) if inside else jax.grad(over_devices(mean_loss))
    assert_close(jax.jit(gradient)(KERNEL, FEATURES, SECOND_VIEW), whole_batch[0])


# --------------------------------------------------------------------------- linen and nnx


class Network(nn.Module):
    """A user's linen module that computes the loss in its own forward pass."""

    @nn.compact
    def __call__(self, x, keys):
        features = nn.relu(nn.Dense(16)(x))
        classifier = nn.Dense(5, use_bias=False, name="classifier")
        return features, sd_dropout_loss(features, classifier, keys, rate=0.3)


def test_linen_layer_as_head(reference):
    dense = nn.Dense(5, use_bias=False)

    def mean(variables):
        losses = sd_dropout_loss(FEATURES, lambda f: dense.apply(variables, f), KEYS, rate=0.3)
        return losses.mean(), losses

    gradient, losses = jax.grad(mean, has_aux=True)({"params": {"kernel": KERNEL}})
    assert_close((losses, gradient), reference[:2])


def test_linen_submodule_as_head_within_a_module():
    variables = Network().init(jax.random.key(1), FEATURES, KEYS)
    assert variables["params"].keys() == {"Dense_0", "classifier"}

    def mean(variables):
        features, losses = Network().apply(variables, FEATURES, KEYS)
        return losses.mean(), (features, losses)

    gradient, (features, losses) = jax.jit(jax.grad(mean, has_aux=True))(variables)
    kernel = variables["params"]["classifier"]["kernel"]
    expected = loss_and_gradients(kernel, features, KEYS)[:2]
    assert_close((losses, gradient["params"]["classifier"]), expected)


def test_nnx_layer_as_head():
    linear = nnx.Linear(16, 5, use_bias=False, rngs=nnx.Rngs(0))

    def mean(linear):
        return sd_dropout_loss(FEATURES, linear, KEYS, rate=0.3).mean()

    losses, kernel_grad, _ = loss_and_gradients(linear.kernel[...], FEATURES, KEYS)
    value, gradient = nnx.jit(nnx.value_and_grad(mean))(linear)
    assert_close((value, gradient["kernel"][...]), (losses.mean(), kernel_grad))
