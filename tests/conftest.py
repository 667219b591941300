"""Four CPU devices, strict promotion, and data that several folders of tests share."""

import io
import pathlib

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
        help="with all of XLA's optimizations; without, tests compile in half the time",
    )


def pytest_configure(config):
    jax.config.update("jax_disable_most_optimizations", not config.getoption("--optimized"))


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The repository, with train.py, eval.py and configs."""
    return ROOT


@pytest.fixture
def tiny_config():
    """A run of a few seconds: digits, a small MLP, SD-Dropout, 8 steps an epoch."""
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


@pytest.fixture(scope="session")
def encoded():
    """Turns an array into an image file, at its start."""

    def encode(image, kind="PNG"):
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind)
        file.seek(0)
        return file

    return encode


@pytest.fixture(scope="session")
def prepare():
    """Writes a data set of ArrayRecord files into a data_dir."""

    def prepare(data_dir, set_name, features, splits):
        """``splits``: name -> list of examples."""
        import tensorflow_datasets as tfds

        with tfds.core.registered.skip_registration():

            class Made(tfds.core.GeneratorBasedBuilder):
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

        Made(data_dir=str(data_dir), file_format="array_record").download_and_prepare()

    return prepare


@pytest.fixture(scope="session")
def photographs(tmp_path_factory, prepare, encoded):
    """A data_dir with ``tiny_birds``: 48 and 14 JPEGs of three classes, of different sizes."""
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
