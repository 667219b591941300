"""Fully convolutional networks: Network in Network, and the All-Convolutional net.

Both papers end in a 1x1 convolution to the classes, ReLU and a global average. Here that ReLU, which
only clips logits at zero, is left out. The last convolution then commutes with the average: the features
are the averaged maps, and the head is linear.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import annotated_types as at
import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.base import Classifier, Dtype, Width, models
from sdd_jax.models.layers import Conv, Dropout, avg_pool, max_pool, require_size
from sdd_jax.options import Rate


class Layer(NamedTuple):
    """A convolution with ReLU, then pooling (3x3, stride 2) and dropout where set."""

    channels: int
    size: int
    stride: int = 1
    pool: Literal["max", "avg"] | None = None
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
    *,
    num_classes: int,
    width: Annotated[Width, at.Ge(2)] = 192,  # the narrowest layer has width // 2
    dropout_rate: Rate = 0.5,
    dtype: Dtype = "float32",
) -> Classifier:
    """Network in Network for CIFAR: dropout after each of the first two blocks.

    Lin et al., `Network In Network <https://arxiv.org/abs/1312.4400>`_, 2014; ``width`` is 192 there.
    """
    backbone = FullyConvolutional(_nin(width), dropout_rate, 0.0, jnp.dtype(dtype))
    return Classifier(backbone, num_classes)


@models.register("all_conv")
def all_conv(
    *,
    num_classes: int,
    width: Width = 96,
    dropout_rate: Rate = 0.5,
    input_dropout_rate: Rate = 0.2,
    dtype: Dtype = "float32",
) -> Classifier:
    """All-CNN-C for CIFAR: dropout on the pixels and after each convolution of stride 2.

    Springenberg et al., `Striving for Simplicity <https://arxiv.org/abs/1412.6806>`_, 2015, table 1;
    ``width`` is 96 there.
    """
    layers = _all_conv(width)
    backbone = FullyConvolutional(layers, dropout_rate, input_dropout_rate, jnp.dtype(dtype))
    return Classifier(backbone, num_classes)


class FullyConvolutional(nn.Module):
    """The backbone: a chain of convolutions, averaged over positions."""

    layers: Sequence[Layer]
    hidden_dropout_rate: float
    input_dropout_rate: float
    dtype: jnp.dtype

    @property
    def dropout_rate(self) -> float:
        """The higher of the two rates."""
        return max(self.hidden_dropout_rate, self.input_dropout_rate)

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """Computes features ``[B, channels of the last layer]``."""
        num_pools = sum(layer.pool is not None for layer in self.layers)
        require_size(images, 2**num_pools, f"{num_pools} pooling layers")  # each halves the image
        pools = {"max": max_pool, "avg": avg_pool}
        x = Dropout(self.input_dropout_rate)(images, dropout_keys)
        for layer in self.layers:
            conv = Conv(
                layer.channels,
                (layer.size, layer.size),
                strides=(layer.stride, layer.stride),
                padding=layer.size // 2,
                dtype=self.dtype,
            )
            x = nn.relu(conv(x))
            if layer.pool:
                x = pools[layer.pool](x, 3, 2, (0, 1))
            if layer.dropout:
                x = Dropout(self.hidden_dropout_rate)(x, dropout_keys)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
