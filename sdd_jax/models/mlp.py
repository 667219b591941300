"""Multi-layer perceptron."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.errors import check
from sdd_jax.models.base import Classifier, Dropout, conv_init, models


@models.register("mlp")
def mlp(
    *,
    num_classes: int,
    width: int = 128,
    depth: int = 2,
    dropout_rate: float = 0.0,
    dtype: str = "float32",
) -> Classifier:
    """``depth`` fully connected layers of ``width`` units with ReLU and dropout, then the head."""
    check(depth >= 1, "config.model.depth", depth, "at least 1")
    between_layers = dropout_rate if depth > 1 else 0.0
    backbone = MLP(width, depth, between_layers, jnp.dtype(dtype))
    return Classifier(backbone, num_classes, dropout_rate)


class MLP(nn.Module):
    """The backbone: flattened pixels to ``[B, width]``, dropout between its layers."""

    width: int
    depth: int
    dropout_rate: float
    dtype: jnp.dtype

    @property
    def num_stages(self) -> int:
        """One for each layer."""
        return self.depth

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, dropout_keys: jax.Array | None, stage: int = 0
    ):
        """Features ``[B, width]`` of images, or of what stage number ``stage`` gave."""
        x = x.reshape(x.shape[0], -1)
        for layer in range(stage, self.depth):
            if layer > 0:
                drop = Dropout(self.dropout_rate, name=f"Dropout_{layer - 1}")
                x = drop(x, dropout_keys)
            dense = nn.Dense(
                self.width, dtype=self.dtype, kernel_init=conv_init, name=f"Dense_{layer}"
            )
            x = nn.relu(dense(x))
            self.sow("intermediates", "stages", x)
        return x
