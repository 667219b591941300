"""Residual networks, in the form for CIFAR (3x3 stem, no pooling) and for ImageNet.

He et al., `Deep Residual Learning <https://arxiv.org/abs/1512.03385>`_, 2016. As in torchvision,
bottleneck blocks have their stride on the 3x3 convolution; the paper has it on the first 1x1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.base import Classifier, Dtype, Stem, Width, models
from sdd_jax.models.layers import layers, max_pool
from sdd_jax.options import Rate


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    width: int
    stride: int
    conv: Callable
    norm: Callable
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C]`` to ``[B, H/stride, W/stride, width]``."""
        y = nn.relu(self.norm()(self.conv(self.width, 3, self.stride)(x)))
        y = self.norm()(self.conv(self.width, 3)(y))
        return nn.relu(y + shortcut(self, x, y.shape))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    width: int
    stride: int
    conv: Callable
    norm: Callable
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C]`` to ``[B, H/stride, W/stride, 4 * width]``."""
        y = nn.relu(self.norm()(self.conv(self.width, 1)(x)))
        y = nn.relu(self.norm()(self.conv(self.width, 3, self.stride)(y)))
        y = self.norm()(self.conv(self.width * self.expansion, 1)(y))
        return nn.relu(y + shortcut(self, x, y.shape))


Block = type[BasicBlock] | type[Bottleneck]


def shortcut(block: BasicBlock | Bottleneck, x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Returns ``x``, projected by a 1x1 convolution where the block changes its shape."""
    if x.shape == tuple(shape):
        return x
    return block.norm(name="shortcut_norm")(
        block.conv(shape[-1], 1, block.stride, name="shortcut_conv")(x)
    )


class ResNet(nn.Module):
    """The backbone: stem, four stages, global average pooling; without it, the output of each stage."""

    block: Block
    stages: Sequence[int]
    width: int
    stem: Stem
    axis_name: str | None
    dtype: jnp.dtype
    pool: bool = True

    @property
    def num_stages(self) -> int:
        """Number of stages, without the stem."""
        return len(self.stages)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, dropout_keys: jax.Array | None, stage: int = 0
    ) -> Any:
        """Computes features ``[B, 8 * width * expansion]`` of images, or of the output of a stage."""
        maps = []
        conv, norm = layers(train=train, axis_name=self.axis_name, dtype=self.dtype)
        if stage == 0 and self.stem == "cifar":
            x = nn.relu(norm(name="stem_norm")(conv(self.width, 3, name="stem_conv")(x)))
        elif stage == 0:
            x = nn.relu(norm(name="stem_norm")(conv(self.width, 7, 2, name="stem_conv")(x)))
            x = max_pool(x, 3, 2, (1, 1))
        for i in range(stage, len(self.stages)):
            for j in range(self.stages[i]):
                x = self.block(
                    width=self.width * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"stage{i + 1}_block{j + 1}",
                )(x)
            self.sow("intermediates", "stages", x)
            maps.append(x)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32) if self.pool else maps


def _register(name: str, block: Block, stages: tuple[int, ...]) -> None:
    @models.register(name)
    def resnet(
        *,
        num_classes: int,
        axis_name: str | None,
        width: Width = 64,
        stem: Stem = "cifar",
        dropout_rate: Rate = 0.0,
        dtype: Dtype = "float32",
    ) -> Classifier:
        """The network of this depth; ``dropout_rate`` is that of the dropout before the head."""
        backbone = ResNet(block, stages, width, stem, axis_name, jnp.dtype(dtype))
        return Classifier(backbone, num_classes, dropout_rate)


DEPTHS: dict[str, tuple[Block, tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
for _name, (_block, _stages) in DEPTHS.items():
    _register(_name, _block, _stages)
