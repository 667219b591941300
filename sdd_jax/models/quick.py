"""The "Quick" network of cuda-convnet, with dropout after every layer but the last."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.errors import check
from sdd_jax.models.base import Classifier, Dropout, conv_init, models
from sdd_jax.models.convolution import Conv
from sdd_jax.models.pooling import avg_pool, max_pool


@models.register("quick")
def quick(
    *,
    num_classes: int,
    width: int = 32,
    hidden: int = 64,
    dropout_rate: float = 0.5,
    dtype: str = "float32",
) -> Classifier:
    """Three 5x5 convolutions with pooling and one hidden layer.

    The convolutions have ``width``, ``width`` and ``2 * width`` channels, the hidden layer ``hidden``
    units: 32, 32, 64 and 64 in Rota Bulo et al., `Dropout Distillation
    <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016, section 5.
    """
    check(hidden >= 1, "config.model.hidden", hidden, "at least 1")
    backbone = Quick(width, hidden, dropout_rate, jnp.dtype(dtype))
    return Classifier(backbone, num_classes, dropout_rate)


class Quick(nn.Module):
    """The backbone: images of at least 8x8 pixels to ``[B, hidden]``."""

    width: int
    hidden: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, dropout_keys: jax.Array | None):
        """Features ``[B, hidden]``."""
        height, width = images.shape[1:3]
        check(
            min(height, width) >= 8,
            "config.dataset",
            f"{height}x{width}",
            "8x8 pixels or more for quick",
        )
        x = images
        for channels, pool in ((1, max_pool), (1, avg_pool), (2, avg_pool)):
            conv = Conv(self.width * channels, (5, 5), dtype=self.dtype)
            x = pool(nn.relu(conv(x)), 3, 2, (0, 1))
            x = Dropout(self.dropout_rate)(x, dropout_keys)
        x = x.reshape(x.shape[0], -1)
        return nn.relu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=conv_init)(x))
