"""Parameters of torchvision and timm: the same logits here, and errors that name the first difference.

``torch_logits.json`` holds their logits for the made parameters below, computed in float64.
"""

import json
import pathlib
import pickle
import zlib
from functools import partial

import jax
import numpy as np
import pytest
import safetensors.numpy

from sdd_jax.errors import InputError
from sdd_jax.models import build
from sdd_jax.models.pretrained import digest, start_from

GOLDEN = json.loads((pathlib.Path(__file__).parent / "torch_logits.json").read_text())["logits"]


CLASSES, SIZE = 5, 64

STAGES = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
WIDTHS = {"vit_tiny": 192, "vit_small": 384}


def state_dict(name, *, classes=CLASSES, size=SIZE):
    """``{name: array}`` as PyTorch lays them out; each array is a function of its name and shape."""
    shapes = dict(_resnet(name, classes) if name in STAGES else _OTHERS[name](name, classes, size))
    return {key: _made(key, shape) for key, shape in shapes.items()}


def images(size=SIZE):
    """Normalised images ``[2, H, W, C]``."""
    return np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)


def _made(name, shape):
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.int64(7)
    if len(shape) > 1:
        fan_in = max(1, np.prod(shape[1:]))
        return (random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    positive = name.endswith(("weight", "running_var"))
    return (positive + random.uniform(-0.4, 0.4, shape)).astype(np.float32)


def _norm(name, channels):
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def _linear(name, inputs, outputs):
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _resnet(name, classes):
    bottleneck = name in ("resnet50", "resnet101", "resnet152")
    yield "conv1.weight", (64, 3, 7, 7)
    yield from _norm("bn1", 64)
    channels = 64
    for i, blocks in enumerate(STAGES[name], start=1):
        width = 32 * 2**i
        outputs = 4 * width if bottleneck else width
        sizes = [(width, 1), (width, 3), (outputs, 1)] if bottleneck else [(width, 3), (width, 3)]
        for j in range(blocks):
            inputs = channels
            for k, (width_out, size) in enumerate(sizes, start=1):
                yield f"layer{i}.{j}.conv{k}.weight", (width_out, inputs, size, size)
                yield from _norm(f"layer{i}.{j}.bn{k}", width_out)
                inputs = width_out
            if channels != outputs:
                yield f"layer{i}.{j}.downsample.0.weight", (outputs, channels, 1, 1)
                yield from _norm(f"layer{i}.{j}.downsample.1", outputs)
            channels = outputs
    yield from _linear("fc", channels, classes)


def _densenet(name, classes, size):
    yield "features.conv0.weight", (64, 3, 7, 7)
    yield from _norm("features.norm0", 64)
    channels = 64
    for i, layers in enumerate((6, 12, 24, 16), start=1):
        for j in range(1, layers + 1):
            layer = f"features.denseblock{i}.denselayer{j}"
            yield from _norm(f"{layer}.norm1", channels)
            yield f"{layer}.conv1.weight", (128, channels, 1, 1)
            yield from _norm(f"{layer}.norm2", 128)
            yield f"{layer}.conv2.weight", (32, 128, 3, 3)
            channels += 32
        if i < 4:
            yield from _norm(f"features.transition{i}.norm", channels)
            yield f"features.transition{i}.conv.weight", (channels // 2, channels, 1, 1)
            channels //= 2
    yield from _norm("features.norm5", channels)
    yield from _linear("classifier", channels, classes)


def _vit(name, classes, size):
    width = WIDTHS[name]
    yield "cls_token", (1, 1, width)
    yield "pos_embed", (1, 1 + (size // 16) ** 2, width)
    yield "patch_embed.proj.weight", (width, 3, 16, 16)
    yield "patch_embed.proj.bias", (width,)
    norms = [f"blocks.{i}.norm{k}" for i in range(12) for k in (1, 2)]
    for norm in [*norms, "norm"]:
        yield f"{norm}.weight", (width,)
        yield f"{norm}.bias", (width,)
    for i in range(12):
        yield from _linear(f"blocks.{i}.attn.qkv", width, 3 * width)
        yield from _linear(f"blocks.{i}.attn.proj", width, width)
        yield from _linear(f"blocks.{i}.mlp.fc1", width, 4 * width)
        yield from _linear(f"blocks.{i}.mlp.fc2", 4 * width, width)
    yield from _linear("head", width, classes)


_OTHERS = {"densenet121": _densenet, "vit_tiny": _vit, "vit_small": _vit}


# --------------------------------------------------------------------------- the networks here


def network(name, *, classes=CLASSES, **options):
    own = {"patch_size": 16} if name.startswith("vit") else {"stem": "imagenet"}
    return build({"name": name} | own | options, num_classes=classes)


def abstract(model, size=SIZE, channels=3):
    images = jax.ShapeDtypeStruct((1, size, size, channels), np.float32)
    return jax.eval_shape(partial(model.init, jax.random.key(0)), images)


def logits_of(name, path):
    model = network(name)
    return jax.jit(model.apply)(start_from(abstract(model), path), images())


def assert_close(logits, name):
    expected = np.array(GOLDEN[name])
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Saves arrays; returns the path."""
    folder = tmp_path_factory.mktemp("weights")

    def save(arrays, name="weights"):
        path = folder / f"{name}.safetensors"
        path.write_bytes(
            safetensors.numpy.save({key: np.ascontiguousarray(x) for key, x in arrays.items()})
        )
        return path

    return save


@pytest.fixture(scope="module")
def resnet18(save):
    return save(state_dict("resnet18"), "resnet18")


FAST = ("resnet18", "vit_tiny")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in GOLDEN],
)
def test_logits_are_those_of_pytorch(save, name):
    assert_close(logits_of(name, save(state_dict(name))), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_the_recorded_logits_are_those_of_the_installed_torchvision_and_timm(name):
    torch, source = (
        pytest.importorskip(x) for x in ("torch", "timm" if name in WIDTHS else "torchvision")
    )
    if name in WIDTHS:
        model = source.create_model(f"{name}_patch16_224", num_classes=CLASSES, img_size=SIZE)
    else:
        model = getattr(source.models, name)(num_classes=CLASSES)
    model.load_state_dict({key: torch.tensor(x) for key, x in state_dict(name).items()})
    with torch.no_grad():
        pixels = torch.tensor(images().transpose(0, 3, 1, 2).copy()).double()
        assert_close(model.double().eval()(pixels).numpy(), name)


def test_names_of_the_files_that_torchvision_distributes_for_densenet_are_known(save):
    arrays = state_dict("densenet121")
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): x
        for key, x in arrays.items()
    }
    assert old.keys() != arrays.keys()
    variables = abstract(network("densenet121"))
    ours, theirs = (start_from(variables, save(x)) for x in (arrays, old))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_half_precision_becomes_float32(save):
    arrays = {
        key: x.astype(np.float16) if x.dtype == np.float32 else x
        for key, x in state_dict("resnet18").items()
    }
    variables = start_from(abstract(network("resnet18")), save(arrays))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}


@pytest.mark.parametrize("file_has", ["another number of classes", "no head"])
def test_a_head_for_other_classes_is_fresh(save, file_has):
    arrays = state_dict("resnet18", classes=7)
    if file_has == "no head":
        arrays = {key: x for key, x in arrays.items() if not key.startswith("fc.")}
    model = network("resnet18")
    initial = jax.jit(model.init)(jax.random.key(0), images())
    variables = start_from(initial, save(arrays))
    head, stem = (variables["params"][name] for name in ("classifier", "backbone"))
    jax.tree.map(np.testing.assert_array_equal, head, initial["params"]["classifier"])
    kernel = np.moveaxis(stem["stem_conv"]["kernel"], (3, 2), (0, 1))
    np.testing.assert_array_equal(kernel, arrays["conv1.weight"])


@pytest.mark.parametrize("name", ["unet", "centernet"])
def test_an_encoder_starts_from_a_network_without_one(save, name):
    arrays = state_dict("resnet18")
    stem = {"stem": "imagenet"} if name == "unet" else {}
    model = build({"name": name} | stem, num_classes=3)
    initial = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    file = save(arrays)
    variables = start_from(initial, file)
    backbone = start_from(abstract(network("resnet18")), file)
    with pytest.raises(InputError, match=r"^init: layer5.weight is float32\[1\] in .* and absent"):
        start_from(initial, save(arrays | {"layer5.weight": np.zeros(1, np.float32)}))
    for part in ("params", "batch_stats"):
        encoder = variables[part]["backbone"].pop("encoder")
        jax.tree.map(np.testing.assert_array_equal, encoder, backbone[part]["backbone"])
        initial[part]["backbone"].pop("encoder")
        jax.tree.map(np.testing.assert_array_equal, variables[part], initial[part])


def change(name, **changes):
    """The state dict of a network with arrays replaced; None removes one."""
    arrays = state_dict(name) | {key.replace("__", "."): x for key, x in changes.items()}
    return {key: x for key, x in arrays.items() if x is not None}


@pytest.mark.parametrize(
    ("arrays", "name", "options", "message"),
    [
        (
            lambda: change("resnet18"), "resnet18", {"stem": "cifar"},
            r"conv1.weight is float32\[7, 7, 3, 64\] in .* and float32\[3, 3, 3, 64\] in this network; "
            "torchvision's networks have stem='imagenet'",
        ),
        (
            lambda: change("resnet18", bn1__running_var=None), "resnet18", {},
            r"batch_stats/backbone/stem_norm/var is absent in .* and float32\[64\] in this network",
        ),
        (
            lambda: change("resnet18", fc__weight=np.zeros((5, 8), np.float32)), "resnet18", {},
            r"fc.weight is float32\[8, 5\] in .* and float32\[512, 5\]",
        ),
        (
            lambda: change("resnet18", conv1__weight=np.zeros((64, 3, 7, 7), np.int8)), "resnet18", {},
            r"conv1.weight is int8\[7, 7, 3, 64\] in ",
        ),
        (
            lambda: change("resnet34"), "resnet18", {},
            r"layer1.2.bn1.running_mean is float32\[64\] in .* and absent in this network",
        ),
        (
            lambda: change("vit_tiny", dist_token=np.zeros((1, 1, 192), np.float32)), "vit_tiny", {},
            r"dist_token is float32\[1, 1, 192\] in .* and absent",
        ),
        (
            lambda: change("vit_tiny", blocks__3__ls1__gamma=np.zeros(192, np.float32)), "vit_tiny", {},
            r"blocks.3.ls1.gamma is float32\[192\] in .* and absent",
        ),
        (
            lambda: change("vit_small"), "vit_tiny", {"width": 384},  # of three heads, there of six
            r"blocks.0.attn.qkv.bias is float32\[6, 64\] in .* and float32\[3, 128\]",
        ),
        (
            lambda: state_dict("vit_tiny", size=32), "vit_tiny", {},
            r"pos_embed is float32\[1, 5, 192\] in .* and float32\[1, 17, 192\] .* patch_size=16",
        ),
        (lambda: {"a.b.c": np.zeros((1, 2, 3), np.float32)}, "resnet18", {}, "a.b.c is .* and absent"),
        (dict, "resnet18", {}, ".* is absent in"),
    ],
)  # fmt: skip
def test_the_first_array_that_differs_is_an_error(save, arrays, name, options, message):
    with pytest.raises(InputError, match=f"^init: {message}"):
        start_from(abstract(network(name, **options)), save(arrays()))


class Harmful:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:7],
        lambda content: content[:1000],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"\xff" * 1000,
        lambda content: pickle.dumps(Harmful()),
        lambda content: b"PK\3\4" + content,
    ],
)
def test_a_damaged_file_or_a_pickle_is_an_error(resnet18, tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(damage(resnet18.read_bytes()))
    with pytest.raises(InputError, match=f"^init: {path} is no intact safetensors file: "):
        start_from(abstract(network("resnet18")), path)
    assert not (tmp_path / "executed").exists()


def test_a_type_that_numpy_lacks_is_an_error(tmp_path):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(InputError, match="holds arrays of type 'BF16'; save float32"):
        start_from(abstract(network("resnet18")), path)


@pytest.mark.parametrize("function", [digest, partial(start_from, {})])
@pytest.mark.parametrize("path", ["absent.safetensors", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, monkeypatch, function, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^init: must be a safetensors file, got .*\("):
        function(path)


def test_the_digest_changes_with_the_file(resnet18, save):
    assert digest(resnet18) == digest(resnet18)
    assert digest(resnet18) != digest(save({"x": np.zeros(1)}))
