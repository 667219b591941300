"""Losses at the locations of an example: padding, means over devices, masks shared by locations."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import sdd_jax

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "tasks.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
RANDOM = np.random.default_rng(0)
KERNEL = jnp.asarray(RANDOM.normal(size=(6, 4)), jnp.float32)
LENGTHS = np.array([5, 5, 4, 1, 0, 0, 2, 1])  # in pairs, one device has none
VALID = np.arange(5) < LENGTHS[:, None]
LABELS = np.where(VALID, RANDOM.integers(4, size=(8, 5)), -100).astype(np.int32)
KEYS = jax.random.split(jax.random.key(0), 8)
BATCH = *(x.astype(np.float32) for x in RANDOM.normal(size=(2, 8, 5, 6))), LABELS, VALID
DEVICES = jax.devices()[:8]
MESH = Mesh(np.array(DEVICES), ("batch",))
SHARDED, WHOLE = PartitionSpec("batch"), PartitionSpec()


def location_losses(kernel, batch):
    """Cross-entropy and SD-Dropout of a pair of features, and where they count."""
    u, v, labels, valid = batch
    logits = [u @ kernel, v @ kernel]
    sdd = sdd_jax.sd_dropout_loss_from_logits(logits, where=valid[..., None])
    return sdd_jax.cross_entropy(logits[0], labels) + sdd, valid


def as_documented(part, **names):
    """Loss and gradient by the block of docs/tasks.md that contains ``part``."""
    (block,) = [block for block in BLOCKS if part in block]
    names |= {"jax": jax, "jnp": jnp, "sdd_jax": sdd_jax, "location_losses": location_losses}
    exec(block, names)
    return names["loss"], names["gradients"]


@pytest.fixture(scope="module")
def reference():
    """Mean over the locations that are not padding, picked out of losses that know of none."""

    def mean_and_losses(kernel):
        losses, _ = location_losses(kernel, (*BATCH[:3], np.ones((8, 5), bool)))
        return losses[VALID].mean(), losses

    (mean, losses), gradient = jax.jit(jax.value_and_grad(mean_and_losses, has_aux=True))(KERNEL)
    # Otherwise the mean of the means of the devices would pass for the mean.
    parts = [np.asarray(losses)[i : i + 2][VALID[i : i + 2]].mean() for i in (0, 2, 6)]
    assert abs(np.mean(parts) / mean - 1) > 0.05
    return mean, gradient


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------- the mean


def test_mean_over_a_padded_batch_sharded_under_jit(reference):
    def mean(kernel, batch):
        total, count = sdd_jax.sum_and_count(*location_losses(kernel, batch))
        return total / count

    batch = jax.device_put(BATCH, NamedSharding(MESH, SHARDED))
    assert_close(jax.jit(jax.value_and_grad(mean))(KERNEL, batch), reference)


def step(kernel, batch):
    """On each device."""
    return as_documented("jax.lax.psum", params=kernel, batch=batch)


def test_mean_over_devices_in_pmap(reference):
    parts = [x.reshape(len(DEVICES), -1, *x.shape[1:]) for x in BATCH]
    over_devices = jax.pmap(step, "batch", in_axes=(None, 0), out_axes=None)
    assert_close(over_devices(KERNEL, parts), reference)


def test_mean_over_devices_in_shard_map(reference):
    over_devices = jax.shard_map(step, mesh=MESH, in_specs=(WHOLE, SHARDED), out_specs=WHOLE)
    assert_close(jax.jit(over_devices)(KERNEL, BATCH), reference)


def test_mean_over_the_parts_of_an_accumulated_gradient(reference):
    @jax.jit
    def accumulated(batches):
        return as_documented("jax.lax.scan", params=KERNEL, batches=batches)

    assert_close(accumulated([x.reshape(4, 2, *x.shape[1:]) for x in BATCH]), reference)


# --------------------------------------------------------------------------- sums and counts


def test_sum_and_count_take_masks_and_weights():
    losses = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], np.float32)
    mask = np.array([[True, False, True], [False, False, True]])
    for weights in (mask, mask.astype(np.int32), jnp.asarray(mask, jnp.bfloat16)):
        assert_close(sdd_jax.sum_and_count(losses, weights), (37.0, 3.0))
    assert_close(sdd_jax.sum_and_count(losses, mask * np.float32(0.25)), (37 / 4, 3 / 4))
    total, count = sdd_jax.sum_and_count(jnp.asarray(losses, jnp.bfloat16), mask)
    assert total.dtype == count.dtype == jnp.float32
    assert_close(sdd_jax.sum_and_count(losses, np.zeros_like(mask)), (0.0, 0.0))


def test_losses_without_weight_are_ignored_whatever_they_are():
    losses, mask = jnp.asarray([1.0, jnp.nan, jnp.inf, 2.0]), jnp.asarray([1, 0, 0, 1])
    total, gradient = jax.value_and_grad(lambda x: sdd_jax.sum_and_count(x, mask)[0])(losses)
    assert total == 3
    np.testing.assert_array_equal(gradient, mask)


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 1), (2,)], ids=str)
def test_weights_do_not_broadcast(shape):
    with pytest.raises(ValueError, match=r"losses, weights must have the same shape, got \(2, 3\)"):
        sdd_jax.sum_and_count(jnp.ones((2, 3)), jnp.ones(shape))


# --------------------------------------------------------------------------- masks


def test_channels_are_dropped_at_all_locations_of_an_example():
    """So that equal features have equal losses at all locations, and others in the next example."""
    features = jnp.broadcast_to(jnp.asarray(BATCH[0][:, None, :1]), (8, 2, 3, 6))
    options = {"rate": 0.5, "broadcast_dims": (1, 2)}

    @jax.jit
    def losses(keys):
        head = lambda f: f @ KERNEL  # noqa: E731
        loss = sdd_jax.sd_dropout_loss(features, head, keys, **options)
        clean_student = sdd_jax.sd_dropout_clean_student_loss(features, head, keys, **options)
        linear = sdd_jax.linear_sd_dropout_loss(features, KERNEL, None, keys, **options)
        return loss, clean_student, linear

    loss, clean_student, linear = losses(KEYS)
    np.testing.assert_allclose(linear, loss, rtol=1e-4, atol=1e-6)
    for values in (loss, clean_student):
        np.testing.assert_array_equal(values, np.broadcast_to(values[:, :1, :1], values.shape))
        assert len(np.unique(values)) >= 7  # two masks may be the same
