"""One training step as a pure function, and the compiled call around it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sdd_jax import losses
from sdd_jax.data.engines import RawBatch
from sdd_jax.experiment import Experiment
from sdd_jax.objectives import Batch, Clock, Objective, View
from sdd_jax.parallel import AXIS
from sdd_jax.training.random import example_keys
from sdd_jax.training.state import TrainState


def train_step(
    state: TrainState,
    raw: RawBatch,
    constants: Any = None,
    *,
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[jax.Array, jax.Array], jax.Array],
    seed: int,
    steps_per_epoch: int = 1,
    total_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one step of gradient descent.

    Args:
      state: the state after ``state.step`` steps.
      raw: this device's share of the batch.
      constants: the objective's.
      model: the network.
      objective: what to minimise.
      optimizer: the gradient transformation.
      prepare: ``(keys [B], uint8 images) -> float images``: augmentation and normalisation.
      seed: the root of all randomness.
      steps_per_epoch: of the data engine, for objectives that look at the clock.
      total_steps: of the run, likewise.
      axis_name: the mapped axis over which gradients and metrics are averaged, None without one.

    Returns:
      The next state, and scalar metrics: ``loss``, every term unweighted, ``accuracy`` and ``entropy``
      of the predictions, and what the objective logs.
    """

    def keys(stream: str) -> jax.Array:
        return example_keys(seed, stream, state.step, raw.position)

    batch = Batch(
        views=tuple(prepare(keys(f"augment{v}"), images) for v, images in enumerate(raw.views)),
        labels=raw.labels,
        index=raw.index,
        position=raw.position,
        clock=Clock(state.step, steps_per_epoch, total_steps),
        constants=constants,
        memory=state.memory,
        axis_name=axis_name,
    )

    def loss_fn(params):
        forward = _Forward(model, objective.auxiliary, params, state, keys)
        output = objective.loss(forward, batch, keys)
        loss = sum(term.weight * jnp.mean(term.values) for term in output.terms.values())
        auxiliary_stats = state.auxiliary.get("batch_stats", {})
        if output.auxiliary_stats is not None:
            auxiliary_stats = output.auxiliary_stats
        return loss, (output.batch_stats, auxiliary_stats, output.remember, _metrics(output))

    def _metrics(output):
        logits = output.view.logits
        per_example = {
            "entropy": losses.entropy(logits),
            **output.metrics,
            **{name: term.values for name, term in output.terms.items()},
        }
        if objective.uses_labels:
            correct = jnp.argmax(logits, axis=-1) == batch.labels
            per_example["accuracy"] = correct.astype(jnp.float32)
        return {name: jnp.mean(v) for name, v in per_example.items()}

    derivative = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (batch_stats, auxiliary_stats, remember, metrics)), grads = derivative(state.trainable)
    metrics = {"loss": loss, **metrics}
    if axis_name is not None:
        # The devices' shares are of one size, so the mean of means is the mean over the batch.
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    updated = optax.apply_updates(state.trainable, updates)
    next_state = state.replace(
        step=state.step + 1,
        params=updated["params"] if state.auxiliary else updated,
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if state.auxiliary:
        second = {"params": updated["auxiliary"], "batch_stats": auxiliary_stats}
        next_state = next_state.replace(auxiliary=second)
    if objective.memory is not None:
        written = jax.lax.stop_gradient((batch.index, batch.position, remember))
        if axis_name is not None:
            written = jax.lax.all_gather(written, axis_name, tiled=True)
        next_state = next_state.replace(memory=objective.memory.update(state.memory, *written))
    return next_state, metrics


class _Forward:
    """The network, and the auxiliary one, with the parameters that are differentiated."""

    def __init__(self, model, auxiliary, params, state, keys):
        self._model, self._auxiliary, self._state, self._keys = model, auxiliary, state, keys
        self._params = params["params"] if state.auxiliary else params
        self._auxiliary_params = params["auxiliary"] if state.auxiliary else None

    def __call__(self, images, *, batch_stats=None, dropout="dropout"):
        stats = self._state.batch_stats if batch_stats is None else batch_stats
        dropout_keys = None if dropout is None else self._keys(dropout)

        def run(x, method, **options):
            variables = {"params": self._params, "batch_stats": stats}
            collections = ["batch_stats", "intermediates"]
            options |= {"train": True, "dropout_keys": dropout_keys}
            return self._model.apply(variables, x, method=method, mutable=collections, **options)

        def logits_of(features):
            return self._head(self._model.apply({}, features, dropout_keys, method="drop"))

        def resume(x, stage):
            return logits_of(run(x, "features", stage=stage)[0])

        features, updated = run(images, "features")
        return View(
            features=features,
            logits=logits_of(features),
            head=self._head,
            batch_stats=updated.get("batch_stats", {}),
            stages=updated.get("intermediates", {}).get("backbone", {}).get("stages", ()),
            resume=resume,
        )

    def auxiliary(self, *arguments):
        variables = {
            "params": self._auxiliary_params,
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

    def _head(self, features):
        return self._model.apply({"params": self._params}, features, method="head")


def compile_training(experiment: Experiment) -> Callable[[TrainState, Any, Any, Any], tuple]:
    """The compiled steps of a run, see :func:`compile_train_call`."""
    step = partial(
        train_step,
        model=experiment.model,
        objective=experiment.objective,
        optimizer=experiment.optimizer,
        prepare=experiment.prepare,
        seed=experiment.config.seed,
        steps_per_epoch=experiment.engine.steps_per_epoch,
        total_steps=experiment.total_steps,
        axis_name=AXIS,
    )
    return compile_train_call(step, experiment.engine.gather)


def compile_train_call(
    step: Callable[[TrainState, RawBatch, Any], tuple[TrainState, dict]],
    gather: Callable[[Any, Any], RawBatch],
) -> Callable[[TrainState, Any, Any, Any], tuple[TrainState, dict]]:
    """Several steps in one dispatch, mapped over the devices.

    Args:
      step: ``train_step`` with all but state, batch and constants bound; it averages over ``AXIS``.
      gather: the engine's ``gather``.

    Returns:
      ``(state, inputs [devices, steps, ...], resident, constants) -> (state, metrics [steps])``. All
      but the inputs is the same on all devices; the state that goes in is donated.
    """

    def call(state, inputs, resident, constants):
        def one(state, inputs):
            return step(state, gather(resident, inputs), constants)

        if jax.default_backend() != "cpu":
            return jax.lax.scan(one, state, inputs)
        # XLA on CPU runs convolutions inside a loop about a hundred times slower: no loop there.
        metrics = []
        for i in range(jax.tree.leaves(inputs)[0].shape[0]):
            state, of_step = one(state, jax.tree.map(lambda x, i=i: x[i], inputs))
            metrics.append(of_step)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *metrics)

    return jax.pmap(
        call, axis_name=AXIS, in_axes=(None, 0, None, None), out_axes=None, donate_argnums=0
    )
