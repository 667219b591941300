"""Wide residual networks against the paper's layers in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models import Classifier, Dropout
from sdd_jax.models.wide_resnet import WideResNet

RATE = 0.5


def features_by_hand(variables, images, dropped, by_hand):
    """``dropped`` holds the outputs of the dropout layers, which show their masks."""
    params, stats = (variables[kind]["backbone"] for kind in ("params", "batch_stats"))
    x = by_hand.conv(images, params["stem_conv"])
    for block in sorted(name for name in params if "block" in name):
        p, s = params[block], stats[block]
        stride = 2 if block in ("stage2_block1", "stage3_block1") else 1
        y = np.maximum(0, by_hand.batch_norm(x, p["BatchNorm_0"], s["BatchNorm_0"]))
        if "shortcut_conv" in p:
            x = by_hand.conv(y, p["shortcut_conv"], stride)
        y = by_hand.conv(y, p["Conv_0"], stride)
        y = np.maximum(0, by_hand.batch_norm(y, p["BatchNorm_1"], s["BatchNorm_1"]))
        if dropped:
            y = y * (np.asarray(dropped[block]["Dropout_0"]["__call__"][0]) != 0) / (1 - RATE)
        x = x + by_hand.conv(y, p["Conv_1"])
    return np.maximum(0, by_hand.batch_norm(x, params["norm"], stats["norm"])).mean((1, 2))


@pytest.mark.parametrize(
    ("depth", "widen", "dropout", "shortcuts"),
    [
        (10, 2, True, {"stage1_block1", "stage2_block1", "stage3_block1"}),
        # A factor of 1 leaves the first stage's channels as they are; second blocks always do.
        (16, 1, False, {"stage2_block1", "stage3_block1"}),
    ],
    ids=["dropout", "clean"],
)
def test_features_are_those_of_the_papers_layers(
    by_hand, random_variables, depth, widen, dropout, shortcuts
):
    model = Classifier(WideResNet(depth, widen, 3, RATE, None, jnp.dtype("float32")), 2)
    images = np.random.default_rng(1).standard_normal((2, 9, 10, 3)).astype(np.float32)
    variables = random_variables(model, images)
    params = variables["params"]["backbone"]
    assert {name for name in params if "shortcut_conv" in params[name]} == shortcuts
    features, state = jax.jit(
        lambda v: model.apply(
            v,
            images,
            dropout_keys=jax.random.split(jax.random.key(0), 2) if dropout else None,
            method="features",
            capture_intermediates=lambda module, _: isinstance(module, Dropout),
            mutable=["intermediates"],
        )
    )(variables)
    assert features.shape == (2, 12 * widen)
    dropped = state["intermediates"]["backbone"] if dropout else None
    expected = features_by_hand(variables, images, dropped, by_hand)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
