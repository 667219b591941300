"""LeNet-5, in the form of its Caffe version, as Dropout Distillation uses it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.errors import check
from sdd_jax.models.base import Classifier, Dropout, conv_init, models
from sdd_jax.models.convolution import Conv
from sdd_jax.models.pooling import max_pool


@models.register("lenet")
def lenet(
    *, num_classes: int, width: int = 20, dropout_rate: float = 0.0, dtype: str = "float32"
) -> Classifier:
    """Two 5x5 convolutions with pooling and one hidden layer; dropout after the hidden layer.

    ``width`` is the number of channels of the first convolution; at 20 the layers are 20, 50, 500.
    """
    return Classifier(LeNet(width, 0.0, jnp.dtype(dtype)), num_classes, dropout_rate)


@models.register("lenet_all")
def lenet_all(
    *, num_classes: int, width: int = 20, dropout_rate: float = 0.5, dtype: str = "float32"
) -> Classifier:
    """``lenet`` with dropout after every convolution, too.

    Rota Bulo et al., `Dropout Distillation <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016,
    section 5.
    """
    return Classifier(LeNet(width, dropout_rate, jnp.dtype(dtype)), num_classes, dropout_rate)


class LeNet(nn.Module):
    """The backbone: images of at least 16x16 pixels to ``[B, 25 * width]``."""

    width: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, dropout_keys: jax.Array | None):
        """Features ``[B, 25 * width]``."""
        height, width = images.shape[1:3]
        check(
            min(height, width) >= 16,
            "config.dataset",
            f"{height}x{width}",
            "16x16 pixels or more for lenet",
        )
        x = images
        for channels in (self.width, self.width * 5 // 2):
            x = Conv(channels, (5, 5), padding="VALID", dtype=self.dtype)(x)
            x = max_pool(x, 2, 2)
            x = Dropout(self.dropout_rate)(x, dropout_keys)
        x = x.reshape(x.shape[0], -1)
        return nn.relu(nn.Dense(25 * self.width, dtype=self.dtype, kernel_init=conv_init)(x))
