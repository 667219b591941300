"""The registered networks, their options, and the contract that all of them keep."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.errors import InputError
from sdd_jax.models import Classifier, Dropout, build, models
from sdd_jax.models.densenet import DenseNet
from sdd_jax.models.fully_convolutional import FullyConvolutional, Layer
from sdd_jax.models.lenet import LeNet
from sdd_jax.models.mlp import MLP
from sdd_jax.models.quick import Quick
from sdd_jax.models.resnet import BasicBlock, ResNet
from sdd_jax.models.vit import VisionTransformer
from sdd_jax.models.wide_resnet import WideResNet

KEY = jax.random.key(0)
MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)
IMAGENET_STEM = {"stem": "imagenet"}


# --------------------------------------------------------------------- the registered networks

# name, options, images, classes, features, parameters: from the papers' layer tables (weights and
# biases) or, as one number, as published.
LENET_PARAMETERS = 20 * 26 + 50 * 501 + 500 * 801 + 10 * 501
PUBLISHED = [
    ("mlp", {}, MNIST, 10, 128, 128 * 785 + 128 * 129 + 10 * 129),
    ("mlp", {"width": 32, "depth": 3}, MNIST, 10, 32, 32 * 785 + 2 * 32 * 33 + 10 * 33),
    ("linear", {}, MNIST, 10, 784, 7850),
    ("lenet", {}, MNIST, 10, 500, LENET_PARAMETERS),
    ("lenet_all", {}, MNIST, 10, 500, LENET_PARAMETERS),
    ("quick", {}, CIFAR, 10, 64, 32 * 76 + 32 * 801 + 64 * 801 + 64 * 1025 + 10 * 65),
    ("quick", {"hidden": 8}, CIFAR, 10, 8, 32 * 76 + 32 * 801 + 64 * 801 + 8 * 1025 + 10 * 9),
    ("nin", {}, CIFAR, 10, 192,
     192 * 76 + 160 * 193 + 96 * 161 + 192 * 2401 + 192 * 193 * 2 + 192 * 1729 + 202 * 193),
    ("all_conv", {}, CIFAR, 10, 192,
     96 * 28 + 96 * 865 * 2 + 192 * 865 + 192 * 1729 * 3 + 202 * 193),
    ("resnet18", {}, CIFAR, 100, 512, 11_220_132),
    ("resnet18", IMAGENET_STEM, CIFAR, 1000, 512, 11_689_512),
    ("resnet34", IMAGENET_STEM, CIFAR, 1000, 512, 21_797_672),
    ("resnet50", IMAGENET_STEM, IMAGENET, 1000, 2048, 25_557_032),
    ("resnet101", IMAGENET_STEM, CIFAR, 1000, 2048, 44_549_160),
    ("resnet152", IMAGENET_STEM, CIFAR, 1000, 2048, 60_192_808),
    ("densenet121", {}, CIFAR, 10, 1024, 6_956_298),  # of CS-KD's code
    ("densenet121", IMAGENET_STEM, IMAGENET, 1000, 1024, 7_978_856),  # of torchvision
    ("wide_resnet16_4", {}, CIFAR, 10, 256, 2_748_890),
    ("wide_resnet28_10", {}, CIFAR, 100, 640, 36_536_884),
    ("wide_resnet28_10", {"width": 2}, CIFAR, 10, 80, None),
    ("wide_resnet40_2", {}, CIFAR, 10, 128, 2_243_546),
    ("vit_tiny", {"patch_size": 16}, IMAGENET, 1000, 192, 5_717_416),
    ("vit_small", {"patch_size": 16}, IMAGENET, 1000, 384, 22_050_664),
    # Fewer weights in a patch, 65 tokens for 197, and fewer classes.
    ("vit_tiny", {}, CIFAR, 100, 192, 5_717_416 - 192 * (768 - 48 + 197 - 65) - 900 * 193),
    ("vit_small", {}, CIFAR, 100, 384, 22_050_664 - 384 * (768 - 48 + 197 - 65) - 900 * 385),
]  # fmt: skip


@functools.cache
def shapes(name, image_shape, num_classes=3, **options):
    """``(logits, variables)`` of a network, with what it sows."""
    model = build({"name": name} | options, num_classes=num_classes)
    init = partial(model.init_with_output, mutable=True)
    return jax.eval_shape(init, KEY, jnp.zeros((2, *image_shape)))


@pytest.mark.parametrize(
    ("name", "options", "image_shape", "num_classes", "num_features", "num_parameters"), PUBLISHED
)
def test_a_network_has_its_published_size(
    name, options, image_shape, num_classes, num_features, num_parameters
):
    logits, variables = shapes(name, image_shape, num_classes, **options)
    assert logits.shape == (2, num_classes)
    params = variables["params"]
    assert params["classifier"]["kernel"].shape == (num_features, num_classes)
    if num_parameters:
        assert sum(x.size for x in jax.tree.leaves(params)) == num_parameters


def test_every_network_of_the_package_is_among_them():
    names = {name for name in models.names() if models.get(name).__module__.startswith("sdd_jax.")}
    others = {"bag_of_tokens", "centernet", "unet"}  # see test_tasks.py
    assert names == {name for name, *_ in PUBLISHED} | others


@pytest.mark.parametrize(
    ("name", "image_shape", "layers"),
    [
        ("mlp", MNIST, {"Dense_0", "Dense_1"}),
        ("lenet", MNIST, {"Conv_0", "Conv_1", "Dense_0"}),
        ("lenet_all", MNIST, {"Conv_0", "Conv_1", "Dense_0"}),
        ("quick", CIFAR, {"Conv_0", "Conv_1", "Conv_2", "Dense_0"}),
        ("nin", CIFAR, {f"Conv_{i}" for i in range(8)}),
        ("all_conv", CIFAR, {f"Conv_{i}" for i in range(8)}),
    ],
)
def test_layers_keep_the_names_that_checkpoints_hold(name, image_shape, layers):
    """The comparisons with numpy show the names of the other networks."""
    params = shapes(name, image_shape, 10)[1]["params"]
    assert set(params) == {"backbone", "classifier"}
    assert set(params["backbone"]) == layers
    assert {key for layer in params["backbone"].values() for key in layer} == {"kernel", "bias"}


@pytest.mark.parametrize(("name", "heads", "width"), [("vit_tiny", 3, 192), ("vit_small", 6, 384)])
def test_vision_transformers_have_their_published_heads(name, heads, width):
    block = shapes(name, CIFAR, 100)[1]["params"]["backbone"]["block12"]
    query = block["MultiHeadDotProductAttention_0"]["query"]
    assert query["kernel"].shape == (width, heads, 64)


@pytest.mark.parametrize(
    ("name", "options", "image_shape", "num_classes", "stages"),
    [
        ("mlp", {"width": 32, "depth": 3}, MNIST, 10, [(32,)] * 3),
        ("resnet18", {}, CIFAR, 100, [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]),
        ("resnet50", IMAGENET_STEM, IMAGENET, 1000,
         [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]),
        ("densenet121", IMAGENET_STEM, IMAGENET, 1000,
         [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 1024)]),
        ("wide_resnet16_4", {}, CIFAR, 10, [(32, 32, 64), (16, 16, 128), (8, 8, 256)]),
    ],
)  # fmt: skip
def test_stages_have_their_published_maps(name, options, image_shape, num_classes, stages):
    _, variables = shapes(name, image_shape, num_classes, **options)
    sown = variables["intermediates"]["backbone"]["stages"]
    assert [x.shape for x in sown] == [(2, *stage) for stage in stages]
    assert build({"name": name} | options, num_classes=3).num_stages() == len(stages)


@pytest.mark.parametrize(
    ("name", "image_shape", "layers", "on_features"),
    [
        ("mlp", MNIST, {}, 0.0),
        ("lenet", MNIST, {}, 0.0),
        ("lenet_all", MNIST, {(12, 12, 20): 0.5, (4, 4, 50): 0.5}, 0.5),
        ("quick", CIFAR, {(16, 16, 32): 0.5, (8, 8, 32): 0.5, (4, 4, 64): 0.5}, 0.5),
        ("nin", CIFAR, {(16, 16, 96): 0.5, (8, 8, 192): 0.5}, 0.0),
        ("all_conv", CIFAR, {CIFAR: 0.2, (16, 16, 96): 0.5, (8, 8, 192): 0.5}, 0.0),
        ("resnet18", CIFAR, {}, 0.0),
        ("densenet121", CIFAR, {}, 0.0),
        ("wide_resnet16_4", CIFAR, {}, 0.0),
        ("vit_tiny", CIFAR, {}, 0.0),
    ],
)
def test_dropout_is_where_the_paper_has_it(name, image_shape, layers, on_features):
    model = build({"name": name}, num_classes=3)
    assert model.dropout_rate == on_features
    assert model.stochastic() == (bool(layers), on_features > 0)
    rates = {}

    def record(module, method):
        if isinstance(module, Dropout) and module.rate > 0:
            rates["/".join(module.path)] = module.rate
            return True
        return False

    if not layers:
        return
    _, variables = shapes(name, image_shape)
    _, state = jax.eval_shape(
        partial(model.apply, method="features", capture_intermediates=record, mutable=True),
        variables,
        jnp.zeros((1, *image_shape)),
    )
    outputs = state["intermediates"]["backbone"]
    found = {
        outputs[path.split("/")[1]]["__call__"][0].shape[1:]: rate for path, rate in rates.items()
    }
    assert found == layers


@pytest.mark.parametrize("on_features", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("mlp", None),
        ("densenet121", None),
        ("resnet18", None),
        ("wide_resnet28_10", "block_dropout_rate"),
        ("wide_resnet16_4", "block_dropout_rate"),
        ("vit_tiny", "block_dropout_rate"),
        ("vit_small", "block_dropout_rate"),
    ],
)
def test_stochastic_says_where_the_dropout_is(name, option, on_features):
    options = {"name": name, "dropout_rate": on_features}
    inside = on_features > 0 and name == "mlp"  # between its layers, at the same rate
    assert build(options, num_classes=3).stochastic() == (inside, on_features > 0)
    if option:
        model = build(options | {option: 0.3}, num_classes=3)
        assert model.stochastic() == (True, on_features > 0)


@pytest.mark.parametrize(
    ("options", "stochastic"),
    [
        ({"name": "mlp", "depth": 1, "dropout_rate": 0.5}, (False, True)),
        ({"name": "all_conv", "dropout_rate": 0.0}, (True, False)),  # on the pixels
        ({"name": "all_conv", "dropout_rate": 0.0, "input_dropout_rate": 0.0}, (False, False)),
    ],
    ids=str,
)
def test_stochastic_is_right_for_networks_without_one_of_their_dropout_layers(options, stochastic):
    assert build(options, num_classes=3).stochastic() == stochastic


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "wide_resnet28_10"])
def test_build_passes_the_axis_name_on_to_batch_norm(name):
    assert build({"name": name}, num_classes=3, axis_name="batch").backbone.axis_name == "batch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg"}, "name: must be one of .*densenet121.* mlp, .*, got 'vgg'"),
        ({"name": "mlp", "stem": "cifar"}, "stem: 'mlp' has no such option"),
        ({"name": "mlp", "width": 0}, "width: must be at least 1, got 0"),
        ({"name": "mlp", "width": 2**32 - 1}, "width: must be at most 65536, got 4294967295"),
        ({"name": "mlp", "depth": 0}, "depth: must be at least 1, got 0"),
        ({"name": "mlp", "depth": 2**31 - 1}, "depth: must be at most 1000, got 2147483647"),
        (
            {"name": "mlp", "dtype": "float16"},
            "dtype: must be one of float32, bfloat16, got 'float16'",
        ),
        ({"name": "mlp", "dropout_rate": 1.0}, r"dropout_rate: must be in \[0, 1\), got 1.0"),
        (
            {"name": "resnet18", "stem": "mnist"},
            "stem: must be one of cifar, imagenet, got 'mnist'",
        ),
        (
            {"name": "densenet121", "stem": "mnist"},
            "stem: must be one of cifar, imagenet, got 'mnist'",
        ),
        (
            {"name": "wide_resnet28_10", "block_dropout_rate": 1.0},
            r"block_dropout_rate: must be in \[0, 1\), got 1.0",
        ),
        ({"name": "quick", "hidden": -1}, "hidden: must be at least 1, got -1"),
        ({"name": "nin", "width": 1}, "width: must be at least 2, got 1"),
        (
            {"name": "all_conv", "input_dropout_rate": 1.0},
            r"input_dropout_rate: must be in \[0, 1\), got 1.0",
        ),
        (
            {"name": "vit_tiny", "width": 64},
            "width: must be a multiple of 3, the number of heads, got 64",
        ),
        ({"name": "vit_tiny", "depth": 2**31 - 1}, "depth: must be at most 1000, got 2147483647"),
        ({"name": "vit_tiny", "patch_size": 0}, "patch_size: must be at least 1, got 0"),
        (
            {"name": "vit_tiny", "block_dropout_rate": 1.0},
            r"block_dropout_rate: must be in \[0, 1\), got 1.0",
        ),
    ],
    ids=str,
)
def test_a_bad_option_is_an_input_error_that_names_its_field(options, message):
    with pytest.raises(InputError, match=rf"^config\.model\.{message}"):
        build(options, num_classes=3)


def densenet(stem):
    """Of four blocks, as DenseNet-121."""
    return Classifier(DenseNet((1, 1, 1, 1), 2, stem, None, jnp.dtype("float32")), 3)


@pytest.mark.parametrize(
    ("model", "smallest", "network"),
    [
        (build({"name": "lenet"}, num_classes=3), 16, "lenet"),
        (build({"name": "quick"}, num_classes=3), 8, "quick"),
        (build({"name": "nin"}, num_classes=3), 4, "2 pooling layers"),
        (densenet("cifar"), 8, "a DenseNet with stem='cifar'"),
        (densenet("imagenet"), 29, "a DenseNet with stem='imagenet'"),
    ],
    ids=["lenet", "quick", "nin", "densenet", "densenet imagenet"],
)
def test_images_too_small_for_the_network_are_an_input_error(model, smallest, network):
    def trace(*size):
        jax.eval_shape(model.init, KEY, jnp.zeros((1, *size, 1)))

    trace(smallest, smallest)
    for size in [(40, smallest - 1), (smallest - 1, 40)]:
        with pytest.raises(InputError) as error:
            trace(*size)
        assert str(error.value) == (
            f"images must be {smallest}x{smallest} pixels or more for {network}, "
            f"got {size[0]}x{size[1]}"
        )


@pytest.mark.parametrize("size", [(32, 30), (30, 32)])
def test_images_that_patches_do_not_cover_are_an_input_error(size):
    message = f"patch_size: must be a divisor of the images' {size[0]}x{size[1]} pixels, got 4"
    with pytest.raises(InputError, match=f"^{message}"):
        shapes("vit_tiny", (*size, 3))


# ------------------------------------------------------------------------------- the contract

WITH_BATCH_NORM = ("resnet", "densenet", "wide_resnet")
WITH_DROPOUT_INSIDE = ("mlp", "lenet", "quick", "fully_convolutional", "wide_resnet", "vit")
BACKBONES = (*WITH_DROPOUT_INSIDE, "resnet", "densenet")
IMAGES = np.random.default_rng(1).normal(0.5, 2, (8, 16, 16, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(1), 8)


def tiny(name, *, inside=0.0, on_features=0.0, axis_name=None, dtype="float32"):
    dtype = jnp.dtype(dtype)
    chain = (Layer(4, 3, pool="max", dropout=True), Layer(5, 3, stride=2), Layer(6, 1, pool="avg"))
    backbone = {
        "mlp": MLP(16, 2, inside, dtype),
        "lenet": LeNet(2, inside, dtype),
        "quick": Quick(4, 16, inside, dtype),
        "fully_convolutional": FullyConvolutional(chain, inside, inside, dtype),
        "resnet": ResNet(BasicBlock, (1, 1), 6, "cifar", axis_name, dtype),
        "densenet": DenseNet((1, 2), 3, "cifar", axis_name, dtype),
        "wide_resnet": WideResNet(10, 2, 3, inside, axis_name, dtype),
        "vit": VisionTransformer(12, 1, 3, 8, inside, dtype),
    }[name]
    return Classifier(backbone, 3, on_features)


def lowered(model, variables, **options):
    """The program of a model, as text."""
    apply = partial(model.apply, mutable=["batch_stats"], **options)
    return jax.jit(apply).lower(variables, IMAGES).as_text()


class Network:
    """A tiny network with dropout at all places, compiled once with keys and once without."""

    def __init__(self, name, random_variables):
        self.name = name
        self.model = tiny(name, inside=0.5, on_features=0.5)
        self.variables = random_variables(self.model, IMAGES)

        apply = partial(self.model.apply, self.variables)
        features_of = jax.jit(partial(apply, method="features"))

        @jax.jit  # apart: in one program XLA may compute the features again, with other roundings
        def after(features, keys):
            dropped = apply(features, keys, method="drop")
            return dropped, apply(dropped, method="head")

        def run(images, keys):
            features = features_of(images, dropout_keys=keys)
            return features, *after(features, keys)

        self.run = run
        self.clean = run(IMAGES, None)
        self.random = run(IMAGES, KEYS)


@pytest.fixture(scope="module", params=BACKBONES)
def network(request, random_variables):
    return Network(request.param, random_variables)


def test_the_head_is_linear_and_dropout_comes_before_it(network):
    dense = network.variables["params"]["classifier"]
    for _, dropped, logits in (network.clean, network.random):
        assert logits.shape == (8, 3)
        expected = np.asarray(dropped) @ dense["kernel"] + dense["bias"]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(network.clean[1], network.clean[0])
    features, dropped, _ = network.random
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(dropped, np.where(kept, 2 * features, 0), rtol=1e-6)
    assert 0.2 < kept[np.asarray(features) != 0].mean() < 0.8


@pytest.mark.parametrize("network", ["mlp"], indirect=True)
def test_calling_a_network_is_its_features_then_dropout_then_the_head(network):
    call = jax.jit(lambda keys: network.model.apply(network.variables, IMAGES, dropout_keys=keys))
    np.testing.assert_allclose(call(None), network.clean[2], rtol=1e-4)
    np.testing.assert_allclose(call(KEYS), network.random[2], rtol=1e-4)


def test_without_keys_it_is_the_program_of_a_network_without_dropout(network):
    train = network.name in WITH_BATCH_NORM  # makes no difference to the others
    programs = [
        lowered(model, network.variables, train=train)
        for model in (network.model, tiny(network.name))
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("network", sorted({*BACKBONES} - {*WITH_BATCH_NORM}), indirect=True)
def test_dropout_with_keys_does_not_depend_on_train(network):
    evaluation, training = (
        lowered(network.model, network.variables, train=train, dropout_keys=KEYS)
        for train in (False, True)
    )
    assert evaluation == training


def test_dropout_inside_changes_the_features_of_every_example(network):
    changed = np.abs(network.random[0] - network.clean[0]).max(-1)
    if network.name in WITH_DROPOUT_INSIDE:
        assert (changed > 1e-2).all()
    else:
        assert (changed < 1e-4).all()


def test_an_example_depends_on_its_own_key_and_image_only(network):
    others = np.arange(8) != 1
    logits = network.random[2]
    order = np.array([2, 7, 0, 3, 1, 6, 5, 4])
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    same(network.run(IMAGES[order], KEYS[order])[2], logits[order])

    other_key = network.run(IMAGES, KEYS.at[1].set(jax.random.key(99)))[2]
    same(other_key[others], logits[others])
    assert np.abs(other_key[1] - logits[1]).max() > 1e-2

    images = IMAGES.copy()
    images[1] = 3 * IMAGES[2] + 1
    other_image = network.run(images, KEYS)[2]
    same(other_image[others], logits[others])
    assert np.abs(other_image[1] - logits[1]).max() > 1e-2


def test_bfloat16_computes_in_bfloat16_and_returns_float32(network):
    half = tiny(network.name, dtype="bfloat16")
    logits, variables = jax.eval_shape(
        partial(
            half.init_with_output,
            capture_intermediates=lambda _, method: method in ("features", "__call__"),
            mutable=True,
        ),
        KEY,
        IMAGES,
    )
    captured = variables.pop("intermediates")
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert captured["features"][0].dtype == logits.dtype == jnp.float32
    layers = dict(captured["backbone"])
    del layers["__call__"]  # the backbone itself
    if network.name == "fully_convolutional":
        del layers["Dropout_0"]  # the pixels
    if network.name == "vit":
        del layers["norm"]  # the features
    assert len(jax.tree.leaves(layers)) >= 3
    assert {x.dtype for x in jax.tree.leaves(layers)} == {jnp.dtype("bfloat16")}


def test_bfloat16_logits_are_close_to_those_in_float32(network):
    half = tiny(network.name, dtype="bfloat16")
    logits, expected = jax.jit(half.apply)(network.variables, IMAGES), network.clean[2]
    assert not np.array_equal(logits, expected)
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


@pytest.fixture(scope="module", params=WITH_BATCH_NORM)
def batch_norm(request, random_variables):
    """``(name, variables, images, logits, batch_stats)``, the last two after a step of training."""
    images = IMAGES[:, :8, :8]
    model = tiny(request.param)
    variables = random_variables(model, images)
    train = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, updated = train(variables, images)
    return request.param, variables, images, logits, updated["batch_stats"]


def test_training_mode_alone_updates_batch_statistics(batch_norm):
    name, variables, images, _, updated = batch_norm
    old = variables["batch_stats"]
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, updated, old)
    assert all(jax.tree.leaves(changed))
    evaluate = jax.jit(partial(tiny(name).apply, train=False, mutable=["batch_stats"]))
    jax.tree.map(np.testing.assert_array_equal, evaluate(variables, images)[1]["batch_stats"], old)


def test_four_devices_compute_the_logits_and_statistics_of_one(batch_norm):
    name, variables, images, logits, updated = batch_norm
    over_devices = jax.pmap(
        partial(tiny(name, axis_name="batch").apply, train=True, mutable=["batch_stats"]),
        "batch",
        in_axes=(None, 0),
        out_axes=(0, None),
        devices=jax.devices()[:4],
    )
    sharded, state = over_devices(variables, images.reshape(4, 2, *images.shape[1:]))
    same = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    same(sharded.reshape(8, 3), logits)
    jax.tree.map(same, state["batch_stats"], updated)


def test_the_head_starts_from_a_uniform_distribution_as_wide_as_pytorchs():
    params = jax.jit(tiny("mlp").init)(KEY, IMAGES)["params"]["classifier"]
    assert params["kernel"].shape == (16, 3)
    assert 0.8 / 4 < np.abs(params["kernel"]).max() <= 1 / 4  # 1 / sqrt(16)
    assert not params["bias"].any()
