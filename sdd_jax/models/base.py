"""The registry of the networks, and their interface.

A network is a linen module with four methods:

* ``features(images, *, train, dropout_keys, stage)``: images ``[B, H, W, C]`` to penultimate features
  ``[B, D]``;
* ``drop(features, dropout_keys)``: the network's own dropout on these features, if it has any;
* ``head(features)``: features to logits ``[B, K]``, applicable any number of times;
* ``__call__``: the three in sequence.

``train`` selects batch statistics in batch norm; ``dropout_keys`` (``[B]``, or None for no dropout)
drive the dropout layers inside the network. The two are independent, so that Monte-Carlo dropout can
keep batch norm in evaluation mode. A network with a ``spread`` also has ``prediction(images)``, its mean
posterior and spread, and ``second_head(features)`` if a layer predicts the spread.

Every network also has two options that are added when it is registered: ``init``, a file of parameters
to start from, see :mod:`sdd_jax.models.pretrained`; and ``spread``, the distribution over posteriors
that a student of an ensemble predicts, see :class:`Classifier`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import annotated_types as at
import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.errors import InputError
from sdd_jax.mc_dropout import Prediction
from sdd_jax.models.layers import Dropout, head_init
from sdd_jax.options import Size
from sdd_jax.registry import Registry
from sdd_jax.spread import dirichlet_prediction, logit_gaussian_prediction, two_head_prediction

Spread = Literal["none", "dirichlet", "gaussian", "two_heads"]
GAUSSIAN_SAMPLES = 100  # of the logits, at each prediction

COMMON = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (("init", "", str), ("spread", "none", Spread))
]


class NetworkRegistry(Registry):
    """The registry of the networks, which adds the options ``init`` and ``spread`` to each."""

    def register(self, name: str) -> Callable[[Callable], Callable]:
        """Decorator: registers the function, which must not have one of these options, as ``name``."""
        add = super().register(name)

        def add_with_common_options(function: Callable) -> Callable:
            add(_with_common_options(function))
            return function

        return add_with_common_options


def _with_common_options(function: Callable) -> Callable:
    """``function`` with the options ``init``, where training starts, and ``spread``."""

    @functools.wraps(function)
    def build_network(*, init: str = "", spread: Spread = "none", **options: Any) -> Any:
        del init
        network = function(**options)
        if spread == "none":
            return network
        if not isinstance(network, Classifier):
            raise InputError(
                f"must be none for a network that is no Classifier, got {spread!r}", field="spread"
            )
        return network.clone(spread=spread)

    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # as in sdd_jax.options.parameters
        signature = inspect.signature(function)
    for option in COMMON:
        if option.name in signature.parameters:
            raise ValueError(
                f"{function.__name__}: the option {option.name!r} is that of every network"
            )
    parameters = sorted([*signature.parameters.values(), *COMMON], key=lambda p: p.kind)
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
      spread: the distribution over posteriors that the network predicts. "none": a single posterior,
        softmax(logits). "dirichlet": a Dirichlet distribution, whose log-concentrations are the logits.
        "gaussian": a Gaussian of the logits, with log-variances from a second head. "two_heads":
        softmax(logits), and its mutual information from a second head.
    """

    backbone: nn.Module
    num_classes: int
    dropout_rate: float = 0.0
    upsample: int = 1
    spread: Spread = "none"

    def setup(self):
        """Creates the layers after the backbone."""
        self.feature_dropout = Dropout(self.dropout_rate)
        self.classifier = nn.Dense(self.num_classes, kernel_init=head_init)
        outputs = {"gaussian": self.num_classes, "two_heads": 1}.get(self.spread, 0)
        if outputs:
            self.second_classifier = nn.Dense(outputs, kernel_init=nn.initializers.zeros)

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
        if self.is_initializing() and self.spread in ("gaussian", "two_heads"):
            self.second_head(features)
        return self.head(self.drop(features, dropout_keys))

    def second_head(self, features: jax.Array) -> jax.Array:
        """Computes log-variances ``[B, K]`` ("gaussian") or information logits ``[B]`` ("two_heads")."""
        outputs = self.second_classifier(features)
        return outputs if self.spread == "gaussian" else outputs[..., 0]

    def prediction(self, images: jax.Array) -> Prediction:
        """Computes the mean posterior and the spread of ``images`` ``[B, H, W, C]``, dropout off."""
        features = self.features(images)
        logits = self.head(features)
        if self.spread == "dirichlet":
            return dirichlet_prediction(logits)
        outputs = self.second_head(features)
        if self.spread == "two_heads":
            return two_head_prediction(logits, outputs)
        key = jax.random.key(0)  # always the same: a prediction depends on the image alone
        return logit_gaussian_prediction(logits, outputs, key, num_samples=GAUSSIAN_SAMPLES)

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
