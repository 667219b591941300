"""The networks: their sizes, their precision, and their dropout and batch norm over devices."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.errors import InputError
from sdd_jax.models import Classifier, Dropout, build, models
from sdd_jax.models.resnet import BasicBlock, ResNet

KEY = jax.random.key(0)
CIFAR, IMAGENET = (1, 32, 32, 3), (1, 224, 224, 3)
SMALL = {
    "mlp": {"name": "mlp", "width": 16},
    "lenet": {"name": "lenet", "width": 4},
    "resnet18": {"name": "resnet18", "width": 4},
}


def shapes(model, image_shape):
    """Shapes of the variables, without computing them."""
    return jax.eval_shape(model.init, KEY, jnp.zeros(image_shape))


def random_variables(model, image_shape):
    """Variables of a plausible size for tests that initialisation does not matter to."""
    random = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key in ("scale", "var"):
            return np.float32(random.uniform(0.5, 1.5, x.shape))
        return np.float32(random.normal(0, 1 / np.sqrt(max(1, x.size / x.shape[-1])), x.shape))

    return jax.tree.map_with_path(draw, shapes(model, image_shape))


def num_parameters(model, image_shape):
    return sum(x.size for x in jax.tree.leaves(shapes(model, image_shape)["params"]))


@pytest.mark.parametrize(
    ("name", "stem", "num_classes", "published"),
    [
        ("resnet18", "cifar", 100, 11_220_132),
        ("resnet18", "imagenet", 1000, 11_689_512),
        ("resnet34", "imagenet", 1000, 21_797_672),
        ("resnet50", "imagenet", 1000, 25_557_032),
        ("resnet101", "imagenet", 1000, 44_549_160),
        ("resnet152", "imagenet", 1000, 60_192_808),
    ],
)
def test_resnet_has_the_published_number_of_parameters(name, stem, num_classes, published):
    model = build({"name": name, "stem": stem}, num_classes=num_classes)
    assert num_parameters(model, (1, 32, 32, 3)) == published


@pytest.mark.parametrize(
    ("options", "image_shape", "expected"),
    [
        # 784 x 32 + 32, twice 32 x 32 + 32, 32 x 10 + 10
        ({"name": "mlp", "width": 32, "depth": 3}, (1, 28, 28, 1), 25_120 + 2 * 1_056 + 330),
        # Caffe's LeNet on MNIST
        ({"name": "lenet"}, (1, 28, 28, 1), 520 + 25_050 + 400_500 + 5_010),
    ],
    ids=["mlp", "lenet"],
)
def test_small_network_has_the_number_of_parameters_of_its_layers(options, image_shape, expected):
    assert num_parameters(build(options, num_classes=10), image_shape) == expected


@pytest.mark.parametrize(
    ("name", "stem", "image_shape", "last_map", "features"),
    [
        ("resnet18", "cifar", CIFAR, (1, 4, 4, 32), 32),
        ("resnet18", "imagenet", IMAGENET, (1, 7, 7, 32), 32),
        ("resnet50", "cifar", CIFAR, (1, 4, 4, 128), 128),
        ("resnet50", "imagenet", IMAGENET, (1, 7, 7, 128), 128),
    ],
)
def test_resnet_shrinks_images_to_its_published_feature_maps(
    name, stem, image_shape, last_map, features
):
    model = build({"name": name, "stem": stem, "width": 4}, num_classes=3)
    variables, images = shapes(model, image_shape), jnp.zeros(image_shape)
    computed, intermediates = jax.eval_shape(
        lambda v: model.apply(
            v, images, method="features", capture_intermediates=True, mutable=["intermediates"]
        ),
        variables,
    )
    assert computed.shape == (1, features)
    stages = intermediates["intermediates"]["backbone"]
    last = max(block for block in stages if block.startswith("stage4"))
    assert stages[last]["__call__"][0].shape == last_map


def tiny_resnet(axis_name=None):
    """Two stages of one block, to compile fast."""
    return Classifier(ResNet(BasicBlock, (1, 1), 8, "cifar", axis_name, jnp.dtype("float32")), 3)


@pytest.mark.parametrize(
    "model",
    [build(SMALL["mlp"], num_classes=3), build(SMALL["lenet"], num_classes=3), tiny_resnet()],
    ids=["mlp", "lenet", "resnet"],
)
def test_calling_a_network_is_its_features_then_its_head(model):
    images = jax.random.normal(KEY, (2, 16, 16, 3))
    variables = random_variables(model, images.shape)
    logits, features, of_features = jax.jit(
        lambda v: (
            model.apply(v, images),
            model.apply(v, images, method="features"),
            model.apply(v, model.apply(v, images, method="features"), method="head"),
        )
    )(variables)
    assert logits.shape == (2, 3)
    np.testing.assert_allclose(logits, of_features, rtol=1e-5, atol=1e-5)
    dense = variables["params"]["classifier"]
    by_hand = np.asarray(features) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(logits, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", SMALL.values(), ids=SMALL)
def test_bfloat16_computes_in_bfloat16_and_returns_float32(options):
    model = build(options | {"dtype": "bfloat16"}, num_classes=3)
    images = jnp.zeros((2, 16, 16, 3))
    variables = shapes(model, images.shape)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, state = jax.eval_shape(
        lambda v: model.apply(v, images, capture_intermediates=True, mutable=["intermediates"]),
        variables,
    )
    assert logits.dtype == jnp.float32
    intermediates = state["intermediates"]
    assert intermediates["classifier"]["__call__"][0].dtype == jnp.float32
    layers = {
        name: layer["__call__"][0].dtype
        for name, layer in intermediates["backbone"].items()
        if name not in ("__call__", "stages")
    }
    assert layers
    assert set(layers.values()) == {jnp.dtype("bfloat16")}


def test_bfloat16_logits_are_close_to_those_in_float32():
    images = jax.random.normal(KEY, (4, 16, 16, 1))
    single = build(SMALL["lenet"], num_classes=3)
    half = build(SMALL["lenet"] | {"dtype": "bfloat16"}, num_classes=3)
    variables = random_variables(single, images.shape)
    a, b = (jax.jit(m.apply)(variables, images) for m in (single, half))
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())


class Dropping:
    """A small network with dropout inside, compiled once."""

    def __init__(self, options):
        self.options = options | {"dropout_rate": 0.5}
        self.model = build(self.options, num_classes=3)
        self.images = jax.random.normal(KEY, (4, 16, 16, 1))
        self.keys = jax.random.split(jax.random.key(1), 4)
        self.variables = random_variables(self.model, self.images.shape)
        apply = jax.jit(self.model.apply, static_argnames="train")
        self.logits = partial(apply, self.variables)


@pytest.fixture(scope="module", params=["mlp", "lenet"])
def dropping(request):
    return Dropping(SMALL[request.param])


@pytest.mark.parametrize("train", [False, True])
def test_dropout_inside_does_nothing_without_keys(dropping, train):
    without = build(dropping.options | {"dropout_rate": 0.0}, num_classes=3)
    np.testing.assert_allclose(
        dropping.logits(dropping.images, train=train, dropout_keys=None),
        without.apply(dropping.variables, dropping.images),
        rtol=1e-5,
        atol=1e-6,
    )


def test_dropout_inside_works_with_keys_in_evaluation_mode_too(dropping):
    dropped = [
        dropping.logits(dropping.images, train=train, dropout_keys=dropping.keys)
        for train in (False, True)
    ]
    np.testing.assert_allclose(*dropped, rtol=1e-5)
    assert not np.allclose(dropped[0], dropping.logits(dropping.images), atol=1e-3)


def test_dropout_inside_depends_on_the_examples_own_key_only(dropping):
    images, keys = dropping.images, dropping.keys
    logits = dropping.logits(images, dropout_keys=keys)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        dropping.logits(images[order], dropout_keys=keys[order]),
        logits[order],
        rtol=1e-4,
        atol=1e-5,
    )
    changed = dropping.logits(images, dropout_keys=keys.at[1].set(jax.random.key(99)))
    others = np.array([0, 2, 3])
    np.testing.assert_allclose(changed[others], logits[others], rtol=1e-4, atol=1e-5)
    assert not np.allclose(changed[1], logits[1], atol=1e-3)


class TwoDropouts(nn.Module):
    @nn.compact
    def __call__(self, x, keys):
        return Dropout(0.5)(x, keys), Dropout(0.5)(x, keys)


def test_layers_have_independent_masks_from_the_same_keys():
    keys = jax.random.split(KEY, 8)
    first, second = (y != 0 for y in TwoDropouts().apply({}, jnp.ones((8, 500)), keys))
    for mask in (first, second):
        assert abs(mask.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    assert abs((first & second).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_layers_of_a_network_have_different_masks():
    model = build({"name": "mlp", "width": 200, "depth": 3, "dropout_rate": 0.5}, num_classes=3)
    images = jnp.ones((1, 2, 2, 1))
    # Weights of zero and biases of one: a layer's output is not zero where its mask keeps.
    params = jax.tree.map(
        lambda p: np.full(p.shape, p.ndim == 1, p.dtype), shapes(model, images.shape)["params"]
    )
    _, state = model.apply(
        {"params": params},
        images,
        dropout_keys=jax.random.split(KEY, 1),
        capture_intermediates=lambda module, _: isinstance(module, Dropout),
        mutable=["intermediates"],
    )
    first, second = (
        np.asarray(layer["__call__"][0][0]) != 0
        for name, layer in state["intermediates"]["backbone"].items()
        if name != "stages"
    )
    assert 60 < first.sum() < 140
    assert 60 < (first == second).sum() < 140


@pytest.fixture(scope="module")
def batch_norm():
    images = 2 + 3 * jax.random.normal(KEY, (8, 8, 8, 3))
    return tiny_resnet(), random_variables(tiny_resnet(), images.shape), images


def test_training_mode_updates_batch_statistics(batch_norm):
    model, variables, images = batch_norm
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updated = apply(variables, images)
    new = updated["batch_stats"]["backbone"]["stem_norm"]
    stem = variables["params"]["backbone"]["stem_conv"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        images, stem, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    old = variables["batch_stats"]["backbone"]["stem_norm"]
    for name, current in [("mean", maps.mean((0, 1, 2))), ("var", maps.var((0, 1, 2)))]:
        np.testing.assert_allclose(new[name], 0.9 * old[name] + 0.1 * current, rtol=1e-4, atol=1e-5)


def test_evaluation_mode_uses_and_keeps_batch_statistics(batch_norm):
    model, variables, images = batch_norm
    apply = jax.jit(partial(model.apply, train=False, mutable=["batch_stats"]))
    logits, kept = apply(variables, images)
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])
    # An example's logits do not depend on the rest of the batch.
    np.testing.assert_allclose(
        apply(variables, images.at[1:].set(0))[0][0], logits[0], rtol=1e-4, atol=1e-5
    )


def test_batch_statistics_over_four_devices_equal_those_of_one(batch_norm):
    model, variables, images = batch_norm
    options = {"train": True, "mutable": ["batch_stats"]}
    logits, updated = jax.jit(partial(model.apply, **options))(variables, images)
    over_devices = jax.pmap(
        partial(tiny_resnet("batch").apply, **options),
        "batch",
        in_axes=(None, 0),
        out_axes=(0, None),
        devices=jax.devices()[:4],
    )
    sharded_logits, sharded_updated = over_devices(variables, images.reshape(4, 2, 8, 8, 3))
    np.testing.assert_allclose(sharded_logits.reshape(8, 3), logits, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        sharded_updated["batch_stats"],
        updated["batch_stats"],
    )


def test_build_passes_the_axis_name_on_to_batch_norm():
    model = build({"name": "resnet18", "width": 4}, num_classes=3, axis_name="batch")
    assert model.backbone.axis_name == "batch"


def test_convolutions_start_from_kaiming_fan_out():
    backbone = ResNet(BasicBlock, (1, 1), 64, "cifar", None, jnp.dtype("float32"))
    init = jax.jit(partial(backbone.init, train=False, dropout_keys=None))
    params = init(KEY, jnp.zeros((1, 4, 4, 3)))["params"]
    kernel = np.asarray(params["stage2_block1"]["Conv_0"]["kernel"])
    assert kernel.shape == (3, 3, 64, 128)
    # 73,728 weights: the sample's standard deviation is off by 0.3 %; fan-in would be off by 41 %.
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    assert abs(kernel.mean()) < 5 * kernel.std() / np.sqrt(kernel.size)
    # Normal, not truncated: 0.27 % beyond three standard deviations.
    assert 0.0017 < (np.abs(kernel) > 3 * kernel.std()).mean() < 0.0037
    np.testing.assert_allclose(
        np.std(params["stem_conv"]["kernel"]), np.sqrt(2 / (9 * 64)), rtol=0.1
    )


@pytest.mark.parametrize("name", models.names())
def test_every_network_has_usable_defaults(name):
    model = build(models.options(name), num_classes=7)
    logits = jax.eval_shape(
        lambda images: model.init_with_output(KEY, images)[0], jnp.zeros((2, 32, 32, 3))
    )
    assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg"}, r"config\.model\.name: must be one of .*lenet, .*mlp, .*, got 'vgg'"),
        ({"name": "mlp", "stem": "cifar"}, r"config\.model\.stem: 'mlp' has no such option"),
        ({"name": "mlp", "width": 0}, r"config\.model\.width: must be at least 1, got 0"),
        (
            {"name": "mlp", "dtype": "float16"},
            r"config\.model\.dtype: must be one of float32, bfloat16, got 'float16'",
        ),
        (
            {"name": "resnet18", "stem": "mnist"},
            r"config\.model\.stem: must be one of cifar, imagenet, got 'mnist'",
        ),
        (
            {"name": "mlp", "dropout_rate": 1.0},
            r"config\.model\.dropout_rate: must be in \[0, 1\), got 1.0",
        ),
        ({"name": "mlp", "depth": 0}, r"config\.model\.depth: must be at least 1, got 0"),
        ({"name": "quick", "hidden": -1}, r"config\.model\.hidden: must be at least 1, got -1"),
        ({"name": "nin", "width": 1}, r"config\.model\.width: must be at least 2 for nin, got 1"),
        (
            {"name": "all_conv", "input_dropout_rate": 1.0},
            r"config\.model\.input_dropout_rate: must be in \[0, 1\), got 1.0",
        ),
    ],
    ids=str,
)
def test_bad_options_are_input_errors_that_name_the_field(options, message):
    with pytest.raises(InputError, match=message):
        build(options, num_classes=3)


@pytest.mark.parametrize(("name", "smallest"), [("lenet", 16), ("quick", 8), ("nin", 4)])
def test_an_image_too_small_for_the_pooling_is_an_input_error(name, smallest):
    model = build({"name": name}, num_classes=10)
    shapes(model, (1, smallest, smallest, 1))
    size = f"{smallest}x{smallest}"
    message = rf"config\.dataset: must be {size} pixels .*, got '{smallest - 1}x{smallest}'"
    with pytest.raises(InputError, match=message):
        shapes(model, (1, smallest - 1, smallest, 1))
