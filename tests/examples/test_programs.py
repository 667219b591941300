"""The small programs of other projects: each learns, with the loss of this library."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

import sdd_jax
from sdd_jax.models import Classifier
from sdd_jax.models.resnet import BasicBlock, ResNet

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def load(path):
    """Imports a file of the repository that is not part of the package."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def jax_as_it_is_elsewhere():
    """Implicit promotion, as in a project without this one's strictness."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(program, monkeypatch, capsys, *arguments):
    """``{weight: test accuracy in %}`` as the program prints them."""
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    program.main()
    pattern = r"^SD-Dropout, weight (\S+): test accuracy (\S+)%$"
    found = re.findall(pattern, capsys.readouterr().out, re.MULTILINE)
    return {float(weight): float(accuracy) for weight, accuracy in found}


def layers(network):
    """Weights and biases of the hidden layer and of the head, as NumPy arrays ``[in, out]``."""
    kernel, bias, head_kernel, head_bias = sorted(
        map(np.asarray, jax.tree.leaves(network)), key=lambda x: (10 in x.shape, -x.ndim)
    )
    if len(kernel) == 512:  # Equinox
        kernel, head_kernel = kernel.T, head_kernel.T
    return kernel, bias, head_kernel, head_bias


def linen(program):
    variables = program.network.init(jax.random.key(1), np.zeros((1, 64), np.float32))
    return variables, variables["params"]


def nnx(program):
    network = program.Network(program.nnx.Rngs(1))
    return network, program.nnx.state(network)


def equinox(program):
    network = program.Network(jax.random.key(1))
    return network, network


@pytest.mark.slow
@pytest.mark.parametrize("create", [linen, nnx, equinox])
def test_the_program_learns_and_its_loss_is_ours(create, monkeypatch, capsys):
    program = load(EXAMPLES / f"digits_{create.__name__}.py")
    accuracies = run(program, monkeypatch, capsys)
    assert accuracies.keys() == {0.0, 1.0}
    assert min(accuracies.values()) > 80  # chance: 10

    network, parameters = create(program)
    kernel, bias, head_kernel, head_bias = layers(parameters)
    rng, key = np.random.default_rng(0), jax.random.key(2)
    images, labels = rng.random((6, 64), np.float32), np.arange(6)
    features = np.maximum(images @ kernel + bias, 0)
    logits = features @ head_kernel + head_bias
    ce = np.log(np.exp(logits).sum(axis=1)) - logits[range(6), labels]
    sdd = sdd_jax.sd_dropout_loss(
        features, lambda f: f @ head_kernel + head_bias, key, rate=0.5, temperature=3.0
    )
    for weight in (0.0, 0.7):
        loss = program.loss_fn(network, images, labels, key, weight)
        np.testing.assert_allclose(loss, np.mean(ce + weight * sdd), rtol=1e-5)


@pytest.mark.slow
def test_a_network_that_the_program_pretrains_learns_new_classes(monkeypatch, capsys):
    program = load(EXAMPLES / "pretrained.py")

    def build(options, num_classes):
        """Two of the eight blocks, which compile faster."""
        backbone = ResNet(BasicBlock, (1, 1), options["width"], options["stem"], None, np.float32)
        return Classifier(backbone, num_classes)

    monkeypatch.setattr(program, "build", build)
    accuracies = run(program, monkeypatch, capsys)
    assert accuracies.keys() == {0.0, 0.1}
    assert min(accuracies.values()) > 60  # chance: 20


@pytest.mark.slow
def test_fine_tuning_starts_from_a_backbone_of_torchvision(tmp_path, monkeypatch, capsys):
    import safetensors.numpy

    tests = load(EXAMPLES.parent / "tests" / "models" / "test_pretrained.py")
    arrays = {k: np.asarray(v) for k, v in tests.state_dict("resnet18", classes=7).items()}
    path = tmp_path / "resnet18.safetensors"
    safetensors.numpy.save_file(arrays, path)
    program = load(EXAMPLES / "pretrained.py")

    class Started(Exception):
        pass

    def train(network, variables, images, labels, weight, steps):
        raise Started(variables)

    monkeypatch.setattr(program, "train", train)
    with pytest.raises(Started) as started:
        run(program, monkeypatch, capsys, f"--backbone={path}")
    (variables,) = started.value.args
    kernel = variables["params"]["backbone"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["conv1.weight"].transpose(2, 3, 1, 0))
    assert variables["params"]["classifier"]["kernel"].shape == (512, 5)


def test_the_programs_use_no_private_module():
    for path in EXAMPLES.glob("*.py"):
        names = re.findall(r"\b(?:sdd_jax|examples)\.[\w.]+", path.read_text())
        modules = re.findall(
            r"^(?:from|import) (\S*(?:sdd_jax|examples)\S*)", path.read_text(), re.M
        )
        assert "sdd_jax" in modules
        assert not [name for name in names + modules if "._" in name or name.startswith("examples")]
