"""Networks of convolutions alone: Network in Network, and the All-Convolutional net.

Both end in a 1x1 convolution to the classes and a global average. Without a ReLU in between, which
would only clip logits at zero, the two commute: the features are the averaged maps, the head is linear,
and the function is the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.errors import check
from sdd_jax.models.base import Classifier, Dropout, models
from sdd_jax.models.convolution import Conv
from sdd_jax.models.pooling import avg_pool, max_pool


class Layer(NamedTuple):
    """A convolution with ReLU, and what follows it: ``pool`` "max" or "avg" (3x3, stride 2), dropout."""

    channels: int
    size: int
    stride: int = 1
    pool: str | None = None
    dropout: bool = False


def _nin(w: int) -> tuple[Layer, ...]:
    return (
        Layer(w, 5), Layer(w * 5 // 6, 1), Layer(w // 2, 1, pool="max", dropout=True),
        Layer(w, 5), Layer(w, 1), Layer(w, 1, pool="avg", dropout=True),
        Layer(w, 3), Layer(w, 1),
    )  # fmt: skip


def _all_conv(w: int) -> tuple[Layer, ...]:
    return (
        Layer(w, 3), Layer(w, 3), Layer(w, 3, stride=2, dropout=True),
        Layer(2 * w, 3), Layer(2 * w, 3), Layer(2 * w, 3, stride=2, dropout=True),
        Layer(2 * w, 3), Layer(2 * w, 1),
    )  # fmt: skip


@models.register("nin")
def nin(
    *, num_classes: int, width: int = 192, dropout_rate: float = 0.5, dtype: str = "float32"
) -> Classifier:
    """Network in Network for CIFAR: dropout after each of the first two blocks.

    Lin et al., `Network In Network <https://arxiv.org/abs/1312.4400>`_, 2014; ``width`` is 192 there.
    """
    check(width >= 2, "config.model.width", width, "at least 2 for nin")
    backbone = Convolutional(_nin(width), dropout_rate, 0.0, jnp.dtype(dtype))
    return Classifier(backbone, num_classes)


@models.register("all_conv")
def all_conv(
    *,
    num_classes: int,
    width: int = 96,
    dropout_rate: float = 0.5,
    input_dropout_rate: float = 0.2,
    dtype: str = "float32",
) -> Classifier:
    """All-CNN-C for CIFAR: dropout on the pixels and after each convolution of stride 2.

    Springenberg et al., `Striving for Simplicity <https://arxiv.org/abs/1412.6806>`_, 2015, table 1;
    ``width`` is 96 there.
    """
    check(
        0 <= input_dropout_rate < 1,
        "config.model.input_dropout_rate",
        input_dropout_rate,
        "in [0, 1)",
    )
    layers = _all_conv(width)
    backbone = Convolutional(layers, dropout_rate, input_dropout_rate, jnp.dtype(dtype))
    return Classifier(backbone, num_classes)


class Convolutional(nn.Module):
    """The backbone: a chain of convolutions, averaged over positions."""

    layers: Sequence[Layer]
    dropout_rate: float
    input_dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, dropout_keys: jax.Array | None):
        """Features ``[B, channels of the last layer]``."""
        height, width = images.shape[1:3]
        smallest = 2 ** sum(layer.pool is not None for layer in self.layers)  # each pool halves it
        check(
            min(height, width) >= smallest,
            "config.dataset",
            f"{height}x{width}",
            f"{smallest}x{smallest} pixels or more for this network",
        )
        pools = {"max": max_pool, "avg": avg_pool}
        x = Dropout(self.input_dropout_rate)(images, dropout_keys)
        for layer in self.layers:
            x = nn.relu(
                Conv(
                    layer.channels,
                    (layer.size, layer.size),
                    strides=(layer.stride, layer.stride),
                    padding=layer.size // 2,
                    dtype=self.dtype,
                )(x)
            )
            if layer.pool:
                x = pools[layer.pool](x, 3, 2, (0, 1))
            if layer.dropout:
                x = Dropout(self.dropout_rate)(x, dropout_keys)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
