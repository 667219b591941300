"""What DenseNet, wide ResNet and the vision transformer have in common, on the smallest of each."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.errors import InputError
from sdd_jax.models import Classifier, build
from sdd_jax.models.densenet import DenseNet
from sdd_jax.models.vit import VisionTransformer
from sdd_jax.models.wide_resnet import WideResNet

KEY = jax.random.key(0)
NAMES = ("densenet121", "wide_resnet28_10", "vit_tiny", "vit_small")
FEATURES = {"densenet": 10, "wide_resnet": 24, "vit": 12}
WITH_BATCH_NORM = ("densenet", "wide_resnet")
WITH_DROPOUT_INSIDE = ("wide_resnet", "vit")


def tiny(name, *, inside=0.0, before_head=0.0, axis_name=None, dtype="float32"):
    dtype = jnp.dtype(dtype)
    backbone = {
        "densenet": DenseNet((1, 2), 3, "cifar", axis_name, dtype),
        "wide_resnet": WideResNet(10, 2, 3, inside, axis_name, dtype),
        "vit": VisionTransformer(12, 1, 3, 4, inside, dtype),
    }[name]
    return Classifier(backbone, 3, before_head)


def random_variables(model, images):
    """Far from those that a network starts with: no scale is 1, no bias 0."""
    random = np.random.default_rng(0)

    def draw(path, x):
        return np.float32((path[-1].key in ("scale", "var")) + random.uniform(-0.4, 0.4, x.shape))

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, KEY, images))


IMAGES = np.random.default_rng(1).normal(0.5, 2, (8, 8, 8, 3)).astype(np.float32)


def test_an_unknown_name_gets_a_list_that_has_them():
    with pytest.raises(InputError) as error:
        build({"name": "vgg"}, num_classes=3)
    assert set(NAMES) <= set(str(error.value).replace(",", "").split())


@pytest.mark.parametrize("name", FEATURES)
def test_calling_it_is_its_features_then_its_head(name):
    model = tiny(name)
    variables = random_variables(model, IMAGES)
    logits, features = jax.jit(
        lambda v: (model.apply(v, IMAGES), model.apply(v, IMAGES, method="features"))
    )(variables)
    assert features.shape == (8, FEATURES[name])
    head = model.apply(variables, features, method="head")
    np.testing.assert_allclose(logits, head, rtol=1e-5, atol=1e-5)
    dense = variables["params"]["classifier"]
    by_hand = np.asarray(features) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(logits, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FEATURES)
def test_bfloat16_computes_in_bfloat16_and_returns_float32(name):
    half = tiny(name, dtype="bfloat16")
    variables = jax.eval_shape(half.init, KEY, IMAGES)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    features, state = jax.eval_shape(
        lambda v: half.apply(
            v,
            IMAGES,
            method="features",
            capture_intermediates=lambda module, _: not isinstance(module, Classifier),
            mutable=["intermediates"],
        ),
        variables,
    )
    assert features.dtype == jnp.float32
    layers = state["intermediates"]["backbone"]
    del layers["__call__"]  # the backbone itself
    if name == "vit":
        del layers["norm"]  # the features
    assert len(jax.tree.leaves(layers)) >= 10
    assert {x.dtype for x in jax.tree.leaves(layers)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", FEATURES)
def test_bfloat16_logits_are_close_to_those_in_float32(name):
    single, half = (tiny(name, dtype=dtype) for dtype in ("float32", "bfloat16"))
    variables = random_variables(single, IMAGES)
    a, b = (jax.jit(model.apply)(variables, IMAGES) for model in (single, half))
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())


@pytest.mark.parametrize("inside", [0.0, 0.5])
@pytest.mark.parametrize("before_head", [0.0, 0.5])
@pytest.mark.parametrize("name", ["wide_resnet28_10", "wide_resnet16_4", "vit_tiny", "vit_small"])
def test_it_says_where_its_dropout_is(name, inside, before_head):
    options = {"name": name, "block_dropout_rate": inside, "dropout_rate": before_head}
    model = build(options, num_classes=3)
    assert model.stochastic() == (inside > 0, before_head > 0)


def test_densenet_has_dropout_before_the_head_only():
    model = build({"name": "densenet121", "dropout_rate": 0.5}, num_classes=3)
    assert model.stochastic() == (False, True)


class Dropping:
    """A network whose one kind of dropout is on, compiled once."""

    def __init__(self, name, where):
        self.model = tiny(name, **{where: 0.5})
        self.variables = random_variables(self.model, IMAGES)
        self.keys = jax.random.split(jax.random.key(1), 8)
        self.clean = jax.jit(tiny(name).apply)(self.variables, IMAGES)
        self.logits = partial(jax.jit(self.model.apply), self.variables)


@pytest.fixture(
    scope="module",
    params=[(name, "before_head") for name in FEATURES]
    + [(name, "inside") for name in WITH_DROPOUT_INSIDE],
    ids=" ".join,
)
def dropping(request):
    return Dropping(*request.param)


def test_dropout_does_nothing_without_keys(dropping):
    np.testing.assert_allclose(dropping.logits(IMAGES), dropping.clean, rtol=1e-5, atol=1e-5)


def test_dropout_changes_every_example_with_keys(dropping):
    changed = dropping.logits(IMAGES, dropout_keys=dropping.keys) - dropping.clean
    assert (np.abs(changed).max(-1) > 1e-2).all()


def test_an_example_depends_on_its_own_key_and_image_only(dropping):
    keys, others = dropping.keys, np.arange(8) != 1
    logits = dropping.logits(IMAGES, dropout_keys=keys)
    order = np.array([2, 7, 0, 3, 1, 6, 5, 4])
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    same(dropping.logits(IMAGES[order], dropout_keys=keys[order]), logits[order])

    other_key = dropping.logits(IMAGES, dropout_keys=keys.at[1].set(jax.random.key(99)))
    same(other_key[others], logits[others])
    assert np.abs(other_key[1] - logits[1]).max() > 1e-2

    images = IMAGES.copy()
    images[1] = 3 * IMAGES[2] + 1
    other_image = dropping.logits(images, dropout_keys=keys)
    same(other_image[others], logits[others])
    assert np.abs(other_image[1] - logits[1]).max() > 1e-2


@pytest.fixture(scope="module", params=WITH_BATCH_NORM)
def batch_norm(request):
    model = tiny(request.param)
    variables = random_variables(model, IMAGES)
    apply = jax.jit(partial(model.apply, mutable=["batch_stats"]), static_argnames="train")
    logits, updated = apply(variables, IMAGES, train=True)
    return request.param, variables, apply, logits, updated["batch_stats"]


def test_training_mode_alone_updates_batch_statistics(batch_norm):
    _, variables, apply, _, updated = batch_norm
    old = variables["batch_stats"]
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, updated, old)
    assert all(jax.tree.leaves(changed))
    _, kept = apply(variables, IMAGES, train=False)
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], old)


def test_the_first_statistics_move_a_tenth_of_the_way(batch_norm):
    name, variables, _, _, updated = batch_norm
    maps = jax.lax.conv_general_dilated(
        IMAGES,
        variables["params"]["backbone"]["stem_conv"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    block = {"densenet": "block1_layer1", "wide_resnet": "stage1_block1"}[name]
    old, new = (s["backbone"][block]["BatchNorm_0"] for s in (variables["batch_stats"], updated))
    for key, current in [("mean", maps.mean((0, 1, 2))), ("var", maps.var((0, 1, 2)))]:
        np.testing.assert_allclose(new[key], 0.9 * old[key] + 0.1 * current, rtol=1e-4, atol=1e-5)


def test_four_devices_compute_as_one(batch_norm):
    name, variables, _, logits, updated = batch_norm
    over_devices = jax.pmap(
        partial(tiny(name, axis_name="batch").apply, train=True, mutable=["batch_stats"]),
        "batch",
        in_axes=(None, 0),
        out_axes=(0, None),
        devices=jax.devices()[:4],
    )
    sharded, state = over_devices(variables, IMAGES.reshape(4, 2, 8, 8, 3))
    same = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    same(sharded.reshape(8, 3), logits)
    jax.tree.map(same, state["batch_stats"], updated)


@pytest.mark.parametrize("name", ["densenet121", "wide_resnet28_10"])
def test_build_passes_the_axis_name_on(name):
    assert build({"name": name}, num_classes=3, axis_name="batch").backbone.axis_name == "batch"
