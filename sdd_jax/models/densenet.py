"""DenseNet-121, in the form for CIFAR (3x3 stem, no pooling) and for ImageNet.

Huang et al., `Densely Connected Convolutional Networks <https://arxiv.org/abs/1608.06993>`_, 2017:
the form DenseNet-BC, with bottlenecks, and transitions that halve the channels.

Convolutions start from Kaiming's normal distribution with the variance 2 / fan-out, as those of the
residual networks do; torchvision's DenseNet uses 2 / fan-in.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.base import Classifier, Dtype, Stem, Width, models
from sdd_jax.models.layers import avg_pool, layers, max_pool, require_size
from sdd_jax.options import Rate


@models.register("densenet121")
def densenet121(
    *,
    num_classes: int,
    axis_name: str | None,
    width: Width = 32,
    stem: Stem = "cifar",
    dropout_rate: Rate = 0.0,
    dtype: Dtype = "float32",
) -> Classifier:
    """Blocks of 6, 12, 24 and 16 layers; ``dropout_rate`` is that of the dropout before the head.

    ``width`` is the paper's growth rate, the number of channels that each layer adds.
    """
    backbone = DenseNet((6, 12, 24, 16), width, stem, axis_name, jnp.dtype(dtype))
    return Classifier(backbone, num_classes, dropout_rate)


class DenseLayer(nn.Module):
    """1x1 and 3x3 convolutions, each after batch norm and ReLU; appends its output to its input."""

    width: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C]`` to ``[B, H, W, C + width]``."""
        y = self.conv(4 * self.width, 1)(nn.relu(self.norm()(x)))
        y = self.conv(self.width, 3)(nn.relu(self.norm()(y)))
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """The backbone: stem, dense blocks with transitions between them, global average pooling."""

    blocks: Sequence[int]
    width: int
    stem: Stem
    axis_name: str | None
    dtype: jnp.dtype

    @property
    def num_stages(self) -> int:
        """Number of dense blocks."""
        return len(self.blocks)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, dropout_keys: jax.Array | None, stage: int = 0
    ) -> jax.Array:
        """Computes features (``[B, 32 * width]`` in densenet121) of images, or of a stage's output."""
        conv, norm = layers(train=train, axis_name=self.axis_name, dtype=self.dtype)
        if stage == 0:
            # A transition halves the image and drops an odd row; the last block needs a pixel. The
            # ImageNet stem halves it twice and rounds up.
            smallest = 2 ** (len(self.blocks) - 1)
            smallest = 4 * smallest - 3 if self.stem == "imagenet" else smallest
            require_size(x, smallest, f"a DenseNet with stem={self.stem!r}")
        if stage == 0 and self.stem == "cifar":
            x = conv(2 * self.width, 3, name="stem_conv")(x)
        elif stage == 0:
            x = conv(2 * self.width, 7, 2, name="stem_conv")(x)
            x = max_pool(nn.relu(norm(name="stem_norm")(x)), 3, 2, (1, 1))
        for i in range(stage, len(self.blocks)):
            if i > 0:
                x = nn.relu(norm(name=f"transition{i}_norm")(x))
                # The paper pools after the convolution; they commute, and this is a quarter of the work.
                x = avg_pool(x, 2, 2)
                x = conv(x.shape[-1] // 2, 1, name=f"transition{i}_conv")(x)
            for j in range(self.blocks[i]):
                x = DenseLayer(self.width, conv, norm, name=f"block{i + 1}_layer{j + 1}")(x)
            self.sow("intermediates", "stages", x)
        x = nn.relu(norm(name="norm")(x))
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
