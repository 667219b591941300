"""DDGSD: one pass over both views, as the authors run it, or a pass for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdd_jax import losses, models
from sdd_jax.data.engines import RawBatch
from sdd_jax.objectives import objectives
from sdd_jax.prng import example_keys
from sdd_jax.training.optimizers import Optimizer
from sdd_jax.training.state import create
from sdd_jax.training.step import train_step

BATCH = 16
RNG = np.random.default_rng(0)
VIEWS = tuple(RNG.standard_normal((2, BATCH, 32, 32, 3)).astype(np.float32))
LABELS = RNG.integers(0, 10, BATCH).astype(np.int32)
POSITION = np.arange(BATCH, dtype=np.int32)
NETWORKS = {
    "batch_norm": {"name": "resnet18", "width": 16},
    "dropout": {"name": "mlp", "width": 32, "dropout_rate": 0.5},
}


@functools.cache
def step(network, joint_batch):
    """Network, initial state, metrics of the first step, and the statistics after it."""
    model, optimizer = models.build(NETWORKS[network], num_classes=10), Optimizer(optax.sgd(0.1))
    objective = objectives.build({"name": "ddgsd", "joint_batch": joint_batch})
    state = create(model, optimizer, seed=0, image_shape=(32, 32, 3))

    @jax.jit
    def run(state):
        after, metrics = train_step(
            state,
            RawBatch(VIEWS, LABELS, POSITION, POSITION),
            model=model,
            objective=objective,
            optimizer=optimizer,
            prepare=lambda keys, images: jnp.asarray(images),
            seed=0,
        )
        return metrics, after.batch_stats

    return model, state, *run(state)


def by_hand(model, state, joint_batch):
    """The same from passes over the network, the loss functions and numpy."""
    streams = [
        example_keys(0, name, state.step, POSITION) for name in ("dropout", "second_dropout")
    ]

    @jax.jit
    def forward(batch_stats, images, keys):
        variables = {"params": state.params, "batch_stats": batch_stats}
        train = {"train": True, "dropout_keys": keys, "mutable": ["batch_stats"]}
        features, _ = model.apply(variables, images, method="features", **train)
        logits, updated = model.apply(variables, images, **train)
        return features, logits, updated.get("batch_stats", {})

    if joint_batch:
        images, keys = np.concatenate(VIEWS), jnp.concatenate(streams)
        features, logits, batch_stats = forward(state.batch_stats, images, keys)
        features, logits = np.split(features, 2), jnp.split(logits, 2)
    else:
        first = forward(state.batch_stats, VIEWS[0], streams[0])
        second = forward(first[2], VIEWS[1], streams[1])
        features, logits, batch_stats = (first[0], second[0]), (first[1], second[1]), second[2]
    distance = np.sum((np.mean(features[0], axis=0) - np.mean(features[1], axis=0)) ** 2)
    expected = {
        "cross_entropy": jnp.mean(sum(losses.cross_entropy(z, LABELS) for z in logits)),
        "ddgsd": jnp.mean(losses.ddgsd_loss(*logits, temperature=3.0)),
        "ddgsd_features": distance,
    }
    return expected, batch_stats


@pytest.mark.parametrize("joint_batch", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_terms_and_statistics_are_those_of_the_passes_by_hand(network, joint_batch):
    model, state, metrics, batch_stats = step(network, joint_batch)
    expected, expected_stats = by_hand(model, state, joint_batch)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        batch_stats,
        expected_stats,
    )


def test_a_pass_per_view_equalises_the_mean_features_of_the_views():
    joint, apart = (step("batch_norm", joint_batch)[2] for joint_batch in (True, False))
    assert joint["ddgsd_features"] > 4 * apart["ddgsd_features"]
