"""BYOT: the network's end teaches classifiers on its middle."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.errors import InputError, check
from sdd_jax.models.convolution import layers
from sdd_jax.objectives.base import Auxiliary, Objective, Output, Term, objectives


@objectives.register("byot")
def byot(
    *,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    axis_name: str | None,
    weight: float = 1.0,
    temperature: float = 3.0,
    label_weight: float = 0.9,
    feature_weight: float = 1e-6,
) -> Objective:
    """Cross-entropy, and branches after every stage but the last.

    A branch learns from the labels (``label_weight``), from the network's posterior (the rest of 1, see
    :func:`sdd_jax.byot_loss`) and from its features (:func:`sdd_jax.byot_feature_loss`); all three are
    summed over the branches and weighted by ``weight``. The branches are forgotten at test time.
    """
    check(weight >= 0, "config.objective.weight", weight, "0 or more")
    check(temperature > 0, "config.objective.temperature", temperature, "greater than 0")
    check(0 <= label_weight <= 1, "config.objective.label_weight", label_weight, "in [0, 1]")
    check(feature_weight >= 0, "config.objective.feature_weight", feature_weight, "0 or more")
    if model.num_stages() < 2:
        raise InputError("config.objective: 'byot' needs a network of two stages or more")

    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        branches, stats = forward.auxiliary(*view.stages)
        cross_entropies, divergences, distances = zip(
            *(
                (
                    losses.cross_entropy(logits, batch.labels),
                    losses.byot_loss(logits, view.logits, temperature=temperature),
                    losses.byot_feature_loss(features, view.features),
                )
                for logits, features in branches
            ),
            strict=True,
        )
        terms = {
            "cross_entropy": Term(losses.cross_entropy(view.logits, batch.labels)),
            "byot_cross_entropy": Term(sum(cross_entropies), weight * label_weight),
            "byot": Term(sum(divergences), weight * (1 - label_weight)),
            "byot_features": Term(sum(distances), weight * feature_weight),
        }
        return Output(view, terms, view.batch_stats, auxiliary_stats=stats)

    return Objective(loss, auxiliary=_branches(model, image_shape, axis_name))


def _branches(model, image_shape, axis_name) -> Auxiliary:
    def look():
        images = jnp.zeros((1, *image_shape))
        variables = model.init(jax.random.key(0), images)
        features, sown = model.apply(
            variables, images, method="features", mutable=["intermediates"]
        )
        return features, sown["intermediates"]["backbone"]["stages"]

    features, stages = jax.eval_shape(look)
    module = Branches(model.num_classes, features.shape[-1], axis_name)
    return Auxiliary(module, tuple(jnp.zeros(stage.shape, stage.dtype) for stage in stages))


class Branches(nn.Module):
    """A classifier on each stage but the last.

    Of maps ``[B, H, W, C]``: a bottleneck of D / 4 channels whose convolution, of a stride of its size,
    brings them to the size of the last stage's, then D channels and the mean over positions. Of vectors
    the same with dense layers.

    Attributes:
      num_classes: K.
      num_features: D, of the network's own features.
      axis_name: the mapped axis over which batch norm synchronises while training.
    """

    num_classes: int
    num_features: int
    axis_name: str | None

    @nn.compact
    def __call__(self, *stages: jax.Array, train: bool = False, dropout_keys=None):
        """``[(logits [B, K], features [B, D]), ...]``."""
        del dropout_keys
        results = []
        for x in stages[:-1]:
            conv, norm = layers(train=train, axis_name=self.axis_name, dtype=x.dtype)
            narrow = max(self.num_features // 4, 1)
            if x.ndim == 2:
                widths = (narrow, self.num_features)
                parts = [nn.Dense(width, use_bias=False, dtype=x.dtype) for width in widths]
            else:
                window = tuple(x.shape[axis] // stages[-1].shape[axis] for axis in (1, 2))
                parts = [conv(narrow, 1), _window(conv, narrow, window), conv(self.num_features, 1)]
            for part in parts:
                x = nn.relu(norm()(part(x)))
            features = x if x.ndim == 2 else jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
            features = features.astype(jnp.float32)
            results.append((nn.Dense(self.num_classes)(features), features))
        return results


def _window(conv, channels: int, size: tuple[int, int]) -> nn.Module:
    """A convolution with a stride of its size: windows that do not overlap."""
    return conv(channels, 1).copy(kernel_size=size, strides=size, padding="VALID")
