"""Multi-layer perceptron."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.base import Classifier, Depth, Dtype, Width, models
from sdd_jax.models.layers import Dropout, hidden_init
from sdd_jax.options import Rate


@models.register("mlp")
def mlp(
    *,
    num_classes: int,
    width: Width = 128,
    depth: Depth = 2,
    dropout_rate: Rate = 0.0,
    dtype: Dtype = "float32",
) -> Classifier:
    """``depth`` fully connected layers of ``width`` units with ReLU and dropout, then the head."""
    between_layers = dropout_rate if depth > 1 else 0.0
    backbone = MLP(width, depth, between_layers, jnp.dtype(dtype))
    return Classifier(backbone, num_classes, dropout_rate)


class MLP(nn.Module):
    """The backbone: fully connected layers on flattened inputs, dropout between them."""

    takes = ("images", "features")

    width: int
    depth: int
    dropout_rate: float
    dtype: jnp.dtype

    @property
    def num_stages(self) -> int:
        """Number of layers."""
        return self.depth

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, dropout_keys: jax.Array | None, stage: int = 0
    ) -> jax.Array:
        """Computes features ``[B, width]`` of inputs, or of the output of a stage."""
        x = x.reshape(x.shape[0], -1)
        for layer in range(stage, self.depth):
            if layer > 0:
                drop = Dropout(self.dropout_rate, name=f"Dropout_{layer - 1}")
                x = drop(x, dropout_keys)
            dense = nn.Dense(
                self.width, dtype=self.dtype, kernel_init=hidden_init, name=f"Dense_{layer}"
            )
            x = nn.relu(dense(x))
            self.sow("intermediates", "stages", x)
        return x
