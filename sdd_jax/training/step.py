"""One training step as a pure function, and the compiled call around it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sdd_jax import losses
from sdd_jax.data.engines import RawBatch
from sdd_jax.devices import Parallel, mapped, platform
from sdd_jax.objectives import Batch, Clock, Objective, Output, View
from sdd_jax.prng import example_keys
from sdd_jax.tasks import Classification, Task
from sdd_jax.training.optimizers import Optimizer
from sdd_jax.training.state import TrainState

CLASSIFICATION = Classification()


def train_step(
    state: TrainState,
    raw: RawBatch,
    constants: Any = None,
    *,
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    prepare: Callable[[jax.Array, Any], Any],
    task: Task = CLASSIFICATION,
    seed: int,
    steps_per_epoch: int = 1,
    total_steps: int = 1,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Computes the gradients of one batch and updates the state.

    Args:
      state: the state after ``state.step`` steps.
      raw: this device's share of the batch.
      constants: constants of the objective.
      model: the network.
      objective: the loss to minimise.
      optimizer: the gradient transformation and the average of the parameters.
      prepare: ``(keys [B], raw inputs) -> inputs``: augmentation and normalisation. If the labels move
        with the images, ``(keys, (raw inputs, labels)) -> (inputs, labels)``.
      task: what the labels are.
      seed: the root of all randomness.
      steps_per_epoch: number of steps per epoch, for objectives that depend on the clock.
      total_steps: number of steps of the run, likewise.
      accumulate: number of equal parts of ``raw`` that are computed one after another. Gradients and
        running statistics are means over the parts: those of the whole batch, except that batch norm,
        and a loss between examples, see one part at a time.
      axis_name: the mapped axis over which gradients and metrics are averaged; None for one device.

    Returns:
      The next state, and scalar metrics: ``loss``, every term unweighted, ``accuracy`` and ``entropy``
      of the predictions, and the objective's own.
    """

    def gradients(raw: RawBatch) -> tuple[tuple[Any, Any, dict[str, jax.Array]], Any]:
        """Means over the examples of ``raw``, and what the memory remembers of each."""

        def keys(stream: str) -> jax.Array:
            return example_keys(seed, stream, state.step, raw.position)

        labels = raw.labels
        if task.moves:
            image, labels = prepare(keys("augment0"), (raw.views[0], labels))
            views = (image,)
        else:
            views = tuple(prepare(keys(f"augment{v}"), raw) for v, raw in enumerate(raw.views))
        batch = Batch(
            views=views,
            labels=labels.astype(jnp.float32 if labels.dtype.kind == "f" else jnp.int32),
            index=raw.index,
            position=raw.position,
            clock=Clock(state.step, steps_per_epoch, total_steps),
            constants=constants,
            memory=state.memory,
            axis_name=axis_name,
            task=task,
        )

        def loss_fn(trainable):
            forward = _Forward(model, objective.auxiliary, trainable, state, keys)
            output = objective.loss(forward, batch, keys)
            metrics = _metrics(output, batch, with_accuracy=objective.uses_labels)
            loss = sum(term.weight * jnp.mean(term.values) for term in output.terms.values())
            stats = (output.batch_stats, output.auxiliary_stats)
            return loss, (stats, output.remember, {"loss": loss, **metrics})

        grads, (stats, remember, metrics) = jax.grad(loss_fn, has_aux=True)(state.trainable)
        return (grads, stats, metrics), remember

    (grads, stats, metrics), remember = _mean_of_parts(gradients, raw, accumulate)
    if axis_name is not None:
        # The devices hold equal shares, so the mean of means is the mean over the batch.
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    updates, opt_state = optimizer.transformation.update(grads, state.opt_state, state.trainable)
    trainable: Any = optax.apply_updates(state.trainable, updates)
    ema, memory = state.ema, state.memory
    if optimizer.ema:
        ema = optax.incremental_update(trainable["params"], ema, 1 - optimizer.ema)
    if objective.memory is not None:
        written = jax.lax.stop_gradient((raw.index, raw.position, remember))
        if axis_name is not None:
            written = jax.lax.all_gather(written, axis_name, tiled=True)
        memory = objective.memory.update(memory, *written)
    next_state = TrainState(
        step=state.step + 1,
        params=trainable["params"],
        batch_stats=stats[0],
        opt_state=opt_state,
        auxiliary={"params": trainable["auxiliary"], "batch_stats": stats[1]},
        memory=memory,
        ema=ema,
    )
    return next_state, metrics


def _mean_of_parts(function: Callable, raw: RawBatch, parts: int) -> Any:
    """``(means, examples)`` of ``function`` from its results for equal parts of ``raw``, in order."""
    if parts == 1:
        return function(raw)

    def add(total, part):
        means, examples = function(part)
        return jax.tree.map(jnp.add, total, means), examples

    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), raw)
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, examples = _scan(add, zeros, split)
    means = jax.tree.map(lambda x: x / parts, total)
    return means, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), examples)


def _scan(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """``jax.lax.scan``; unrolled on CPU, where XLA is a hundred times slower at convolutions in it."""
    if platform() != "cpu":
        return jax.lax.scan(body, carry, xs)
    ys = []
    for i in range(jax.tree.leaves(xs)[0].shape[0]):
        carry, y = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *values: jnp.stack(values), *ys)


def _metrics(output: Output, batch: Batch, *, with_accuracy: bool) -> dict[str, jax.Array]:
    """Means of terms and metrics over the batch; checks that they are per-example values."""
    task = batch.task
    logits, labels, valid = task.choices(output.view.logits, batch.labels)
    per_example = {"entropy": task.per_example(losses.entropy(logits), valid)} | output.metrics
    per_example |= {name: term.values for name, term in output.terms.items()}
    if with_accuracy:
        correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        per_example["accuracy"] = task.per_example(correct, valid)
    for name, values in per_example.items():
        message = f"{name!r} must have one value per example"
        chex.assert_shape(values, labels.shape[:1], custom_message=message)
    return {name: jnp.mean(values) for name, values in per_example.items()}


class _Forward:
    """The :class:`sdd_jax.objectives.Forward` of a step, with the parameters to differentiate."""

    def __init__(
        self,
        model: Any,
        auxiliary: Any,
        trainable: dict[str, Any],
        state: TrainState,
        keys: Callable[[str], jax.Array],
    ):
        self._model, self._auxiliary, self._trainable = model, auxiliary, trainable
        self._state, self._keys = state, keys

    def __call__(
        self, images: jax.Array, *, batch_stats: Any = None, dropout: str | None = "dropout"
    ) -> View:
        stats = self._state.batch_stats if batch_stats is None else batch_stats
        return self._view(images, stats, None if dropout is None else self._keys(dropout))

    def joint(self, batches: Sequence[jax.Array], *, dropout: Sequence[str]) -> list[View]:
        keys = [self._keys(stream) for stream in dropout]
        stats = self._state.batch_stats
        whole = self._view(jnp.concatenate(batches), stats, jnp.concatenate(keys))
        ends = [sum(map(len, batches[: i + 1])) for i in range(len(batches))]

        def part(i, x):
            return x[ends[i] - len(batches[i]) : ends[i]]

        return [
            whole._replace(
                features=part(i, whole.features),
                logits=part(i, whole.logits),
                stages=[part(i, stage) for stage in whole.stages],
                resume=self._resume(stats, keys[i]),
            )
            for i in range(len(batches))
        ]

    def auxiliary(self, *arguments: jax.Array) -> tuple[Any, Any]:
        variables = {
            "params": self._trainable["auxiliary"],
            "batch_stats": self._state.auxiliary["batch_stats"],
        }
        result, updated = self._auxiliary.module.apply(
            variables,
            *arguments,
            train=True,
            dropout_keys=self._keys("auxiliary_dropout"),
            mutable=["batch_stats"],
        )
        return result, updated.get("batch_stats", {})

    def _view(self, images, batch_stats, dropout_keys) -> View:
        features, updated = self._features(images, batch_stats, dropout_keys)
        return View(
            features=features,
            logits=self._logits(features, dropout_keys),
            head=self._head,
            batch_stats=updated.get("batch_stats", {}),
            stages=updated.get("intermediates", {}).get("backbone", {}).get("stages", ()),
            resume=self._resume(batch_stats, dropout_keys),
            second_head=partial(self._head, method="second_head"),
        )

    def _resume(self, batch_stats, dropout_keys) -> Callable[[jax.Array, int], jax.Array]:
        def resume(x, stage):
            features, _ = self._features(x, batch_stats, dropout_keys, stage=stage)
            return self._logits(features, dropout_keys)

        return resume

    def _features(self, x, batch_stats, dropout_keys, **options):
        return self._model.apply(
            {"params": self._trainable["params"], "batch_stats": batch_stats},
            x,
            method="features",
            train=True,
            dropout_keys=dropout_keys,
            mutable=["batch_stats", "intermediates"],
            **options,
        )

    def _logits(self, features, dropout_keys):
        return self._head(self._model.apply({}, features, dropout_keys, method="drop"))

    def _head(self, features, method="head"):
        return self._model.apply({"params": self._trainable["params"]}, features, method=method)


def compile_train_call(
    step: Callable[[TrainState, RawBatch, Any], tuple[TrainState, dict[str, jax.Array]]],
    gather: Callable[[Any, Any], RawBatch],
    parallel: Parallel = "pmap",
) -> Callable[[TrainState, Any, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles several steps into one dispatch, mapped over the devices.

    Args:
      step: ``train_step`` with all but state, batch and constants bound; it averages over ``AXIS``.
      gather: the engine's ``gather``.
      parallel: see :func:`sdd_jax.devices.mapped`.

    Returns:
      ``(state, inputs [devices, steps, ...], resident, constants) -> (state, metrics [steps])``. The
      inputs are sharded; the rest is replicated. The state argument is donated.
    """

    def call(state, inputs, resident, constants):
        def one_step(state, inputs):
            return step(state, gather(resident, inputs), constants)

        return _scan(one_step, state, inputs)

    return mapped(call, in_axes=(None, 0, None, None), parallel=parallel, donate_argnums=0)
