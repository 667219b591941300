"""Vision transformers: their published sizes, and their values against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from sdd_jax.errors import InputError
from sdd_jax.models import Classifier, Dropout, build
from sdd_jax.models.vit import VisionTransformer

KEY = jax.random.key(0)
WIDTH, DEPTH, HEADS, PATCH, RATE = 12, 2, 3, 4, 0.5


def shapes(options, image_shape, num_classes, **apply):
    model = build(options, num_classes=num_classes)
    images = jnp.zeros((1, *image_shape, 3))
    return jax.eval_shape(lambda: model.init_with_output(KEY, images, **apply))


def num_parameters(dim, patch, tokens, classes):
    """Closed form: patches, class token and positions; attention, perceptron and norms of 12 blocks."""
    block = (4 * dim**2 + 4 * dim) + (8 * dim**2 + 5 * dim) + 2 * 2 * dim
    return (
        (3 * patch**2 + 1) * dim + dim + tokens * dim + 12 * block + 2 * dim + (dim + 1) * classes
    )


@pytest.mark.parametrize(
    ("options", "size", "classes", "expected"),
    [
        ({"name": "vit_tiny", "patch_size": 16}, 224, 1000, 5_717_416),
        ({"name": "vit_small", "patch_size": 16}, 224, 1000, 22_050_664),
        ({"name": "vit_tiny"}, 32, 100, num_parameters(192, 4, 65, 100)),
        ({"name": "vit_small"}, 32, 100, num_parameters(384, 4, 65, 100)),
    ],
    ids=["tiny, ImageNet", "small, ImageNet", "tiny, CIFAR", "small, CIFAR"],
)
def test_it_has_the_published_number_of_parameters(options, size, classes, expected):
    _, variables = shapes(options, (size, size), classes)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == expected
    if size == 224:
        assert num_parameters(192 if "tiny" in options["name"] else 384, 16, 197, 1000) == expected


@pytest.mark.parametrize(("name", "heads", "width"), [("vit_tiny", 3, 192), ("vit_small", 6, 384)])
def test_it_has_the_published_heads_and_as_many_features_as_it_is_wide(name, heads, width):
    features, variables = shapes({"name": name}, (32, 32), 10, method="features")
    assert features.shape == (1, width)
    query = variables["params"]["backbone"]["block1"]["MultiHeadDotProductAttention_0"]["query"]
    assert query["kernel"].shape == (width, heads, 64)


@pytest.mark.parametrize("image_shape", [(32, 30), (30, 32)])
def test_an_image_that_patches_do_not_cover_is_an_input_error(image_shape):
    pixels = "x".join(map(str, image_shape))
    message = rf"config\.model\.patch_size: must be a divisor of .* {pixels} pixels, got 4"
    with pytest.raises(InputError, match=message):
        shapes({"name": "vit_tiny"}, image_shape, 10)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("width", 64, "a multiple of 3, its heads"),
        ("depth", 0, "at least 1"),
        ("patch_size", 0, "at least 1"),
        ("block_dropout_rate", 1.0, r"in \[0, 1\)"),
    ],
)
def test_bad_options_are_input_errors_that_name_the_field(option, value, allowed):
    message = rf"config\.model\.{option}: must be {allowed}, got {value}"
    with pytest.raises(InputError, match=message):
        build({"name": "vit_tiny", option: value}, num_classes=3)


def random_variables(model, images):
    """Far from those that a network starts with: no scale is 1, no bias 0."""
    random = np.random.default_rng(0)

    def draw(path, x):
        return np.float32((path[-1].key == "scale") + random.uniform(-0.4, 0.4, x.shape))

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, KEY, images))


def norm(x, layer):
    deviation = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-6)
    return deviation / scale * layer["scale"] + layer["bias"]


def attend(x, layer):
    query, key, value = (
        np.einsum("bnd,dhk->bhnk", x, layer[of]["kernel"]) + layer[of]["bias"][:, None]
        for of in ("query", "key", "value")
    )
    weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]), axis=-1)
    return (
        np.einsum("bhnk,hkd->bnd", weights @ value, layer["out"]["kernel"]) + layer["out"]["bias"]
    )


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def features_by_hand(params, images, dropped):
    """As the papers have them, in float64.

    ``dropped`` is what the model's layers of dropout returned: their masks are taken from it.
    """

    def drop(x, *path):
        if dropped is None:
            return x
        output = dropped
        for name in path:
            output = output[name]
        return x * (np.asarray(output["__call__"][0]) != 0) / (1 - RATE)

    params = jax.tree.map(np.float64, params)
    b, rows, columns, channels = images.shape
    patches = np.float64(images).reshape(b, rows // PATCH, PATCH, columns // PATCH, PATCH, channels)
    kernel = params["patches"]["kernel"].reshape(-1, WIDTH)
    patches = patches.swapaxes(2, 3).reshape(b, -1, len(kernel))
    x = patches @ kernel + params["patches"]["bias"]
    x = np.concatenate([np.repeat(params["class_token"], b, axis=0), x], axis=1)
    x = drop(x + params["position_embedding"], "Dropout_0")
    for block in ("block1", "block2"):
        p = params[block]
        y = attend(norm(x, p["LayerNorm_0"]), p["MultiHeadDotProductAttention_0"])
        x = x + drop(y, block, "Dropout_0")
        y = dense(norm(x, p["LayerNorm_1"]), p["Dense_0"])
        y = drop(y * (1 + erf(y / np.sqrt(2))) / 2, block, "Dropout_1")
        x = x + drop(dense(y, p["Dense_1"]), block, "Dropout_2")
    return norm(x, params["norm"])[:, 0]


@pytest.mark.parametrize("dropout", [False, True], ids=["clean", "dropout"])
def test_features_are_those_of_the_papers_layers_by_hand(dropout):
    backbone = VisionTransformer(WIDTH, DEPTH, HEADS, PATCH, RATE, jnp.dtype("float32"))
    model = Classifier(backbone, 2)
    images = jax.random.normal(KEY, (2, 8, 12, 3))
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
    by_hand = features_by_hand(variables["params"]["backbone"], images, dropped)
    assert features.shape == (2, WIDTH)
    np.testing.assert_allclose(features, by_hand, rtol=1e-4, atol=1e-4)


def test_patches_of_unit_pixels_become_tokens_of_unit_size():
    model = build({"name": "vit_tiny"}, num_classes=2)
    images = jnp.zeros((1, 8, 8, 3))
    init = jax.jit(lambda: model.init(KEY, images)["params"]["backbone"]["patches"]["kernel"])
    np.testing.assert_allclose(np.square(init()).sum((0, 1, 2)).mean(), 1, rtol=0.1)
