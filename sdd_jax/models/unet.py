"""U-Net over a residual network, for segmentation.

Ronneberger et al., `U-Net <https://arxiv.org/abs/1505.04597>`_, 2015, with the stages of a ResNet as its
contracting path, as is usual today. The expanding path ends at the resolution of the first stage: that
of the image with the stem for CIFAR, a quarter of it with that for ImageNet. The logits there are
enlarged to the image.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.errors import InputError
from sdd_jax.models.base import Classifier, Dtype, Stem, Width, models
from sdd_jax.models.layers import layers
from sdd_jax.models.resnet import DEPTHS, ResNet
from sdd_jax.options import Rate

Encoder = Literal["resnet18", "resnet34", "resnet50"]


@models.register("unet")
def unet(
    *,
    num_classes: int,
    axis_name: str | None,
    encoder: Encoder = "resnet18",
    width: Width = 64,
    features: Width = 64,
    stem: Stem = "cifar",
    dropout_rate: Rate = 0.0,
    dtype: Dtype = "float32",
) -> Classifier:
    """The network; ``width`` is that of the encoder, ``features`` the number D for each location.

    ``dropout_rate`` is that of the dropout before the head, a linear map at each location. The height
    and width of the images are multiples of 8, or of 32 with the stem for ImageNet.
    """
    backbone = over_resnet(encoder, width, features, stem, axis_name, dtype)
    return Classifier(backbone, num_classes, dropout_rate, upsample=1 if stem == "cifar" else 4)


def over_resnet(
    encoder: Encoder, width: int, features: int, stem: Stem, axis_name: str | None, dtype: Dtype
) -> "UNet":
    """The backbone with ``features`` channels over the stages of a ResNet."""
    block, stages = DEPTHS[encoder]
    contracting = ResNet(block, stages, width, stem, axis_name, jnp.dtype(dtype), pool=False)
    return UNet(contracting, features, axis_name, jnp.dtype(dtype))


class UNet(nn.Module):
    """The backbone."""

    encoder: ResNet
    num_features: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """Computes features ``[B, h, w, D]`` of images ``[B, H, W, C]``."""
        multiple = 8 if self.encoder.stem == "cifar" else 32
        if any(side % multiple for side in images.shape[1:3]):
            raise InputError(
                f"the sides of images must be multiples of {multiple} for a U-Net with the stem "
                f"{self.encoder.stem!r}, got {images.shape[1]}x{images.shape[2]}"
            )
        conv, norm = layers(train=train, axis_name=self.axis_name, dtype=self.dtype)
        *skips, x = self.encoder(images, train=train, dropout_keys=dropout_keys)
        for skip in reversed(skips):
            # The stages of bottleneck blocks are four times as wide as their 3x3 convolutions.
            channels = skip.shape[-1] // self.encoder.block.expansion
            x = jnp.concatenate([_resized(x, skip.shape), skip], axis=-1)
            x = nn.relu(norm()(conv(channels, 3)(x)))
        return nn.relu(norm()(conv(self.num_features, 3)(x)))


def _resized(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bilinear, to the height and width of ``shape``."""
    return jax.image.resize(x, (len(x), *shape[1:3], x.shape[-1]), "linear").astype(x.dtype)
