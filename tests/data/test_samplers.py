"""Which examples share a batch."""

import itertools

import numpy as np
import pytest

from sdd_jax.data.samplers import samplers

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 1, 1, 3, 0, 2, 2, 0, 1, 0, 2, 1, 0, 2])


def draw(name, seed=0, batch_size=4):
    return samplers.get(name)(LABELS, batch_size, np.random.default_rng(seed))


@pytest.mark.parametrize("name", samplers.names())
def test_batches_are_a_function_of_the_generator(name):
    a, b, c = draw(name), draw(name), draw(name, seed=1)
    assert a.dtype == np.int32
    assert a.shape[1] == 4
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("name", ["uniform", "two_views", "same_class"])
def test_the_first_view_shows_no_example_twice_in_an_epoch(name):
    first = draw(name)[..., 0].ravel()
    assert len(first) == 20
    assert len(set(first)) == 20


def test_two_views_are_of_one_example():
    batches = draw("two_views")
    np.testing.assert_array_equal(batches[..., 0], batches[..., 1])


def test_partners_are_others_of_the_class_and_all_of_them_come_up_alike():
    counts = np.zeros((len(LABELS), len(LABELS)))
    for seed in range(4000):
        pairs = draw("same_class", seed).reshape(-1, 2)
        np.testing.assert_array_equal(LABELS[pairs[:, 0]], LABELS[pairs[:, 1]])
        np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    for i, label in enumerate(LABELS):
        others = np.flatnonzero((label == LABELS) & (np.arange(len(LABELS)) != i))
        if not len(others):
            assert counts[i, i] == counts[i].sum() > 0  # alone in its class: its own partner
            continue
        assert counts[i, i] == 0
        shares = counts[i, others] / counts[i].sum()
        assert np.all(np.abs(shares - 1 / len(others)) < 0.05)


def test_a_batch_begins_with_the_end_of_the_one_before():
    batches = draw("overlapping")[..., 0]
    assert len(batches) == 9  # 21 examples: 10 whole half batches
    for before, after in itertools.pairwise(batches):
        np.testing.assert_array_equal(before[2:], after[:2])
    seen, times = np.unique(batches, return_counts=True)
    assert len(seen) == 20
    assert sorted(times) == [1] * 4 + [2] * 16
