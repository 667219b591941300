"""Vision transformers.

Dosovitskiy et al., `An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>`_, 2021, in the
small sizes of Touvron et al., `DeiT <https://arxiv.org/abs/2012.12877>`_, 2021, without its
distillation token.

Parameters start as in the former paper's code, with two exceptions: the biases of the perceptrons start
from zero (there from a normal distribution of standard deviation 1e-6), and the head as described in
:class:`sdd_jax.models.Classifier` (there from zero). GELU is exact, as in DeiT's code; the former
paper's code approximates it by tanh.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.errors import require
from sdd_jax.models.base import Classifier, Depth, Dtype, Width, models
from sdd_jax.models.layers import Conv, Dropout, promoting
from sdd_jax.options import Rate, Size

kernel_init = nn.initializers.xavier_uniform()


def layer_norm(dtype: jnp.dtype, name: str | None = None) -> Callable[..., jax.Array]:
    """A layer norm that computes in float32 and returns ``dtype``."""
    return promoting(nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name))


class Block(nn.Module):
    """Self-attention, then a two-layer perceptron; each has layer norm before it and a shortcut."""

    heads: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """Tokens ``[B, N, D]`` to tokens of the same shape."""
        width = x.shape[-1]
        norm = partial(layer_norm, self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, kernel_init=kernel_init, force_fp32_for_softmax=True
        )
        x = x + Dropout(self.dropout_rate)(promoting(attention)(norm()(x)), dropout_keys)
        y = nn.gelu(dense(4 * width)(norm()(x)), approximate=False)
        y = dense(width)(Dropout(self.dropout_rate)(y, dropout_keys))
        return x + Dropout(self.dropout_rate)(y, dropout_keys)


class VisionTransformer(nn.Module):
    """The backbone: square patches as tokens, a class token, ``depth`` blocks.

    Dropout follows each dense layer except the projections to queries, keys and values, and follows the
    position embeddings, as in the paper.
    """

    width: int
    depth: int
    heads: int
    patch_size: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """Computes features ``[B, width]``: the class token after the last layer norm."""
        batch, rows, columns = images.shape[:3]
        size = self.patch_size
        require(
            rows % size == 0 and columns % size == 0,
            "patch_size",
            size,
            f"a divisor of the images' {rows}x{columns} pixels",
        )
        x = Conv(
            self.width,
            (size, size),
            strides=(size, size),
            padding="VALID",
            kernel_init=nn.initializers.lecun_normal(),
            dtype=self.dtype,
            name="patches",
        )(images)
        x = x.reshape(batch, -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        token = jnp.broadcast_to(token, (batch, 1, self.width))
        x = jnp.concatenate([token.astype(self.dtype), x], axis=1)
        shape = (1, *x.shape[1:])
        positions = self.param("position_embedding", nn.initializers.normal(0.02), shape)
        x = Dropout(self.dropout_rate)(x + positions.astype(self.dtype), dropout_keys)
        for i in range(self.depth):
            x = Block(self.heads, self.dropout_rate, self.dtype, name=f"block{i + 1}")(
                x, dropout_keys
            )
        return layer_norm(jnp.dtype("float32"), name="norm")(x[:, 0])


def _register(name: str, default_width: int, heads: int) -> None:
    @models.register(name)
    def vit(
        *,
        num_classes: int,
        width: Width = default_width,
        depth: Depth = 12,
        patch_size: Size = 4,
        block_dropout_rate: Rate = 0.0,
        dropout_rate: Rate = 0.0,
        dtype: Dtype = "float32",
    ) -> Classifier:
        """The network of this width and number of heads; its patches suit images of 32x32 pixels.

        At 224x224 a ``patch_size`` of 16 is the published network. ``block_dropout_rate`` is that of
        the dropout inside (0.1 in the paper), ``dropout_rate`` that of the dropout before the head.
        """
        require(width % heads == 0, "width", width, f"a multiple of {heads}, the number of heads")
        backbone = VisionTransformer(
            width, depth, heads, patch_size, block_dropout_rate, jnp.dtype(dtype)
        )
        return Classifier(backbone, num_classes, dropout_rate)


_register("vit_tiny", 192, 3)
_register("vit_small", 384, 6)
