"""DenseNet-121: its published size, and its values against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.errors import InputError
from sdd_jax.models import Classifier, build
from sdd_jax.models.densenet import DenseNet

KEY = jax.random.key(0)


def shapes(options, image_shape, **apply):
    model = build({"name": "densenet121"} | options, num_classes=1000)
    images = jnp.zeros((1, *image_shape, 3))
    return jax.eval_shape(lambda: model.init_with_output(KEY, images, **apply))


@pytest.mark.parametrize(
    ("stem", "published"),
    [
        ("imagenet", 7_978_856),  # torchvision
        (
            "cifar",
            6_956_298 + 990 * 1025,
        ),  # the form of the CS-KD code has 6,956,298 for 10 classes
    ],
)
def test_it_has_the_published_number_of_parameters(stem, published):
    _, variables = shapes({"stem": stem}, (32, 32))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == published


@pytest.mark.parametrize(
    ("width", "stem", "size"), [(32, "cifar", 32), (32, "imagenet", 224), (8, "cifar", 32)]
)
def test_it_has_32_features_for_each_channel_of_growth(width, stem, size):
    features, _ = shapes({"width": width, "stem": stem}, (size, size), method="features")
    assert features.shape == (1, 32 * width)


@pytest.mark.parametrize(("stem", "smallest"), [("cifar", 8), ("imagenet", 29)])
def test_an_image_too_small_for_three_transitions_is_an_input_error(stem, smallest):
    shapes({"stem": stem}, (smallest, smallest))
    message = rf"config\.dataset: must be {smallest}x{smallest} pixels or more .*, got '40x"
    with pytest.raises(InputError, match=message):
        shapes({"stem": stem}, (40, smallest - 1))


def test_an_unknown_stem_is_an_input_error():
    message = r"config\.model\.stem: must be one of cifar, imagenet, got 'mnist'"
    with pytest.raises(InputError, match=message):
        build({"name": "densenet121", "stem": "mnist"}, num_classes=3)


def random_variables(model, images):
    """Far from those that a network starts with: no scale is 1, no bias 0."""
    random = np.random.default_rng(0)

    def draw(path, x):
        return np.float32((path[-1].key in ("scale", "var")) + random.uniform(-0.4, 0.4, x.shape))

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, KEY, images))


class ByHand:
    """Features as the paper has them, with the model's own parameters, in float64."""

    def __init__(self, variables):
        self.params = variables["params"]["backbone"]
        self.stats = variables["batch_stats"]["backbone"]

    def norm(self, x, *path):
        params, stats = self.params, self.stats
        for name in path:
            params, stats = params[name], stats[name]
        y = (x - stats["mean"]) / np.sqrt(np.float64(stats["var"]) + 1e-5)
        return np.maximum(0, y * params["scale"] + params["bias"])

    def conv(self, x, *path, stride=1):
        kernel = self.params
        for name in (*path, "kernel"):
            kernel = kernel[name]
        windows = self.windows(x, len(kernel), stride, len(kernel) // 2)
        return np.einsum("bijchw,hwco->bijo", windows, np.float64(kernel))

    def windows(self, x, size, stride, padding, fill=0.0):
        pad = (padding, padding)
        x = np.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=fill)
        return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[
            :, ::stride, ::stride
        ]

    def features(self, images, blocks, stem):
        x = np.float64(images)
        if stem == "cifar":
            x = self.conv(x, "stem_conv")
        else:
            x = self.norm(self.conv(x, "stem_conv", stride=2), "stem_norm")
            x = self.windows(x, 3, 2, 1, -np.inf).max((-2, -1))
        for i, num_layers in enumerate(blocks):
            if i > 0:
                x = self.conv(self.norm(x, f"transition{i}_norm"), f"transition{i}_conv")
                x = self.windows(x, 2, 2, 0).mean((-2, -1))
            for j in range(num_layers):
                layer = f"block{i + 1}_layer{j + 1}"
                y = self.conv(self.norm(x, layer, "BatchNorm_0"), layer, "Conv_0")
                y = self.conv(self.norm(y, layer, "BatchNorm_1"), layer, "Conv_1")
                x = np.concatenate([x, y], axis=-1)
        return self.norm(x, "norm").mean((1, 2))


@pytest.mark.parametrize(("stem", "size"), [("cifar", (9, 10)), ("imagenet", (21, 24))])
def test_features_are_those_of_the_papers_layers_by_hand(stem, size):
    blocks = (1, 2)
    model = Classifier(DenseNet(blocks, 3, stem, None, jnp.dtype("float32")), 2)
    images = jax.random.normal(KEY, (2, *size, 3))
    variables = random_variables(model, images)
    features = jax.jit(lambda v: model.apply(v, images, method="features"))(variables)
    by_hand = ByHand(variables).features(images, blocks, stem)
    assert features.shape == (2, 10)  # (6 + 3) // 2 + 2 * 3
    np.testing.assert_allclose(features, by_hand, rtol=1e-4, atol=1e-5)
