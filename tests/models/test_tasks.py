"""Networks of other tasks: a head alone, a bag of tokens, a U-Net, a CenterNet."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.errors import InputError
from sdd_jax.models import Classifier, build

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_a_linear_network_is_its_head():
    x = RNG.normal(size=(4, 6)).astype(np.float32)
    model = build({"name": "linear"}, num_classes=3)
    variables = model.init(KEY, x)
    params = variables["params"]["classifier"]
    assert variables["params"].keys() == {"classifier"}
    expected = x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_a_bag_of_tokens_is_the_mean_of_their_embeddings_and_an_mlp():
    tokens = np.array([[3, 3, 7, 0, 0], [1, 2, 3, 4, 5], [0] * 5], np.int32)
    options = {"name": "bag_of_tokens", "vocabulary": 9, "embedding": 4, "width": 6}
    model = build(options, num_classes=3)
    variables = model.init(KEY, jnp.asarray(tokens))
    backbone = variables["params"]["backbone"]
    table = np.asarray(backbone["Embed_0"]["embedding"])
    means = np.stack([table[[3, 3, 7]].mean(0), table[1:6].mean(0), np.zeros(4)])
    dense, head = backbone["layers"]["Dense_0"], variables["params"]["classifier"]
    hidden = np.maximum(means @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]), 0)
    expected = hidden @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    found = model.apply(variables, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    padded = np.concatenate([tokens, np.zeros((3, 2), np.int32)], axis=1)
    np.testing.assert_allclose(model.apply(variables, padded), found, rtol=1e-6)
    assert model.apply(variables, tokens, method="features").dtype == jnp.float32


@pytest.mark.parametrize(
    ("encoder", "stem", "size", "locations"),
    [("resnet18", "cifar", (16, 24), (16, 24)), ("resnet50", "imagenet", (64, 32), (16, 8))],
)
def test_a_unet_has_features_at_the_first_stage_and_logits_for_each_pixel(
    encoder, stem, size, locations
):
    options = {"name": "unet", "encoder": encoder, "stem": stem, "width": 8, "features": 12}
    model = build(options, num_classes=5)

    def shapes(images):
        variables = model.init(KEY, images)
        return model.apply(variables, images), model.apply(variables, images, method="features")

    logits, features = jax.eval_shape(shapes, jnp.zeros((2, *size, 3)))
    assert features.shape == (2, *locations, 12)
    assert logits.shape == (2, *size, 5)
    with pytest.raises(InputError, match=r"must be multiples of (8|32) .*, got 20x20"):
        jax.eval_shape(model.init, KEY, jnp.zeros((2, 20, 20, 3)))


def test_the_expanding_path_is_as_wide_over_bottleneck_blocks_as_over_others():
    def widths(encoder):
        model = build({"name": "unet", "encoder": encoder, "width": 8}, num_classes=5)
        variables = jax.eval_shape(model.init, KEY, jnp.zeros((1, 16, 16, 3)))
        backbone = variables["params"]["backbone"]
        names = sorted(name for name in backbone if name.startswith("Conv_"))
        return [backbone[name]["kernel"].shape[-1] for name in names]

    assert widths("resnet18") == widths("resnet50") == [32, 16, 8, 64]


def test_a_centernet_has_a_branch_for_classes_and_one_for_boxes():
    model = build({"name": "centernet", "width": 2, "features": 6}, num_classes=3)
    variables = jax.jit(model.init)(KEY, jnp.zeros((1, 32, 64, 3)))
    assert jax.eval_shape(model.apply, variables, jnp.zeros((2, 32, 64, 3))).shape == (2, 8, 16, 7)
    features = jnp.asarray(RNG.normal(size=(1, 2, 2, 12)), jnp.float32)

    def head(features):
        return model.apply(variables, features, method="head")

    without_boxes, without_classes = (
        head(features.at[..., part].set(0.0)) for part in (slice(6, 12), slice(6))
    )
    np.testing.assert_allclose(without_boxes[..., :3], head(features)[..., :3])
    np.testing.assert_allclose(without_classes[..., 3:], head(features)[..., 3:])
    prior = jax.nn.sigmoid(head(jnp.zeros_like(features))[..., :3])
    np.testing.assert_allclose(prior, 0.1, rtol=1e-5)


class Pixels(nn.Module):
    """The images themselves."""

    def __call__(self, images, *, train, dropout_keys):
        return images


def test_logits_are_enlarged_bilinearly_about_the_centres_of_pixels():
    model = Classifier(Pixels(), 1, upsample=2)
    images = RNG.normal(size=(1, 1, 4, 1)).astype(np.float32)
    variables = {"params": {"classifier": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}}
    enlarged = np.asarray(model.apply(variables, images))
    assert enlarged.shape == (1, 2, 8, 1)
    centres = (np.arange(8) + 0.5) / 2 - 0.5
    expected = np.interp(centres, np.arange(4), images[0, 0, :, 0])
    np.testing.assert_allclose(enlarged[0, :, :, 0], [expected, expected], rtol=1e-5, atol=1e-6)
