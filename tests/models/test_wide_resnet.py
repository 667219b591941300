"""Wide residual networks: their published sizes, and their values against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.errors import InputError
from sdd_jax.models import Classifier, Dropout, build
from sdd_jax.models.wide_resnet import WideResNet

KEY = jax.random.key(0)
RATE = 0.5


@pytest.mark.parametrize(
    ("name", "num_classes", "published"),
    [
        ("wide_resnet28_10", 100, 36_536_884),
        ("wide_resnet28_10", 10, 36_479_194),
        ("wide_resnet16_4", 10, 2_748_890),
        ("wide_resnet40_2", 10, 2_243_546),
    ],
)
def test_it_has_the_published_number_of_parameters(name, num_classes, published):
    model = build({"name": name}, num_classes=num_classes)
    variables = jax.eval_shape(model.init, KEY, jnp.zeros((1, 32, 32, 3)))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == published


@pytest.mark.parametrize(("width", "features"), [(16, 640), (2, 80)])
def test_it_has_forty_features_for_each_channel_of_the_stem(width, features):
    model = build({"name": "wide_resnet28_10", "width": width}, num_classes=10)
    images = jnp.zeros((2, 32, 32, 3))
    computed = jax.eval_shape(lambda: model.init_with_output(KEY, images, method="features")[0])
    assert computed.shape == (2, features)


def test_a_bad_rate_in_the_blocks_is_an_input_error():
    message = r"config\.model\.block_dropout_rate: must be in \[0, 1\), got 1.0"
    with pytest.raises(InputError, match=message):
        build({"name": "wide_resnet28_10", "block_dropout_rate": 1.0}, num_classes=3)


def random_variables(model, images):
    """Far from those that a network starts with: no scale is 1, no bias 0."""
    random = np.random.default_rng(0)

    def draw(path, x):
        return np.float32((path[-1].key in ("scale", "var")) + random.uniform(-0.4, 0.4, x.shape))

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, KEY, images))


def conv(x, layer, stride=1):
    kernel = np.float64(layer["kernel"])
    padding = (len(kernel) // 2, len(kernel) // 2)
    x = np.pad(x, ((0, 0), padding, padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    return np.einsum("bijchw,hwco->bijo", windows[:, ::stride, ::stride], kernel)


def norm_relu(x, layer, stats):
    y = (x - stats["mean"]) / np.sqrt(np.float64(stats["var"]) + 1e-5)
    return np.maximum(0, y * layer["scale"] + layer["bias"])


def features_by_hand(variables, images, dropped):
    """As the paper has them, in float64.

    ``dropped`` is what the model's layers of dropout returned: their masks are taken from it.
    """
    params, stats = (variables[k]["backbone"] for k in ("params", "batch_stats"))
    x = conv(np.float64(images), params["stem_conv"])
    for stage in (1, 2, 3):
        block = f"stage{stage}_block1"
        p, s = params[block], stats[block]
        stride = 1 if stage == 1 else 2
        y = norm_relu(x, p["BatchNorm_0"], s["BatchNorm_0"])
        shortcut = conv(y, p["shortcut_conv"], stride)
        y = conv(y, p["Conv_0"], stride)
        y = norm_relu(y, p["BatchNorm_1"], s["BatchNorm_1"])
        if dropped:
            y = y * (np.asarray(dropped[block]["Dropout_0"]["__call__"][0]) != 0) / (1 - RATE)
        x = shortcut + conv(y, p["Conv_1"])
    return norm_relu(x, params["norm"], stats["norm"]).mean((1, 2))


@pytest.mark.parametrize("dropout", [False, True], ids=["clean", "dropout"])
def test_features_are_those_of_the_papers_layers_by_hand(dropout):
    model = Classifier(WideResNet(10, 2, 3, RATE, None, jnp.dtype("float32")), 2)
    images = jax.random.normal(KEY, (2, 9, 10, 3))
    variables = random_variables(model, images)
    features, state = jax.jit(
        lambda v: model.apply(
            v,
            images,
            dropout_keys=jax.random.split(KEY, 2) if dropout else None,
            method="features",
            capture_intermediates=lambda module, _: isinstance(module, Dropout),
            mutable=["intermediates"],
        )
    )(variables)
    dropped = state["intermediates"]["backbone"] if dropout else None
    by_hand = features_by_hand(variables, images, dropped)
    assert features.shape == (2, 24)
    np.testing.assert_allclose(features, by_hand, rtol=1e-4, atol=1e-4)


def test_a_block_that_keeps_its_channels_adds_its_input_itself():
    """Without its last convolution, every block after a stage's first is the identity."""
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    deep = Classifier(WideResNet(16, 1, 3, 0.0, None, jnp.dtype("float32")), 2)
    shallow = Classifier(WideResNet(10, 1, 3, 0.0, None, jnp.dtype("float32")), 2)
    variables = random_variables(deep, images)
    params = variables["params"]["backbone"]
    assert "shortcut_conv" not in params["stage1_block1"]  # a widening factor of 1 changes nothing
    for stage in (1, 2, 3):
        kernel = params[f"stage{stage}_block2"]["Conv_1"]["kernel"]
        params[f"stage{stage}_block2"]["Conv_1"]["kernel"] = np.zeros_like(kernel)
    fewer = {
        kind: {
            "backbone": {k: v for k, v in of["backbone"].items() if not k.endswith("block2")},
        }
        for kind, of in variables.items()
    }
    np.testing.assert_allclose(
        jax.jit(lambda v: deep.apply(v, images, method="features"))(variables),
        jax.jit(lambda v: shallow.apply(v, images, method="features"))(fewer),
        rtol=1e-5,
        atol=1e-5,
    )
