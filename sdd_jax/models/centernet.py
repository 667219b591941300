"""CenterNet over a U-Net, for detection.

Zhou et al., `Objects as Points <https://arxiv.org/abs/1904.07850>`_, 2019, with the stages of a ResNet
and a U-Net's expanding path in place of the paper's transposed convolutions. Each branch has a 3x3
convolution of its own before its linear layer: half of the features are the classes', half the boxes'.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.base import Classifier, Dtype, Width, models
from sdd_jax.models.layers import Dropout, head_init
from sdd_jax.models.unet import Encoder, over_resnet
from sdd_jax.options import Rate

PRIOR = 0.1  # initial probability of an object


@models.register("centernet")
def centernet(
    *,
    num_classes: int,
    axis_name: str | None,
    encoder: Encoder = "resnet18",
    width: Width = 64,
    features: Width = 64,
    dropout_rate: Rate = 0.0,
    dtype: Dtype = "float32",
) -> Classifier:
    """The network; ``width`` is that of the encoder, ``features`` the number for each branch.

    ``dropout_rate`` is that of the dropout before the two linear layers. The height and width of the
    images are multiples of 32.
    """
    backbone = over_resnet(encoder, width, 2 * features, "imagenet", axis_name, dtype)
    return CenterNet(backbone, num_classes, dropout_rate)


class CenterNet(Classifier):
    """A backbone, dropout on its features, and two linear layers at each location.

    Its outputs are those that :class:`sdd_jax.tasks.detection.Detection` describes.
    """

    def setup(self):
        """Creates the layers after the backbone."""
        self.feature_dropout = Dropout(self.dropout_rate)
        prior = nn.initializers.constant(-math.log((1 - PRIOR) / PRIOR))
        self.classifier = nn.Dense(self.num_classes, kernel_init=head_init, bias_init=prior)
        self.boxes = nn.Dense(4, kernel_init=head_init)

    def head(self, features: jax.Array) -> jax.Array:
        """Computes outputs ``[B, h, w, K + 4]`` of ``features`` ``[B, h, w, D]``."""
        of_classes, of_boxes = jnp.split(features, 2, axis=-1)
        return jnp.concatenate([self.classifier(of_classes), self.boxes(of_boxes)], axis=-1)
