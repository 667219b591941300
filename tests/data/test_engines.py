"""Data order and the resident engine."""

import jax
import numpy as np
import pytest

from sdd_jax.data import Split
from sdd_jax.data.engines import engines
from sdd_jax.data.samplers import samplers

SPLIT = Split(
    np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1), dtype=np.uint8),
    np.arange(50, dtype=np.int32),
)


def make(seed=0):
    return engines.build(
        {"name": "resident"}, split=SPLIT, batch_size=12, sampler="uniform", seed=seed
    )


def test_an_epoch_holds_no_example_twice_and_whole_batches_only():
    index = samplers.get("uniform")(SPLIT.labels, 12, np.random.default_rng(0))
    assert index.shape == (4, 12, 1)
    assert len(np.unique(index)) == 48


def test_the_order_is_a_function_of_seed_and_epoch():
    order = make().inputs(0, 8)["index"]
    np.testing.assert_array_equal(order, make().inputs(0, 8)["index"])
    np.testing.assert_array_equal(order[:, 5:], make().inputs(5, 8)["index"])  # as after a resume
    assert not np.array_equal(order[:, :4], order[:, 4:])  # another epoch
    assert not np.array_equal(order, make(seed=1).inputs(0, 8)["index"])


def test_devices_share_the_global_batch_in_order():
    inputs = make().inputs(2, 4)
    assert inputs["index"].shape == (4, 2, 3, 1)  # four devices, two steps, three examples each
    np.testing.assert_array_equal(inputs["position"][:, 0].ravel(), np.arange(12))


def test_gather_takes_images_and_labels_at_the_indices():
    engine = make()
    inputs = jax.tree.map(lambda x: x[1, 0], engine.inputs(0, 1))
    raw = jax.jit(engine.gather)(engine.resident, inputs)
    index = inputs["index"][:, 0]
    np.testing.assert_array_equal(raw.views[0], SPLIT.images[index])
    np.testing.assert_array_equal(raw.labels, index)
    np.testing.assert_array_equal(raw.index, index)
    np.testing.assert_array_equal(raw.position, [3, 4, 5])


def test_samplers_draw_one_place_for_each_view():
    @samplers.register("neighbours_in_test")
    def neighbours(labels, batch_size, rng):
        first = rng.permutation(len(labels))[:batch_size]
        return np.stack([first, (first + 1) % len(labels)], -1)[None].astype(np.int32)

    engine = engines.build(
        {"name": "resident"}, split=SPLIT, batch_size=12, sampler="neighbours_in_test", seed=0
    )
    inputs = jax.tree.map(lambda x: x[0, 0], engine.inputs(0, 1))
    raw = engine.gather(engine.resident, inputs)
    assert len(raw.views) == 2
    np.testing.assert_array_equal(raw.views[1], SPLIT.images[(raw.index + 1) % 50])


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match=r"config.engine.name: must be one of .*resident.*'nope'"):
        engines.get("nope")
