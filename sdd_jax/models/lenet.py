"""LeNet-5 in its Caffe form, which the Dropout Distillation paper uses."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.base import Classifier, Dtype, Width, models
from sdd_jax.models.layers import Conv, Dropout, hidden_init, max_pool, require_size
from sdd_jax.options import Rate


@models.register("lenet")
def lenet(
    *,
    num_classes: int,
    width: Width = 20,
    dropout_rate: Rate = 0.0,
    dtype: Dtype = "float32",
) -> Classifier:
    """Two 5x5 convolutions with pooling and one hidden layer; dropout after the hidden layer.

    ``width`` is the number of channels of the first convolution; at 20 the layers are 20, 50, 500.
    """
    return Classifier(LeNet(width, 0.0, jnp.dtype(dtype)), num_classes, dropout_rate)


@models.register("lenet_all")
def lenet_all(
    *,
    num_classes: int,
    width: Width = 20,
    dropout_rate: Rate = 0.5,
    dtype: Dtype = "float32",
) -> Classifier:
    """``lenet`` with dropout after every convolution as well.

    Rota Bulo et al., `Dropout Distillation <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016,
    section 5.
    """
    return Classifier(LeNet(width, dropout_rate, jnp.dtype(dtype)), num_classes, dropout_rate)


class LeNet(nn.Module):
    """The backbone, for images of 16x16 pixels or more."""

    width: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """Computes features ``[B, 25 * width]``."""
        require_size(images, 16, "lenet")
        x = images
        for channels in (self.width, self.width * 5 // 2):
            x = Conv(channels, (5, 5), padding="VALID", dtype=self.dtype)(x)
            x = max_pool(x, 2, 2)
            x = Dropout(self.dropout_rate)(x, dropout_keys)
        x = x.reshape(x.shape[0], -1)
        return nn.relu(nn.Dense(25 * self.width, dtype=self.dtype, kernel_init=hidden_init)(x))
