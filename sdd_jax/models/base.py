"""The registry of the networks, and their interface.

A network is a linen module with four methods:

* ``features(images, *, train, dropout_keys, stage)``: images ``[B, H, W, C]`` to penultimate features
  ``[B, D]``;
* ``drop(features, dropout_keys)``: the network's own dropout on these features, if it has any;
* ``head(features)``: features to logits ``[B, K]``, applicable any number of times;
* ``__call__``: the three in sequence.

``train`` selects batch statistics in batch norm; ``dropout_keys`` (``[B]``, or None for no dropout)
drive the dropout layers inside the network. The two are independent, so that Monte-Carlo dropout can
keep batch norm in evaluation mode.

Every network also has the option ``init``, a file of parameters to start from, see
:mod:`sdd_jax.models.pretrained`. It is added when a network is registered.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import annotated_types as at
import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.layers import Dropout, head_init
from sdd_jax.options import Size
from sdd_jax.registry import Registry

INIT = inspect.Parameter("init", inspect.Parameter.KEYWORD_ONLY, default="", annotation=str)


class NetworkRegistry(Registry):
    """The registry of the networks, which adds the option ``init`` to each."""

    def register(self, name: str) -> Callable[[Callable], Callable]:
        """Decorator: registers the function, which must not have an option ``init``, as ``name``."""
        add = super().register(name)

        def add_with_init(function: Callable) -> Callable:
            add(_with_init(function))
            return function

        return add_with_init


def _with_init(function: Callable) -> Callable:
    """``function`` with the option ``init``, which says where training starts, not what is built."""

    @functools.wraps(function)
    def build_network(*, init: str = "", **options: Any) -> Any:
        del init
        return function(**options)

    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # as in sdd_jax.options.parameters
        signature = inspect.signature(function)
    if INIT.name in signature.parameters:
        raise ValueError(f"{function.__name__}: the option 'init' is that of every network")
    parameters = sorted([*signature.parameters.values(), INIT], key=lambda p: p.kind)
    setattr(build_network, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    return build_network


models = NetworkRegistry("sdd_jax.models", "model")

# Wider or deeper networks run out of memory, or take minutes to trace.
Width = Annotated[Size, at.Le(2**16)]
Depth = Annotated[Size, at.Le(1000)]
Stem = Literal["cifar", "imagenet"]  # a 3x3 convolution; or 7x7 of stride 2, then max-pooling
Dtype = Literal["float32", "bfloat16"]  # of the backbone's computation; parameters are float32


def build(
    options: Mapping[str, Any], *, num_classes: int, axis_name: str | None = None
) -> nn.Module:
    """Builds the network that ``options["name"]`` names.

    Args:
      options: the name and any of the network's options. ``init`` has no effect here.
      num_classes: K.
      axis_name: the mapped axis over which batch norm synchronises while training.

    Returns:
      The network; ``init`` and ``apply`` are linen's.

    Raises:
      InputError: unknown name, option or value.

    Example:
      >>> model = build({"name": "mlp", "width": 64, "dropout_rate": 0.1}, num_classes=10)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> model.apply(variables, jnp.zeros((5, 8, 8, 1))).shape
      (5, 10)
    """
    return models.build(options, num_classes=num_classes, axis_name=axis_name)


class Classifier(nn.Module):
    """A backbone, dropout on its features, and a linear head.

    Features and logits are float32, also when the backbone computes in bfloat16, whose rounding error
    exceeds the divergence between two nearby posteriors.

    The head's weights start from U(-1/sqrt(D), 1/sqrt(D)), as in PyTorch's ``Linear``, and its biases
    from zero, where PyTorch draws them from the same interval.

    Attributes:
      backbone: module ``(images, *, train, dropout_keys) -> features [B, D]``, or ``[B, h, w, D]`` for
        segmentation. Four attributes are optional: ``dropout_rate``, the rate of the dropout inside it;
        ``num_stages``, for a backbone that sows the output of each stage as ``stages`` and takes
        ``stage`` (see ``features``); ``takes``, the kinds of its inputs (see
        :mod:`sdd_jax.data.inputs`), by default images alone; and ``vocabulary``, the number of token
        ids.
      num_classes: K.
      dropout_rate: rate of the dropout on the features.
      upsample: factor by which the logits of features ``[B, h, w, D]`` are enlarged, bilinearly.
    """

    backbone: nn.Module
    num_classes: int
    dropout_rate: float = 0.0
    upsample: int = 1

    def setup(self):
        """Creates the layers after the backbone."""
        self.feature_dropout = Dropout(self.dropout_rate)
        self.classifier = nn.Dense(self.num_classes, kernel_init=head_init)

    def features(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        dropout_keys: jax.Array | None = None,
        stage: int = 0,
    ) -> jax.Array:
        """Computes penultimate features ``[B, D]`` of ``images`` ``[B, H, W, C]``.

        With ``stage`` above 0, ``images`` is the output of that stage, and the stages after it run.
        """
        options = {"stage": stage} if stage else {}
        features = self.backbone(images, train=train, dropout_keys=dropout_keys, **options)
        return features.astype(jnp.float32)

    def drop(self, features: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """Applies the dropout before the head, by keys ``[B]``; without keys, returns ``features``."""
        return self.feature_dropout(features, dropout_keys)

    def head(self, features: jax.Array) -> jax.Array:
        """Computes logits ``[B, K]`` of ``features`` ``[B, D]``, or of each location's."""
        logits = self.classifier(features)
        if self.upsample == 1:
            return logits
        batch, height, width, classes = logits.shape
        shape = (batch, self.upsample * height, self.upsample * width, classes)
        return jax.image.resize(logits, shape, "linear")

    def __call__(
        self, images: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Computes logits ``[B, K]`` of ``images`` ``[B, H, W, C]``."""
        features = self.features(images, train=train, dropout_keys=dropout_keys)
        return self.head(self.drop(features, dropout_keys))

    def num_stages(self) -> int:
        """Number of stages of the backbone; 0 if it sows none."""
        return getattr(self.backbone, "num_stages", 0)

    def takes(self) -> tuple[str, ...]:
        """The kinds of inputs that the backbone takes."""
        return getattr(self.backbone, "takes", ("images",))

    def vocabulary(self) -> int:
        """Number of token ids that the backbone knows; 0 if it takes no tokens."""
        return getattr(self.backbone, "vocabulary", 0)

    def stochastic(self) -> tuple[bool, bool]:
        """``(inside the backbone, on the features)``: where the network has dropout."""
        return getattr(self.backbone, "dropout_rate", 0.0) > 0, self.dropout_rate > 0
