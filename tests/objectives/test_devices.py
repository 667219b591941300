"""What objectives carry from step to step does not depend on how many devices share the batch."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdd_jax import models, objectives
from sdd_jax.data import images
from sdd_jax.data.engines import RawBatch
from sdd_jax.devices import AXIS, mapped
from sdd_jax.training import state as train_state
from sdd_jax.training.optimizers import Optimizer
from sdd_jax.training.step import train_step

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (32, 4, 4, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 32).astype(np.int32)


def raw_batch(rows):
    rows = np.asarray(rows, np.int32)
    views = (IMAGES[rows], IMAGES[rows[::-1]])
    return RawBatch(views, LABELS[rows], rows, np.arange(len(rows), dtype=np.int32))


@cache
def trained(name, devices, parallel="pmap"):
    """States and metrics of three steps, whose batches overlap by half."""
    axis_name = AXIS if devices > 1 else None
    options = {"name": "mlp", "width": 8, "depth": 2, "dropout_rate": 0.3}
    model = models.build(options, num_classes=3, axis_name=axis_name)
    context = {"model": model, "image_shape": (4, 4, 1), "axis_name": axis_name}
    objective = objectives.objectives.build({"name": name}, **context)
    objective = objectives.with_sd_dropout(objective, 0.5)
    optimizer = Optimizer(optax.sgd(0.1, momentum=0.9), ema=0.9)
    memory = objective.memory and objective.memory.create(jnp.asarray(LABELS), 3, 8)
    state = train_state.create(
        model,
        optimizer,
        seed=0,
        image_shape=(4, 4, 1),
        auxiliary=objective.auxiliary,
        memory=memory,
    )
    step = partial(
        train_step,
        model=model,
        objective=objective,
        optimizer=optimizer,
        prepare=lambda keys, raw: images.normalise(
            raw, np.zeros(1, np.float32), np.ones(1, np.float32)
        ),
        seed=0,
        steps_per_epoch=2,
        total_steps=6,
        axis_name=axis_name,
    )
    call = jax.jit(step) if devices == 1 else mapped(step, in_axes=(None, 0), parallel=parallel)
    results = []
    for start in (0, 4, 8):
        raw = raw_batch(range(start, start + 8))
        if devices > 1:
            raw = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), raw)
        state, metrics = call(state, raw)
        results.append(jax.device_get((state, metrics)))
    return results


# A memory that is gathered, a second network with batch norm, a loss with a collective; the parallel
# transformations differ in nothing else.
@pytest.mark.parametrize("name", ["ps_kd", "byot", "ddgsd"])
def test_shard_map_makes_the_steps_of_pmap(name):
    pmap, shard_map = (trained(name, 4, parallel) for parallel in ("pmap", "shard_map"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), pmap, shard_map)


@pytest.mark.parametrize("name", ["ps_kd", "dlb", "dml", "byot", "ddgsd", "cs_kd"])
def test_four_devices_make_the_steps_of_one(name):
    one, four = trained(name, 1), trained(name, 4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), one, four)
    if name == "ps_kd":
        memory, labels = four[0][0].memory, np.eye(3)[LABELS]
        np.testing.assert_array_equal(memory[8:], labels[8:])  # images not seen yet
        assert np.all(np.abs(memory[:8] - labels[:8]).sum(-1) > 1e-3)
        np.testing.assert_allclose(memory.sum(-1), 1, rtol=1e-5)
    if name == "dlb":
        (first, metrics), (second, later), _ = four
        np.testing.assert_array_equal(first.memory["index"], [4, 5, 6, 7])
        np.testing.assert_array_equal(second.memory["index"], [8, 9, 10, 11])
        assert metrics["dlb"] == 0  # nothing is repeated in the first batch
        assert later["dlb"] > 0
