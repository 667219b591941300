"""Wide residual networks for CIFAR.

Zagoruyko and Komodakis, `Wide Residual Networks <https://arxiv.org/abs/1605.07146>`_, 2016: basic blocks
in pre-activation form, and dropout between the two convolutions of each.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.base import Classifier, Dtype, Width, models
from sdd_jax.models.layers import Dropout, layers
from sdd_jax.options import Rate


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a shortcut."""

    channels: int
    stride: int
    dropout_rate: float
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """``[B, H, W, C]`` to ``[B, H/stride, W/stride, channels]``."""
        y = nn.relu(self.norm()(x))
        if x.shape[-1] != self.channels:
            x = self.conv(self.channels, 1, self.stride, name="shortcut_conv")(y)
        y = nn.relu(self.norm()(self.conv(self.channels, 3, self.stride)(y)))
        y = Dropout(self.dropout_rate)(y, dropout_keys)
        return x + self.conv(self.channels, 3)(y)


class WideResNet(nn.Module):
    """The backbone: stem, three stages, batch norm, ReLU, global average pooling."""

    depth: int
    widen: int
    width: int
    dropout_rate: float
    axis_name: str | None
    dtype: jnp.dtype

    num_stages = 3

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, dropout_keys: jax.Array | None, stage: int = 0
    ) -> jax.Array:
        """Computes features ``[B, 4 * width * widen]`` of images, or of the output of a stage."""
        conv, norm = layers(train=train, axis_name=self.axis_name, dtype=self.dtype)
        if stage == 0:
            x = conv(self.width, 3, name="stem_conv")(x)
        for i in range(stage, 3):
            for j in range((self.depth - 4) // 6):
                x = WideBlock(
                    channels=self.width * self.widen * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    dropout_rate=self.dropout_rate,
                    conv=conv,
                    norm=norm,
                    name=f"stage{i + 1}_block{j + 1}",
                )(x, dropout_keys)
            self.sow("intermediates", "stages", x)
        x = nn.relu(norm(name="norm")(x))
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def _register(depth: int, widen: int) -> None:
    @models.register(f"wide_resnet{depth}_{widen}")
    def wide_resnet(
        *,
        num_classes: int,
        axis_name: str | None,
        width: Width = 16,
        block_dropout_rate: Rate = 0.0,
        dropout_rate: Rate = 0.0,
        dtype: Dtype = "float32",
    ) -> Classifier:
        """The network of this depth and widening factor.

        ``width`` is the number of channels of the first convolution; the stages have ``widen`` times
        as many, then twice and four times that. ``block_dropout_rate`` is that of the dropout in the
        blocks (0.3 in the paper), ``dropout_rate`` that of the dropout before the head.
        """
        backbone = WideResNet(depth, widen, width, block_dropout_rate, axis_name, jnp.dtype(dtype))
        return Classifier(backbone, num_classes, dropout_rate)


_register(16, 4)
_register(28, 10)
_register(40, 2)
