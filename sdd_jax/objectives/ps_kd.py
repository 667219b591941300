"""PS-KD: the network's predictions of an epoch ago soften the labels."""

import jax
import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.errors import check
from sdd_jax.objectives.base import Memory, Objective, Output, Term, objectives


@objectives.register("ps_kd")
def ps_kd(*, alpha: float = 0.8) -> Objective:
    """:func:`sdd_jax.ps_kd_loss`, the trust in the past growing with the epochs up to ``alpha``.

    The past prediction of an image is that of the last time it was trained on; before the first, its
    label. The memory holds K numbers for each training image.
    """
    check(0 <= alpha <= 1, "config.objective.alpha", alpha, "in [0, 1]")

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        past = batch.memory[batch.index]
        trust = alpha * batch.clock.epochs_begun
        values = losses.ps_kd_loss(view.logits, batch.labels, past, alpha=trust)
        cross_entropy = losses.cross_entropy(view.logits, batch.labels)
        return Output(
            view,
            {"ps_kd": Term(values)},
            view.batch_stats,
            metrics={"cross_entropy": cross_entropy},
            remember=jax.nn.softmax(view.logits),
        )

    return Objective(loss, memory=Memory(_labels, _remember))


def _labels(labels, num_classes, batch_size):
    del batch_size
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def _remember(memory, index, position, probs):
    del position
    return memory.at[index].set(probs)
