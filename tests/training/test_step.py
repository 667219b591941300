"""The training step: independent of the devices that share it, and equal to plain JAX."""

import dataclasses
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdd_jax import losses, models, objectives
from sdd_jax.data import Split, images
from sdd_jax.data.engines import RawBatch, engines
from sdd_jax.devices import AXIS, replicate
from sdd_jax.options import defaults
from sdd_jax.prng import example_keys
from sdd_jax.training import state as train_state
from sdd_jax.training.optimizers import Optimizer
from sdd_jax.training.step import compile_train_call, train_step

BATCH, STEPS = 16, 3
RNG = np.random.default_rng(0)
SPLIT = Split(
    RNG.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8),
    RNG.integers(0, 5, 64).astype(np.int32),
)
OBJECTIVE = objectives.with_sd_dropout(
    objectives.objectives.build({"name": "cross_entropy"}), weight=0.5
)


@models.models.register("tiny_in_test")
def tiny(*, num_classes, axis_name, dtype="float32"):
    """A convolution, batch norm over the devices, dropout inside the network."""
    return models.Classifier(Tiny(axis_name, jnp.dtype(dtype)), num_classes)


class Tiny(nn.Module):
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, *, train, dropout_keys):
        x = nn.Conv(8, (3, 3), dtype=self.dtype)(images)
        norm = nn.BatchNorm(not train, axis_name=self.axis_name, dtype=self.dtype)
        x = models.Dropout(0.3)(nn.relu(norm(x)), dropout_keys)
        return x.mean((1, 2))


def prepare(keys, raw):
    augmented = images.augment(keys, raw, pad=1, flip=True)
    return images.normalise(augmented, np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))


def setup(axis_name, *, objective=OBJECTIVE, ema=0.0, **options):
    model = models.build({"name": "tiny_in_test", **options}, num_classes=5, axis_name=axis_name)
    optimizer = Optimizer(optax.sgd(1.0), ema)  # the change of the parameters is the gradient
    step = partial(
        train_step,
        model=model,
        objective=objective,
        optimizer=optimizer,
        prepare=prepare,
        seed=0,
        axis_name=axis_name,
    )
    state = train_state.create(model, optimizer, seed=0, image_shape=(8, 8, 3))
    return step, state


def raw_batch(rows) -> RawBatch:
    rows = np.asarray(rows, np.int32)
    pixels = SPLIT.images[rows]
    return RawBatch((pixels, pixels), SPLIT.labels[rows], rows, rows % BATCH)


def close(a, b, tolerance):
    scale = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(a))
    difference = max(
        float(jnp.max(jnp.abs(x - y)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    assert difference <= tolerance * scale


@pytest.mark.parametrize("name", ["cross_entropy", "ddgsd"])  # ddgsd: joint batch norm of two views
def test_gradients_statistics_and_metrics_on_n_devices_equal_those_on_one(name):
    objective = objectives.with_sd_dropout(objectives.objectives.build({"name": name}), 0.5)
    one_step, state = setup(None, objective=objective)
    one, one_metrics = jax.jit(one_step)(state, raw_batch(range(BATCH)))
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, one.params, state.params))) > 0.1
    step, _ = setup(AXIS, objective=objective)
    for devices in (2, 4):
        shares = jax.tree.map(
            lambda x, n=devices: x.reshape(n, -1, *x.shape[1:]), raw_batch(range(BATCH))
        )
        mapped = jax.pmap(
            step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:devices]
        )
        many, many_metrics = mapped(state, shares)
        close(one.params, many.params, 1e-5)
        close(one_metrics, many_metrics, 1e-5)
        close(one.batch_stats, many.batch_stats, 1e-5)


def test_parts_one_after_another_give_the_means_of_the_parts_alone():
    objective = objectives.with_sd_dropout(objectives.objectives.build({"name": "ps_kd"}), 0.5)
    memory = objective.memory.create(SPLIT.labels, 5, BATCH)
    step, state = setup(None, objective=objective)
    state = dataclasses.replace(state, memory=memory)
    alone = jax.jit(step)
    parts = [alone(state, raw_batch(range(i, i + 4))) for i in range(0, BATCH, 4)]
    after, metrics = jax.jit(partial(step, accumulate=4))(state, raw_batch(range(BATCH)))
    mean = jax.tree.map(lambda *values: sum(values) / 4, *parts)
    close(mean[0].params, after.params, 1e-6)
    close(mean[0].batch_stats, after.batch_stats, 1e-6)
    close(mean[1], metrics, 1e-5)
    written = sum(part.memory - memory for part, _ in parts)
    assert np.all(np.abs(written[:BATCH]).sum(-1) > 0)
    np.testing.assert_allclose(after.memory, memory + written, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # unrolled, or in a loop
def test_without_batch_norm_parts_make_the_step_of_the_whole_batch(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    step, state = setup(None, name="mlp", width=8, depth=1, dropout_rate=0.5)
    whole = jax.jit(step)(state, raw_batch(range(BATCH)))
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, whole[0].params, state.params))) > 0.1
    parts = jax.jit(partial(step, accumulate=8))(state, raw_batch(range(BATCH)))
    close(whole[0].params, parts[0].params, 1e-6)
    close(whole[1], parts[1], 1e-5)


def test_the_loss_is_the_sum_of_the_weighted_terms_and_its_gradient_that_of_plain_jax():
    step, state = setup(None)
    model = models.build({"name": "tiny_in_test"}, num_classes=5)
    raw = raw_batch(range(BATCH))

    def by_hand(params):
        keys = partial(example_keys, 0, step=state.step, position=jnp.arange(BATCH))
        inputs = prepare(keys(stream="augment0"), raw.views[0])
        head = partial(model.apply, {"params": params}, method="head")
        features, _ = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            dropout_keys=keys(stream="dropout"),
            method="features",
            mutable=["batch_stats"],
        )
        sd_dropout = losses.sd_dropout_loss(features, head, keys(stream="sd_dropout"))
        cross_entropy = losses.cross_entropy(head(features), raw.labels)
        return jnp.mean(cross_entropy) + 0.5 * jnp.mean(sd_dropout), (
            jnp.mean(cross_entropy),
            jnp.mean(sd_dropout),
        )

    (loss, terms), grads = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(state.params)
    after, metrics = jax.jit(step)(state, raw)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], terms[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["sd_dropout"], terms[1], rtol=1e-5)
    close(jax.tree.map(jnp.subtract, state.params, after.params), grads, 1e-5)
    assert int(after.step) == 1


def compiled(step, parallel="pmap"):
    """The compiled call, its resident data and its engine."""
    engine = engines.build(
        {"name": "resident"}, split=SPLIT, batch_size=BATCH, sampler="uniform", seed=0
    )
    call = compile_train_call(step, engine.gather, parallel)
    return call, replicate(engine.resident), engine


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # unrolled, or in a loop
def test_several_steps_in_one_call_equal_one_step_a_call(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    step, state = setup(AXIS)
    call, resident, engine = compiled(step)
    together, metrics = call(replicate(state), engine.inputs(0, STEPS), resident, None)
    apart, losses_apart = replicate(setup(AXIS)[1]), []
    for i in range(STEPS):
        apart, metrics_of_step = call(apart, engine.inputs(i, i + 1), resident, None)
        losses_apart.append(metrics_of_step["loss"][0])
    assert metrics["loss"].shape == (STEPS,)
    assert int(together.step) == STEPS
    np.testing.assert_allclose(metrics["loss"], losses_apart, rtol=1e-4)
    close(together.params, apart.params, 1e-3)


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_the_step_is_traced_once_takes_its_own_state_back_and_averages_the_parameters(parallel):
    step, state = setup(AXIS, ema=0.8)
    chex.clear_trace_counter()
    once = chex.assert_max_traces(lambda *args: step(*args), n=1)
    call, resident, engine = compiled(once, parallel)
    structure, expected = jax.tree.structure(state), jax.tree.map(np.array, state.params)
    first = state = replicate(state)
    for i in range(STEPS):
        state, _ = call(state, engine.inputs(i, i + 1), resident, None)
        params = jax.device_get(state.params)
        expected = jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, expected, params)
        close(expected, state.ema, 1e-6)
    assert jax.tree.structure(state) == structure
    assert all(x.is_deleted() for x in jax.tree.leaves(first))  # donated
    assert state.variables == {"params": state.ema, "batch_stats": state.batch_stats}


def test_a_state_without_extras_has_the_same_parts_empty():
    step, state = setup(None)
    after, _ = jax.jit(step)(state, raw_batch(range(BATCH)))
    for each in (state, after):
        assert each.auxiliary == {"params": {}, "batch_stats": {}}
        assert each.memory == each.ema == {}
        assert each.variables == {"params": each.params, "batch_stats": each.batch_stats}


@pytest.mark.parametrize("shape", [(), (BATCH, 1), (BATCH - 1,)])
@pytest.mark.parametrize("part", ["terms", "metrics"])
def test_a_term_or_metric_that_is_not_per_example_is_refused_by_name(part, shape):
    def loss(forward, batch, keys):
        output = OBJECTIVE.loss(forward, batch, keys)
        wrong = jnp.zeros(shape)
        wrong = {"wrong": objectives.Term(wrong) if part == "terms" else wrong}
        return dataclasses.replace(output, **{part: getattr(output, part) | wrong})

    step, state = setup(None, objective=objectives.Objective(loss))
    with pytest.raises(AssertionError, match="'wrong' must have one value per example"):
        jax.eval_shape(step, state, raw_batch(range(BATCH)))


def test_steps_and_streams_draw_different_numbers():
    position = jnp.arange(4)
    draws = [
        jax.random.key_data(example_keys(seed, stream, jnp.int32(step), position))
        for seed in (0, 1)
        for stream in ("a", "b")
        for step in (0, 1)
    ]
    assert len(np.unique(np.concatenate(draws), axis=0)) == 8 * 4


def test_bfloat16_computes_in_half_precision_and_keeps_parameters_and_loss_in_float32():
    with jax.numpy_dtype_promotion("standard"):  # for flax's batch norm
        step, state = setup(None, dtype="bfloat16")
        after, half = jax.jit(step)(state, raw_batch(range(BATCH)))
    step, state = setup(None)
    _, full = jax.jit(step)(state, raw_batch(range(BATCH)))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(after.params))
    assert half["loss"].dtype == jnp.float32
    assert half["loss"] != full["loss"]
    np.testing.assert_allclose(half["loss"], full["loss"], rtol=0.05)


def test_another_objective_is_composed_without_a_class():
    options = defaults(objectives.with_sd_dropout)
    options |= {"weight": 0.3, "num_samples": 3, "gradient": "forward"}
    smoothed = objectives.build({"name": "label_smoothing", "smoothing": 0.2}, options)
    step, state = setup(None, objective=smoothed)
    _, metrics = jax.jit(step)(state, raw_batch(range(BATCH)))
    assert {"label_smoothing", "sd_dropout", "sd_dropout/agreement"} <= set(metrics)
    total = metrics["label_smoothing"] + 0.3 * metrics["sd_dropout"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
