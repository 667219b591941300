"""Vision transformers against the papers' layers in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from sdd_jax.models import Classifier, Dropout
from sdd_jax.models.vit import VisionTransformer

WIDTH, DEPTH, HEADS, PATCH, RATE = 12, 2, 3, 4, 0.5


def attend(x, layer):
    query, key, value = (
        np.einsum("bnd,dhk->bhnk", x, layer[name]["kernel"]) + layer[name]["bias"][:, None]
        for name in ("query", "key", "value")
    )
    weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]), axis=-1)
    mixed = np.einsum("bhnk,hkd->bnd", weights @ value, layer["out"]["kernel"])
    return mixed + layer["out"]["bias"]


def features_by_hand(params, images, dropped, by_hand):
    """``dropped`` holds the outputs of the dropout layers, which show their masks."""

    def drop(x, *path):
        output = dropped
        for name in path if dropped else ():
            output = output[name]
        return x * (np.asarray(output["__call__"][0]) != 0) / (1 - RATE) if dropped else x

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
        y = by_hand.layer_norm(x, p["LayerNorm_0"])
        x = x + drop(attend(y, p["MultiHeadDotProductAttention_0"]), block, "Dropout_0")
        y = by_hand.dense(by_hand.layer_norm(x, p["LayerNorm_1"]), p["Dense_0"])
        y = drop(y * (1 + erf(y / np.sqrt(2))) / 2, block, "Dropout_1")
        x = x + drop(by_hand.dense(y, p["Dense_1"]), block, "Dropout_2")
    return by_hand.layer_norm(x, params["norm"])[:, 0]


@pytest.mark.parametrize("dropout", [False, True], ids=["clean", "dropout"])
def test_features_are_those_of_the_papers_layers(by_hand, random_variables, dropout):
    backbone = VisionTransformer(WIDTH, DEPTH, HEADS, PATCH, RATE, jnp.dtype("float32"))
    model = Classifier(backbone, 2)
    images = np.random.default_rng(1).standard_normal((2, 8, 12, 3)).astype(np.float32)
    variables = random_variables(model, images)
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
    dropped = state["intermediates"]["backbone"] if dropout else None
    assert features.shape == (2, WIDTH)
    expected = features_by_hand(variables["params"]["backbone"], images, dropped, by_hand)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_patches_of_unit_pixels_become_tokens_of_unit_size():
    backbone = VisionTransformer(192, 0, 3, 4, 0.0, jnp.dtype("float32"))
    model, images = Classifier(backbone, 2), jnp.zeros((1, 8, 8, 3))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]["backbone"]
    np.testing.assert_allclose(
        np.square(params["patches"]["kernel"]).sum((0, 1, 2)).mean(), 1, rtol=0.1
    )
