"""BYOT: the final classifier teaches classifiers on the earlier stages."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.errors import InputError
from sdd_jax.models.layers import layers
from sdd_jax.objectives.base import Auxiliary, Objective, Output, Term, objectives
from sdd_jax.options import Fraction, NonNegative, Positive


@objectives.register("byot")
def byot(
    *,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    axis_name: str | None,
    weight: NonNegative = 1.0,
    temperature: Positive = 3.0,
    label_weight: Fraction = 0.9,
    feature_weight: NonNegative = 1e-6,
) -> Objective:
    """Cross-entropy, plus a branch after every stage but the last.

    A branch learns from the labels (``label_weight``), from the network's posterior
    (``1 - label_weight``, :func:`sdd_jax.byot_loss`) and from its features
    (:func:`sdd_jax.byot_feature_loss`). Each term is summed over the branches and multiplied by
    ``weight``. The branches are not used after training.

    Raises:
      InputError: a network of fewer than two stages.
    """
    if model.num_stages() < 2:
        raise InputError("'byot' needs a network of two stages or more")

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        branches, stats = forward.auxiliary(*view.stages)
        cross_entropies, divergences, distances = [], [], []
        for logits, features in branches:
            cross_entropies.append(losses.cross_entropy(logits, batch.labels))
            divergences.append(losses.byot_loss(logits, view.logits, temperature=temperature))
            distances.append(losses.byot_feature_loss(features, view.features))
        terms = {
            "cross_entropy": Term(losses.cross_entropy(view.logits, batch.labels)),
            "byot_cross_entropy": Term(_sum(cross_entropies), weight * label_weight),
            "byot": Term(_sum(divergences), weight * (1 - label_weight)),
            "byot_features": Term(_sum(distances), weight * feature_weight),
        }
        return Output(view, terms, view.batch_stats, auxiliary_stats=stats)

    return Objective(loss, auxiliary=_branches(model, image_shape, axis_name))


def _sum(values: list[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack(values), axis=0)


def _branches(model, image_shape, axis_name) -> Auxiliary:
    def features_and_stages():
        images = jnp.zeros((1, *image_shape))
        variables = model.init(jax.random.key(0), images)
        features, sown = model.apply(
            variables, images, method="features", mutable=["intermediates"]
        )
        return features, sown["intermediates"]["backbone"]["stages"]

    features, stages = jax.eval_shape(features_and_stages)
    module = Branches(model.num_classes, features.shape[-1], axis_name)
    return Auxiliary(module, tuple(jnp.zeros(stage.shape, stage.dtype) for stage in stages))


class Branches(nn.Module):
    """A classifier on each stage but the last.

    On maps ``[B, H, W, C]``: a bottleneck of D / 4 channels whose convolution, with a stride of its
    kernel size, reduces them to the size of the last stage's, then D channels and the mean over
    positions. On vectors: the same with dense layers.

    Attributes:
      num_classes: K.
      num_features: D, of the network's own features.
      axis_name: the mapped axis over which batch norm synchronises while training.
    """

    num_classes: int
    num_features: int
    axis_name: str | None

    @nn.compact
    def __call__(
        self, *stages: jax.Array, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> list[tuple[jax.Array, jax.Array]]:
        """Returns the logits ``[B, K]`` and features ``[B, D]`` of each branch."""
        del dropout_keys
        results = []
        for x in stages[:-1]:
            conv, norm = layers(train=train, axis_name=self.axis_name, dtype=x.dtype)
            narrow = max(self.num_features // 4, 1)
            if x.ndim == 2:
                widths = (narrow, self.num_features)
                parts: Sequence[nn.Module] = [
                    nn.Dense(width, use_bias=False, dtype=x.dtype) for width in widths
                ]
            else:
                window = (x.shape[1] // stages[-1].shape[1], x.shape[2] // stages[-1].shape[2])
                parts = [
                    conv(narrow, 1),
                    conv(narrow, 1).copy(kernel_size=window, strides=window, padding="VALID"),
                    conv(self.num_features, 1),
                ]
            for part in parts:
                x = nn.relu(norm()(part(x)))
            features = x if x.ndim == 2 else jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
            features = features.astype(jnp.float32)
            results.append((nn.Dense(self.num_classes)(features), features))
        return results
