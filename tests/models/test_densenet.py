"""DenseNet against the paper's layers in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models import Classifier
from sdd_jax.models.densenet import DenseNet


def features_by_hand(variables, images, blocks, stem, by_hand):
    params, stats = (variables[kind]["backbone"] for kind in ("params", "batch_stats"))

    def norm_relu(x, *path):
        layer, layer_stats = params, stats
        for name in path:
            layer, layer_stats = layer[name], layer_stats[name]
        return np.maximum(0, by_hand.batch_norm(x, layer, layer_stats))

    if stem == "cifar":
        x = by_hand.conv(images, params["stem_conv"])
    else:
        x = norm_relu(by_hand.conv(images, params["stem_conv"], stride=2), "stem_norm")
        x = by_hand.max_pool(x, 3, 2, 1)
    for i, num_layers in enumerate(blocks):
        if i > 0:
            x = by_hand.conv(norm_relu(x, f"transition{i}_norm"), params[f"transition{i}_conv"])
            x = by_hand.windows(x, 2, 2).mean((-2, -1))
        for j in range(num_layers):
            layer = f"block{i + 1}_layer{j + 1}"
            y = by_hand.conv(norm_relu(x, layer, "BatchNorm_0"), params[layer]["Conv_0"])
            y = by_hand.conv(norm_relu(y, layer, "BatchNorm_1"), params[layer]["Conv_1"])
            x = np.concatenate([x, y], axis=-1)
    return norm_relu(x, "norm").mean((1, 2))


@pytest.mark.parametrize(("stem", "size"), [("cifar", (9, 10)), ("imagenet", (21, 24))])
def test_features_are_those_of_the_papers_layers(by_hand, random_variables, stem, size):
    blocks = (1, 2)
    model = Classifier(DenseNet(blocks, 3, stem, None, jnp.dtype("float32")), 2)
    images = np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)
    variables = random_variables(model, images)
    features = jax.jit(lambda v: model.apply(v, images, method="features"))(variables)
    assert features.shape == (2, 10)  # (6 + 3) // 2 + 2 * 3
    expected = features_by_hand(variables, images, blocks, stem, by_hand)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
