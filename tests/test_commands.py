"""Every command of the README and of docs/ runs: in their order, in one folder, on small data.

The placeholders of the text, such as DIR and RUN, are folders there. ``SHORTER`` makes runs short and
networks small; tests/test_docs.py parses the commands as they stand.
"""

import multiprocessing
import os
import pathlib
import re
import runpy
import shlex
import shutil
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

from sdd_jax.__main__ import main

ROOT = pathlib.Path(__file__).parent.parent

NOT_RUN = {
    "pip ": "installs a package; .ci/run installs with the README's two lines",
    "pytest": "these tests",
    "sdd-jax compile ": "needs libtpu; tests/test_compile_only.py",
    "python train.py --config=cifar100_resnet18 --distributed ": "needs a cluster and a bucket; "
    "tests/faults/test_hosts.py, tests/faults/test_buckets.py",
    "python -m benchmarks.": "measures for minutes to days; tests/benchmarks",
    "python examples/intents.py ": "needs a data set; tests/examples",
    "python examples/language_model.py ": "needs a network; tests/examples",
    "python examples/": "trains for half a minute; tests/examples",
    "import safetensors.torch\n": "needs torch; a file in place of its own is there",
}

# The Python of other pages is a part of a training step.
WHOLE_PROGRAMS = ("docs/python.md", "docs/extend.md")

SMALL = ["--config.model={'name': 'mlp', 'width': 8, 'depth': 2}", "--config.batch_size=8"]
SHORTER = {  # by a part of the command
    "train": ["--config.duration=2 epochs", "--config.dataset.data_dir=DIR"],
    "cifar100_resnet18": SMALL,
    "cub200_resnet18": [*SMALL, "--config.dataset.image_size=32"],
    "imagenet_resnet152": [*SMALL, "--config.dataset.image_size=32", "--config.accumulate=2"],
    "probe_features": ["--config.batch_size=8"],
    "coco_resnet50": [
        f"--config.{option}"
        for option in (
            "model.encoder=resnet18",
            "model.width=2",
            "model.features=2",
            "dataset.image_size=32",
            "batch_size=8",
            "engine.workers=2",
        )
    ],
    "--checks=all": [
        f"--config.eval.{option}"
        for option in ("mc_samples=4", "pgd_steps=2", "apgd_steps=2", "square_queries=5")
    ],
    "--compare": ["--checks=accuracy,calibration"],  # all are evaluated one line above
}

PRELOADED = ["sdd_jax.cli", "sdd_jax.train", "sdd_jax.evaluate", "sdd_jax.trained_run"]
PRELOADED += ["tensorboardX", "sklearn.datasets", "matplotlib.pyplot", "tensorflow_datasets"]

IMAGES = """
import numpy as np
images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
"""


class Command(NamedTuple):
    """A command of a page, or a block of Python."""

    page: str
    text: str
    is_python: bool = False

    @property
    def why_not_run(self):
        """The most specific reason, by its beginning."""
        starts = [start for start in NOT_RUN if self.text.startswith(start)]
        return max(starts, key=len, default=None)


def pages():
    """The README, then the site in the order of its contents."""
    text = (ROOT / "docs" / "index.md").read_text()
    (contents,) = re.findall(r"^```{toctree}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names = [line for line in contents.split() if re.fullmatch(r"\w+", line)]
    return ["README.md", "docs/index.md", *(f"docs/{name}.md" for name in names)]


def commands(page):
    """Bash blocks line by line, blocks of Python, and commands in the sentences."""
    pattern = r"^```(\S*)[^\n]*\n(.*?)^```|`([^`\n]+)`"
    found = re.findall(pattern, (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    for language, block, span in found:
        if language == "python" and page in WHOLE_PROGRAMS:
            yield Command(page, block, is_python=True)
        elif language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                yield from (Command(page, command) for command in line.split(" && "))
        elif re.match(r"([A-Z_]+=\S+ )*python .*\.py|sdd-jax \w+ -|sdd-jax cards$", span):
            yield Command(page, span)


def runnable():
    """The commands that run; the Python of a page as one."""
    for page in pages():
        found = [command for command in commands(page) if not command.why_not_run]
        if source := "".join(c.text for c in found if c.is_python):
            yield Command(page, source, is_python=True)
        yield from (c for c in found if not c.is_python)


def test_each_command_runs_here_or_has_a_reason_why_not():
    assert len(list(runnable())) >= 20
    reasons = {command.why_not_run for page in pages() for command in commands(page)}
    assert reasons == {*NOT_RUN, None}
    assert [part for part in SHORTER if not any(part in c.text for c in runnable())] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory, prepare, encoded, write_coco):
    """A folder with the programs, the cards, and what the placeholders of the text stand for."""
    import safetensors.numpy
    import tensorflow_datasets as tfds
    from flax.traverse_util import flatten_dict

    from sdd_jax.models import build, models

    path, random = tmp_path_factory.mktemp("commands"), np.random.default_rng(0)
    for program in ("train.py", "eval.py"):
        shutil.copy(ROOT / program, path)
    shutil.copytree(ROOT / "configs", path / "configs")

    def images(count, *shape):
        return random.integers(0, 256, (count, *shape), dtype=np.uint8)

    for name, classes, shape in (
        ("cifar100", 100, (32, 32, 3)),
        ("cifar10", 10, (32, 32, 3)),
        ("mnist", 10, (28, 28, 1)),
        ("caltech_birds2011", 200, None),
        ("imagenet2012", 1000, None),
    ):
        features = {
            "image": tfds.features.Image(shape=shape, encoding_format="png" if shape else "jpeg"),
            "label": tfds.features.ClassLabel(num_classes=classes),
        }
        kind = "PNG" if shape else "JPEG"
        splits = {
            split: [
                {"image": encoded(image.squeeze(), kind), "label": i % classes}
                for i, image in enumerate(images(count, *(shape or (40, 50, 3))))
            ]
            for split, count in (("train", 16), ("test", 8))
        }
        prepare(path / "DIR", name, features, splits)
        # In the version that tfds looks for.
        version = str(tfds.builder_cls(name).VERSION)
        prepared = (path / "DIR" / name / "1.0.0").rename(path / "DIR" / name / version)
        info = prepared / "dataset_info.json"
        info.write_text(info.read_text().replace('"1.0.0"', f'"{version}"'))
    write_coco(path / "DIR" / "coco")
    (path / "path" / "CIFAR-100-C").mkdir(parents=True)
    np.save(path / "path/CIFAR-100-C/fog.npy", images(10, 32, 32, 3))
    np.save(path / "path/CIFAR-100-C/labels.npy", np.arange(10, dtype=np.uint8))
    arrays = {f"{split}_images": images(8, 32, 32, 3) for split in ("train", "test")}
    arrays |= {f"{split}_labels": np.arange(8) for split in ("train", "test")}
    for command in runnable():
        for root, name in re.findall(r"npz:(/?)([\w/]+\.npz)", command.text):
            np.savez(path / ("" if root else "DIR") / name, **arrays)
    features = {f"{split}_images": random.normal(size=(8, 6)) for split in ("train", "test")}
    np.savez(path / "DIR" / "features.npz", **(arrays | features))
    (path / "RUN2").symlink_to("runs/cifar100_resnet18-ce")
    (path / "RUN3").symlink_to("runs/cifar100_resnet18-byot-sd_dropout")
    network = build(models.options("mlp", width=8, depth=2), num_classes=200)
    variables = network.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    arrays = {name: np.asarray(x) for name, x in flatten_dict(variables, sep="/").items()}
    safetensors.numpy.save_file(arrays, path / "resnet18.safetensors")
    return path


def execute(command, folder, log):
    """Executes a command in this process, with its output in a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    jax.config.update("jax_disable_most_optimizations", True)
    if command.is_python:
        if name := re.match(r"# (\w+\.py)\n", command.text):
            (folder / name[1]).write_text(command.text)
        exec(IMAGES + command.text, {"__name__": "__main__"})
        return
    words = shlex.split(command.text.replace("/path/", f"{folder}/path/"), comments=True)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        os.environ[name] = value
        jax.config.update(name.lower(), int(value))  # JAX read the variable when it was imported
    for part, options in SHORTER.items():
        words += options if part in command.text else []
    if words[0] == "python":
        sys.argv[:] = words[1:]
        runpy.run_path(words[1], run_name="__main__")
    else:
        sys.argv[:] = words
        main()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", list(runnable()), ids=lambda c: f"{c.page}: {c.text.partition(chr(10))[0]}"
)
def test_a_command_succeeds_after_those_before_it(command, folder):
    # A fork of a process that has imported the libraries starts at once, with flags of its own.
    context, log = multiprocessing.get_context("forkserver"), folder / "output.txt"
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=execute, args=(command, folder, log))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()
