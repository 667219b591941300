"""Losses of a batch that is sharded over an explicit mesh, the default of ``jax.make_mesh``."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sdd_jax

RANDOM = np.random.default_rng(0)
FEATURES = jnp.asarray(RANDOM.normal(size=(8, 6)), jnp.float32)
KERNEL = jnp.asarray(RANDOM.normal(size=(6, 21)), jnp.float32)
BIAS = jnp.asarray(RANDOM.normal(size=21), jnp.float32)
LABELS = jnp.asarray(RANDOM.integers(21, size=8), jnp.int32)
KEYS = jax.random.split(jax.random.key(0), 8)
WHOLE = PartitionSpec()

LINEAR = {
    "linear_cross_entropy": lambda f, w, b, y, k: sdd_jax.linear_cross_entropy(
        f, w, b, y, chunk_size=8
    ),
    "linear_sd_dropout_loss": lambda f, w, b, y, k: sdd_jax.linear_sd_dropout_loss(
        f, w, b, k, chunk_size=8
    ),
}
LOSSES = LINEAR | {
    "sd_dropout_loss": lambda f, w, b, y, k: sdd_jax.sd_dropout_loss(f, head(w, b), k),
    "cross_entropy": lambda f, w, b, y, k: sdd_jax.cross_entropy(head(w, b)(f), y),
    "label_smoothing": lambda f, w, b, y, k: sdd_jax.label_smoothing(head(w, b)(f), y),
    "generalised_cross_entropy": lambda f, w, b, y, k: sdd_jax.generalised_cross_entropy(
        head(w, b)(f), y
    ),
    "dropout": lambda f, w, b, y, k: head(w, b)(sdd_jax.dropout(k, f, rate=0.3)).sum(axis=-1),
}


def head(kernel, bias):
    def logits(features):
        logits = features @ kernel
        return logits + jnp.broadcast_to(bias, logits.shape)

    return logits


def losses_and_gradients(loss, *args):
    """Per-example losses, and the gradients of their weighted sum."""

    def weighted(features, kernel, bias):
        losses = loss(features, kernel, bias, *args[3:])
        return jnp.sum(losses * jnp.arange(1.0, 9.0)), losses

    gradients, losses = jax.grad(weighted, (0, 1, 2), has_aux=True)(*args[:3])
    return losses, gradients


def assert_sharded_equals_unsharded(loss, batch, kernel=WHOLE, compiled=True):
    """``batch`` and ``kernel`` are the partition specs of the examples and the kernel; None: no mesh."""
    args = FEATURES, KERNEL, BIAS, LABELS, KEYS
    specs = batch, kernel, WHOLE, batch, batch
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    sharded = [
        x if spec is None else jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(args, specs, strict=True)
    ]
    run = partial(losses_and_gradients, loss)
    expected = jax.jit(run)(*args)
    with jax.set_mesh(mesh):
        actual = (jax.jit(run) if compiled else run)(*sharded)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-5 * max(1, np.abs(e).max()))
    losses, gradients = actual
    assert losses.sharding.spec[0] == batch[0]
    for gradient, spec in zip(gradients, specs, strict=False):
        expected = NamedSharding(mesh, WHOLE if spec is None else spec)
        assert gradient.sharding.is_equivalent_to(expected, gradient.ndim)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_sharded_batch_gives_the_losses_and_gradients_of_the_whole(name, compiled):
    assert_sharded_equals_unsharded(LOSSES[name], PartitionSpec("data"), compiled=compiled)


@pytest.mark.parametrize("name", LINEAR)
def test_the_kernel_may_be_on_no_mesh(name):
    assert_sharded_equals_unsharded(LOSSES[name], PartitionSpec("data"), kernel=None)


@pytest.mark.parametrize(
    ("batch", "kernel"),
    [
        (PartitionSpec(("data", "model")), WHOLE),
        (PartitionSpec("data"), PartitionSpec("data")),
        (PartitionSpec("data"), PartitionSpec("model")),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", LINEAR)
def test_the_kernel_may_be_sharded_over_its_features(name, batch, kernel):
    assert_sharded_equals_unsharded(LOSSES[name], batch, kernel)


def test_kept_logits_of_a_sharded_batch():
    def loss(features, kernel, bias, labels, key):
        options = {"chunk_size": 8, "kept_classes": 13}
        ce = sdd_jax.linear_cross_entropy(features, kernel, bias, labels, **options)
        return ce + sdd_jax.linear_sd_dropout_loss(features, kernel, bias, key, **options)

    assert_sharded_equals_unsharded(loss, PartitionSpec("data"))
