"""PS-KD: the network's predictions of the last epoch soften the labels."""

import jax
import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.objectives.base import Memory, Objective, Output, Term, objectives
from sdd_jax.options import Fraction


@objectives.register("ps_kd")
def ps_kd(*, alpha: Fraction = 0.8) -> Objective:
    """:func:`sdd_jax.ps_kd_loss` with a weight of past predictions that grows to ``alpha``, by epoch.

    An image's past prediction is from the last step that trained on it, and the label before the first.
    The memory holds K numbers per training image.
    """

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        past = batch.memory[batch.index]
        trust = alpha * batch.clock.epochs_begun
        values = losses.ps_kd_loss(view.logits, batch.labels, past, alpha=trust)
        return Output(
            view,
            {"ps_kd": Term(values)},
            view.batch_stats,
            metrics={"cross_entropy": losses.cross_entropy(view.logits, batch.labels)},
            remember=jax.nn.softmax(view.logits),
        )

    return Objective(loss, memory=Memory(_create_memory, _update_memory))


def _create_memory(labels, num_classes, batch_size):
    del batch_size
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def _update_memory(memory, index, position, probs):
    del position
    return memory.at[index].set(probs)
