"""DLB: the posterior that an image had in the last mini-batch teaches."""

import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.errors import check
from sdd_jax.objectives.base import Memory, Objective, Output, Term, objectives


@objectives.register("dlb")
def dlb(*, weight: float = 1.0, temperature: float = 3.0) -> Objective:
    """Cross-entropy, and ``weight`` times :func:`sdd_jax.dlb_loss` on the first half of the batch.

    The first half of a batch is the second half of the one before, augmented anew. In the first batch of
    an epoch nothing is repeated, and the term is zero.
    """
    check(weight >= 0, "config.objective.weight", weight, "0 or more")
    check(temperature > 0, "config.objective.temperature", temperature, "greater than 0")

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        half = len(batch.memory["index"])
        place = batch.position % half
        repeated = (batch.position < half) & (batch.memory["index"][place] == batch.index)
        divergence = losses.dlb_loss(
            view.logits, batch.memory["logits"][place], temperature=temperature
        )
        # The mean over the repeated half, as a mean over the whole batch.
        values = 2 * jnp.where(repeated, divergence, jnp.zeros_like(divergence))
        terms = {
            "cross_entropy": Term(losses.cross_entropy(view.logits, batch.labels)),
            "dlb": Term(values, weight),
        }
        return Output(view, terms, view.batch_stats, remember=view.logits)

    return Objective(loss, sampler="overlapping", memory=Memory(_empty, _remember))


def _empty(labels, num_classes, batch_size):
    del labels
    check(batch_size % 2 == 0, "config.batch_size", batch_size, "even for config.objective 'dlb'")
    half = batch_size // 2
    return {
        "index": jnp.full(half, -1, jnp.int32),
        "logits": jnp.zeros((half, num_classes), jnp.float32),
    }


def _remember(memory, index, position, logits):
    half = len(memory["index"])
    # Second-half examples go to their place; the others beyond the end, which drops them.
    place = jnp.where(position < half, half, position - half)
    return {
        "index": memory["index"].at[place].set(index, mode="drop"),
        "logits": memory["logits"].at[place].set(logits, mode="drop"),
    }
