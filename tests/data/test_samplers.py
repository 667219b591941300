"""Samplers: the examples of a batch; and the order of the batches over epochs and devices."""

import itertools
import pickle

import numpy as np
import pytest

from sdd_jax.data.samplers import BatchOrder, samplers
from sdd_jax.errors import InputError

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 1, 1, 3, 0, 2, 2, 0, 1, 0, 2, 1, 0, 2])


def draw(name, seed=0, batch_size=4):
    return samplers.get(name)(LABELS, batch_size, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ["uniform", "two_views", "same_class", "overlapping"])
def test_batches_are_a_function_of_the_generator(name):
    batches = draw(name)
    assert batches.dtype == np.int32
    assert batches.shape[1] == 4
    np.testing.assert_array_equal(batches, draw(name))
    assert not np.array_equal(batches, draw(name, seed=1))


@pytest.mark.parametrize(("name", "views"), [("uniform", 1), ("two_views", 2), ("same_class", 2)])
def test_an_epoch_draws_every_example_once_and_drops_an_incomplete_batch(name, views):
    batches = draw(name)
    assert batches.shape == (5, 4, views)  # of 21 examples
    assert len(np.unique(batches[..., 0])) == 20


def test_two_views_are_of_one_example():
    batches = draw("two_views")
    np.testing.assert_array_equal(batches[..., 0], batches[..., 1])


def test_partners_are_uniform_over_the_other_examples_of_the_class():
    counts = np.zeros((len(LABELS), len(LABELS)))
    for seed in range(4000):
        pairs = draw("same_class", seed).reshape(-1, 2)
        np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    for i, label in enumerate(LABELS):
        others = (label == LABELS) & (np.arange(len(LABELS)) != i)
        if not others.any():
            others[i] = True  # alone in its class: its own partner
        expected = others / others.sum()
        np.testing.assert_array_equal(counts[i] > 0, others)
        np.testing.assert_allclose(counts[i] / counts[i].sum(), expected, atol=0.05)


def test_a_batch_begins_with_the_second_half_of_the_one_before():
    batches = draw("overlapping")[..., 0]
    assert len(batches) == 9  # 21 examples: 10 whole half batches
    for before, after in itertools.pairwise(batches):
        np.testing.assert_array_equal(before[2:], after[:2])
    _, times = np.unique(batches, return_counts=True)
    assert sorted(times) == [1] * 4 + [2] * 16


@pytest.mark.parametrize("batch_size", [1, 7])
def test_half_batches_need_an_even_batch(batch_size):
    with pytest.raises(InputError, match=f"batch_size must be even .*, got {batch_size}"):
        draw("overlapping", batch_size=batch_size)


def order(seed=0):
    return BatchOrder(labels=np.arange(50), batch_size=12, sampler="uniform", seed=seed)


def test_the_order_is_a_function_of_seed_and_epoch():
    steps = np.stack([order().index(step) for step in range(8)])  # two epochs
    again = order()
    np.testing.assert_array_equal([again.index(step) for step in reversed(range(8))], steps[::-1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).index(3), steps[3])
    assert not np.array_equal(steps[:4], steps[4:])
    assert not np.array_equal(steps[0], order(seed=1).index(0))


def test_devices_share_the_global_batch_in_order():
    np.testing.assert_array_equal(order().position, np.arange(12).reshape(4, 3))
    first_epoch = samplers.get("uniform")(np.arange(50), 12, np.random.default_rng([0, 0]))
    np.testing.assert_array_equal(order().index(2), first_epoch[2].reshape(4, 3, 1))
