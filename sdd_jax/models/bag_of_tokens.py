"""A bag of tokens: the mean of their embeddings, then a multi-layer perceptron."""

from typing import Annotated

import annotated_types as at
import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.base import Classifier, Depth, Dtype, Width, models
from sdd_jax.models.layers import Dropout
from sdd_jax.models.mlp import MLP
from sdd_jax.options import Rate, Size

PADDING = 0


@models.register("bag_of_tokens")
def bag_of_tokens(
    *,
    num_classes: int,
    vocabulary: Annotated[Size, at.Le(2**24)] = 32_768,
    embedding: Width = 128,
    width: Width = 128,
    depth: Depth = 1,
    dropout_rate: Rate = 0.0,
    dtype: Dtype = "float32",
) -> Classifier:
    """Mean of the embeddings of the tokens but 0, which is padding; then an MLP.

    ``vocabulary`` is the number of token ids. The dropout is that of the MLP, also on its input.
    """
    layers = MLP(width, depth, dropout_rate if depth > 1 else 0.0, jnp.dtype(dtype))
    backbone = BagOfTokens(layers, vocabulary, embedding, dropout_rate, jnp.dtype(dtype))
    return Classifier(backbone, num_classes, dropout_rate)


class BagOfTokens(nn.Module):
    """The backbone."""

    layers: MLP
    vocabulary: int
    embedding: int
    dropout_rate: float
    dtype: jnp.dtype

    takes = ("tokens",)

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """Computes features ``[B, width]`` of token ids ``[B, L]``; all padding gives those of zeros."""
        embedded = nn.Embed(
            self.vocabulary,
            self.embedding,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(1.0),  # as in PyTorch
        )(tokens)
        known = (tokens != PADDING)[..., None]
        total = jnp.sum(jnp.where(known, embedded, 0), axis=1, dtype=jnp.float32)
        mean = total / jnp.maximum(jnp.sum(known, axis=1, dtype=jnp.float32), 1)
        dropped = Dropout(self.dropout_rate)(mean, dropout_keys)
        return self.layers(dropped, train=train, dropout_keys=dropout_keys)
