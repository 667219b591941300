"""What a network is to the rest of the program, and the parts that networks share.

A network is a linen module with four methods:

* ``features(images, *, train, dropout_keys, stage)``: ``[B, H, W, C]`` to penultimate features
  ``[B, D]``;
* ``drop(features, dropout_keys)``: the network's own dropout on these features, if it has any;
* ``head(features)``: features to logits ``[B, K]``, applicable any number of times;
* ``__call__``: the three in a row.

``train`` selects batch statistics in batch norm; ``dropout_keys`` (``[B]``, or None for no dropout)
drive the dropout layers inside the network. The two are independent, so that Monte-Carlo dropout can
keep batch norm in evaluation mode.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.dropout import dropout
from sdd_jax.errors import check
from sdd_jax.registry import Registry

models = Registry("sdd_jax.models", "config.model")
DTYPES = ("float32", "bfloat16")

conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # Kaiming, fan-out
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(+-1/sqrt(fan_in))


def build(
    options: Mapping[str, Any], *, num_classes: int, axis_name: str | None = None
) -> nn.Module:
    """Builds the network that ``options["name"]`` names.

    Args:
      options: ``config.model``: the name and the network's own options.
      num_classes: K.
      axis_name: the mapped axis over which batch norm synchronises while training.

    Raises:
      InputError: unknown name, option or value.
    """
    width, dtype = options.get("width", 1), options.get("dtype", "float32")
    check(width >= 1, "config.model.width", width, "at least 1")
    check(dtype in DTYPES, "config.model.dtype", dtype, f"one of {', '.join(DTYPES)}")
    rate = options.get("dropout_rate", 0.0)
    check(0 <= rate < 1, "config.model.dropout_rate", rate, "in [0, 1)")
    return models.build(options, num_classes=num_classes, axis_name=axis_name)


class Classifier(nn.Module):
    """A backbone, dropout on its features, and a linear head.

    Features leave the backbone, and logits the head, in float32 also when the backbone computes in
    bfloat16: the divergence between two nearby posteriors would drown in bfloat16's rounding.

    Attributes:
      backbone: module ``(images, *, train, dropout_keys) -> features [B, D]``; its attribute
        ``dropout_rate``, if it has one, is that of the dropout inside it. If it has a ``num_stages``, it
        sows what each gave as ``stages``, and takes ``stage`` (see ``features``).
      num_classes: K.
      dropout_rate: of the dropout on the features.
    """

    backbone: nn.Module
    num_classes: int
    dropout_rate: float = 0.0

    def setup(self):
        """Creates the parts after the backbone."""
        self.feature_dropout = Dropout(self.dropout_rate)
        self.classifier = nn.Dense(self.num_classes, kernel_init=dense_init)

    def features(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        dropout_keys: jax.Array | None = None,
        stage: int = 0,
    ) -> jax.Array:
        """Penultimate features ``[B, D]`` of ``images`` ``[B, H, W, C]``.

        With a ``stage`` above 0, ``images`` are what that stage gave, and the rest of the network runs.
        """
        after = {"stage": stage} if stage else {}
        features = self.backbone(images, train=train, dropout_keys=dropout_keys, **after)
        return features.astype(jnp.float32)

    def drop(self, features: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """The features after the network's own dropout, by keys ``[B]``; without keys, as they are."""
        return self.feature_dropout(features, dropout_keys)

    def head(self, features: jax.Array) -> jax.Array:
        """Logits ``[B, K]`` of ``features`` ``[B, D]``."""
        return self.classifier(features)

    def __call__(
        self, images: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Logits ``[B, K]`` of ``images`` ``[B, H, W, C]``."""
        features = self.features(images, train=train, dropout_keys=dropout_keys)
        return self.head(self.drop(features, dropout_keys))

    def num_stages(self) -> int:
        """How many stages the backbone has, whose results can be looked at and replaced."""
        return getattr(self.backbone, "num_stages", 0)

    def stochastic(self) -> tuple[bool, bool]:
        """Whether there is dropout inside the backbone, and on the features."""
        return getattr(self.backbone, "dropout_rate", 0.0) > 0, self.dropout_rate > 0


class Dropout(nn.Module):
    """Dropout inside a network, by one key per example.

    linen's own layer draws one mask for the batch that the device holds, so its masks depend on the
    number of devices. Here each layer folds its path in the network into the examples' keys.

    Attributes:
      rate: probability of a zero, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Drops elements of ``x`` ``[B, ...]`` by ``keys`` ``[B]``; without keys, returns ``x``."""
        if keys is None or self.rate == 0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())
        return dropout(jax.vmap(jax.random.fold_in, (0, None))(keys, layer), x, rate=self.rate)
