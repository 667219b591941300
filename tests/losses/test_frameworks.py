"""The SD-Dropout loss under transformations, on several devices, and in other frameworks."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdd_jax import sd_dropout_loss

DEVICES = 4
RANDOM = np.random.default_rng(0)
FEATURES = jnp.asarray(RANDOM.normal(size=(8, 16)), jnp.float32)
KERNEL = jnp.asarray(RANDOM.normal(size=(16, 5)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), 8)


def per_example(kernel, features, keys):
    return sd_dropout_loss(features, lambda f: f @ kernel, keys, rate=0.3)


def mean_loss(kernel, features, keys):
    return per_example(kernel, features, keys).mean()


@pytest.fixture(scope="module")
def reference():
    """Losses, and the gradients of their mean, without transformations."""
    losses = per_example(KERNEL, FEATURES, KEYS)
    return losses, *jax.grad(mean_loss, argnums=(0, 1))(KERNEL, FEATURES, KEYS)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def mesh():
    return Mesh(np.array(jax.devices()[:DEVICES]), ("batch",))


def test_importing_the_package_loads_no_framework():
    heavy = ["flax", "orbax", "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "chex"]
    program = f"import sys, sdd_jax; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_jit(reference):
    losses, *gradients = reference
    assert_close(jax.jit(per_example)(KERNEL, FEATURES, KEYS), losses)
    computed = jax.jit(jax.grad(mean_loss, argnums=(0, 1)))(KERNEL, FEATURES, KEYS)
    for actual, expected in zip(computed, gradients, strict=True):
        assert_close(actual, expected)


def test_vmap_over_examples(reference):
    losses, kernel_grad, features_grad = reference
    one_example = jax.value_and_grad(per_example, argnums=(0, 1))
    values, gradients = jax.jit(jax.vmap(one_example, (None, 0, 0)))(KERNEL, FEATURES, KEYS)
    assert_close(values, losses)
    assert_close(gradients[0].mean(axis=0), kernel_grad)
    assert_close(gradients[1] / 8, features_grad)


def test_vmap_over_ensembles_of_heads(reference):
    kernels = jnp.stack([KERNEL, 2 * KERNEL])
    values = jax.jit(jax.vmap(per_example, (0, None, None)))(kernels, FEATURES, KEYS)
    assert_close(values[0], reference[0])
    assert_close(values[1], per_example(2 * KERNEL, FEATURES, KEYS))


def test_pmap_over_devices(reference):
    losses, kernel_grad, features_grad = reference

    def step(kernel, features, keys):
        gradients = jax.grad(mean_loss, argnums=(0, 1))(kernel, features, keys)
        mean = jax.lax.pmean(gradients[0], "batch")
        return per_example(kernel, features, keys), mean, gradients[1]

    axes = {"in_axes": (None, 0, 0), "out_axes": (0, None, 0)}
    step = jax.pmap(step, "batch", devices=jax.devices()[:DEVICES], **axes)
    shards = FEATURES.reshape(DEVICES, -1, 16), KEYS.reshape(DEVICES, -1)
    values, *gradients = step(KERNEL, *shards)
    assert_close(values.reshape(-1), losses)
    assert_close(gradients[0], kernel_grad)
    assert_close(gradients[1].reshape(8, 16) / DEVICES, features_grad)


def test_shard_map_over_devices(reference):
    losses, kernel_grad, features_grad = reference
    batch, whole = PartitionSpec("batch"), PartitionSpec()
    sharded = jax.shard_map(
        per_example, mesh=mesh(), in_specs=(whole, batch, batch), out_specs=batch
    )
    values, pullback = jax.vjp(jax.jit(sharded), KERNEL, FEATURES, KEYS)
    assert_close(values, losses)
    gradients = pullback(jnp.full((8,), 1 / 8))
    assert_close(gradients[0], kernel_grad)
    assert_close(gradients[1], features_grad)


def test_batch_sharded_over_devices_under_jit(reference):
    losses, kernel_grad, _ = reference
    batch = NamedSharding(mesh(), PartitionSpec("batch"))
    features, keys = jax.device_put((FEATURES, KEYS), batch)
    values = jax.jit(per_example)(KERNEL, features, keys)
    assert values.sharding.is_equivalent_to(batch, values.ndim)
    assert_close(values, losses)
    assert_close(jax.jit(jax.grad(mean_loss))(KERNEL, features, keys), kernel_grad)


class Network(nn.Module):
    """A user's linen module that computes the loss in its own forward pass."""

    def setup(self):
        self.backbone, self.classifier = nn.Dense(16), nn.Dense(5, use_bias=False)

    def __call__(self, x, keys):
        features = nn.relu(self.backbone(x))
        return features, sd_dropout_loss(features, self.classifier, keys, rate=0.3)


def test_linen_layer_as_head(reference):
    dense = nn.Dense(5, use_bias=False)

    def loss(variables):
        head = lambda f: dense.apply(variables, f)  # noqa: E731
        return sd_dropout_loss(FEATURES, head, KEYS, rate=0.3)

    variables = {"params": {"kernel": KERNEL}}
    assert_close(loss(variables), reference[0])
    gradient = jax.grad(lambda v: loss(v).mean())(variables)["params"]["kernel"]
    assert_close(gradient, reference[1])


def test_linen_submodule_as_head_within_a_module():
    variables = Network().init(jax.random.key(1), FEATURES, KEYS)
    assert variables["params"].keys() == {"backbone", "classifier"}
    features, loss = Network().apply(variables, FEATURES, KEYS)
    kernel = variables["params"]["classifier"]["kernel"]
    assert_close(loss, per_example(kernel, features, KEYS))

    def mean(params):
        return Network().apply({"params": params}, FEATURES, KEYS)[1].mean()

    gradient = jax.jit(jax.grad(mean))(variables["params"])["classifier"]["kernel"]
    assert_close(gradient, jax.grad(mean_loss)(kernel, features, KEYS))


def test_nnx_layer_as_head():
    linear = nnx.Linear(16, 5, use_bias=False, rngs=nnx.Rngs(0))

    def loss(linear):
        return sd_dropout_loss(FEATURES, linear, KEYS, rate=0.3)

    kernel = linear.kernel[...]
    assert_close(loss(linear), per_example(kernel, FEATURES, KEYS))
    gradient = nnx.jit(nnx.grad(lambda linear: loss(linear).mean()))(linear)
    assert_close(gradient["kernel"][...], jax.grad(mean_loss)(kernel, FEATURES, KEYS))
