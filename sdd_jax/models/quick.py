"""The "Quick" network of cuda-convnet, with dropout after every layer but the last."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.base import Classifier, Dtype, Width, models
from sdd_jax.models.layers import Conv, Dropout, avg_pool, hidden_init, max_pool, require_size
from sdd_jax.options import Rate


@models.register("quick")
def quick(
    *,
    num_classes: int,
    width: Width = 32,
    hidden: Width = 64,
    dropout_rate: Rate = 0.5,
    dtype: Dtype = "float32",
) -> Classifier:
    """Three 5x5 convolutions with pooling and one hidden layer.

    The convolutions have ``width``, ``width`` and ``2 * width`` channels, the hidden layer ``hidden``
    units: 32, 32, 64 and 64 in Rota Bulo et al., `Dropout Distillation
    <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016, section 5.
    """
    backbone = Quick(width, hidden, dropout_rate, jnp.dtype(dtype))
    return Classifier(backbone, num_classes, dropout_rate)


class Quick(nn.Module):
    """The backbone, for images of 8x8 pixels or more."""

    width: int
    hidden: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """Computes features ``[B, hidden]``."""
        require_size(images, 8, "quick")
        x = images
        for channels, pool in ((1, max_pool), (1, avg_pool), (2, avg_pool)):
            conv = Conv(self.width * channels, (5, 5), dtype=self.dtype)
            x = pool(nn.relu(conv(x)), 3, 2, (0, 1))
            x = Dropout(self.dropout_rate)(x, dropout_keys)
        x = x.reshape(x.shape[0], -1)
        return nn.relu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=hidden_init)(x))
