"""DLB: the target is an image's posterior in the previous mini-batch."""

import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.objectives.base import Memory, Objective, Output, Term, objectives
from sdd_jax.options import NonNegative, Positive


@objectives.register("dlb")
def dlb(*, weight: NonNegative = 1.0, temperature: Positive = 3.0) -> Objective:
    """Cross-entropy, plus ``weight`` times :func:`sdd_jax.dlb_loss` on the first half of the batch.

    The first half of a batch is the second half of the one before, augmented anew. The first batch of an
    epoch repeats nothing, and the term is zero. Both halves share one forward pass, so batch norm
    normalises them together; the authors' code runs a pass per half.
    """

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        half = len(batch.memory["index"])
        row = batch.position % half
        repeated = (batch.position < half) & (batch.memory["index"][row] == batch.index)
        divergence = losses.dlb_loss(
            view.logits, batch.memory["logits"][row], temperature=temperature
        )
        # The mean over the repeated half, as a mean over the whole batch.
        values = 2 * jnp.where(repeated, divergence, jnp.zeros_like(divergence))
        terms = {
            "cross_entropy": Term(losses.cross_entropy(view.logits, batch.labels)),
            "dlb": Term(values, weight),
        }
        return Output(view, terms, view.batch_stats, remember=view.logits)

    memory = Memory(_create_memory, _update_memory)
    return Objective(loss, sampler="overlapping", batch_multiple=2, memory=memory)


def _create_memory(labels, num_classes, batch_size):
    del labels
    half = batch_size // 2
    return {
        "index": jnp.full(half, -1, jnp.int32),
        "logits": jnp.zeros((half, num_classes), jnp.float32),
    }


def _update_memory(memory, index, position, logits):
    half = len(memory["index"])
    # Rows of the first half are set beyond the end, where mode="drop" ignores them.
    row = jnp.where(position < half, half, position - half)
    return {
        "index": memory["index"].at[row].set(index, mode="drop"),
        "logits": memory["logits"].at[row].set(logits, mode="drop"),
    }
