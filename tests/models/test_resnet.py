"""Residual networks against the paper's layers in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models import Classifier
from sdd_jax.models.resnet import BasicBlock, Bottleneck, ResNet


def features_by_hand(variables, images, block, stages, stem, by_hand):
    params, stats = (variables[kind]["backbone"] for kind in ("params", "batch_stats"))

    def conv_norm(x, p, s, conv, norm, stride=1):
        return by_hand.batch_norm(by_hand.conv(x, p[conv], stride), p[norm], s[norm])

    x = conv_norm(images, params, stats, "stem_conv", "stem_norm", 1 if stem == "cifar" else 2)
    x = np.maximum(0, x)
    if stem == "imagenet":
        x = by_hand.max_pool(x, 3, 2, 1)
    num_convs, strided = (2, 0) if block is BasicBlock else (3, 1)
    for i, num_blocks in enumerate(stages, start=1):
        for j in range(1, num_blocks + 1):
            p, s = (tree[f"stage{i}_block{j}"] for tree in (params, stats))
            stride = 2 if i > 1 and j == 1 else 1
            y = x
            for k in range(num_convs):
                y = conv_norm(y, p, s, f"Conv_{k}", f"BatchNorm_{k}", stride if k == strided else 1)
                y = np.maximum(0, y) if k < num_convs - 1 else y
            if x.shape != y.shape:
                x = conv_norm(x, p, s, "shortcut_conv", "shortcut_norm", stride)
            x = np.maximum(0, x + y)
    return x.mean((1, 2))


@pytest.mark.parametrize(
    ("block", "stages", "stem", "size", "num_features"),
    [(BasicBlock, (1, 2), "cifar", (7, 6), 6), (Bottleneck, (2, 1), "imagenet", (13, 18), 24)],
    ids=["basic", "bottleneck"],
)
def test_features_are_those_of_the_papers_layers(
    by_hand, random_variables, block, stages, stem, size, num_features
):
    model = Classifier(ResNet(block, stages, 3, stem, None, jnp.dtype("float32")), 2)
    images = np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)
    variables = random_variables(model, images)
    features = jax.jit(lambda v: model.apply(v, images, method="features"))(variables)
    assert features.shape == (2, num_features)
    expected = features_by_hand(variables, images, block, stages, stem, by_hand)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
