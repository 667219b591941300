"""A head alone: logistic regression, or a linear probe of the features of another network."""

import flax.linen as nn
import jax

from sdd_jax.models.base import Classifier, models
from sdd_jax.options import Rate


@models.register("linear")
def linear(*, num_classes: int, dropout_rate: Rate = 0.0) -> Classifier:
    """The inputs are the features; the head is all that is trained."""
    return Classifier(Identity(), num_classes, dropout_rate)


class Identity(nn.Module):
    """The backbone: the inputs, flattened."""

    takes = ("images", "features")

    def __call__(self, x: jax.Array, *, train: bool, dropout_keys: jax.Array | None) -> jax.Array:
        """``[B, ...]`` to ``[B, D]``."""
        return x.reshape(x.shape[0], -1)
