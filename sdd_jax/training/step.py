"""One training step as a pure function, and the compiled call around it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sdd_jax import losses
from sdd_jax.data.engines import RawBatch
from sdd_jax.objectives import Batch, Objective, View
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
      axis_name: the mapped axis over which gradients and metrics are averaged, None without one.

    Returns:
      The next state, and scalar metrics: ``loss``, every term unweighted, ``accuracy`` and ``entropy``
      of the predictions, and what the objective logs.
    """

    def keys(stream: str) -> jax.Array:
        return example_keys(seed, stream, state.step, raw.position)

    views = tuple(prepare(keys(f"augment{v}"), images) for v, images in enumerate(raw.views))
    batch = Batch(views, raw.labels, raw.index, constants)

    def loss_fn(params):
        def head(features):
            return model.apply({"params": params}, features, method="head")

        def forward(images, *, batch_stats=None, dropout=True):
            dropout_keys = keys("dropout") if dropout else None
            variables = {
                "params": params,
                "batch_stats": state.batch_stats if batch_stats is None else batch_stats,
            }
            features, updated = model.apply(
                variables,
                images,
                train=True,
                dropout_keys=dropout_keys,
                method="features",
                mutable=["batch_stats"],
            )
            dropped = model.apply({}, features, dropout_keys, method="drop")
            return View(features, head(dropped), head, updated.get("batch_stats", {}))

        output = objective.loss(forward, batch, keys)
        loss = sum(term.weight * jnp.mean(term.values) for term in output.terms.values())
        return loss, output_of(output)

    def output_of(output):
        logits = output.view.logits
        per_example = {
            "entropy": losses.entropy(logits),
            **output.metrics,
            **{name: term.values for name, term in output.terms.items()},
        }
        if objective.uses_labels:
            correct = jnp.argmax(logits, axis=-1) == batch.labels
            per_example["accuracy"] = correct.astype(jnp.float32)
        return output.batch_stats, {name: jnp.mean(v) for name, v in per_example.items()}

    (loss, (batch_stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    metrics = {"loss": loss, **metrics}
    if axis_name is not None:
        # The devices' shares are of one size, so the mean of means is the mean over the batch.
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    next_state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return next_state, metrics


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
