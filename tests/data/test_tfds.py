"""tfds data sets, written and read through the real library, without TensorFlow."""

import io
import sys

import numpy as np
import pytest

from sdd_jax import config as base
from sdd_jax import data
from sdd_jax.data.sources import tfds as source
from sdd_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(30) % 5


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    """A tfds data_dir with three prepared sets: tiny_images, no_labels and many_sizes."""
    import tensorflow_datasets as tfds
    from PIL import Image

    def png(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        file.seek(0)
        return file

    def builder(set_name, features, example):
        with tfds.core.registered.skip_registration():

            class Made(tfds.core.GeneratorBasedBuilder):
                name = set_name
                VERSION = tfds.core.Version("1.0.0")

                def _info(self):
                    return self.dataset_info_from_configs(
                        features=tfds.features.FeaturesDict(features)
                    )

                def _split_generators(self, dl_manager):
                    return {
                        "train": self._generate_examples(0, 20),
                        "test": self._generate_examples(20, 30),
                    }

                def _generate_examples(self, start, stop):
                    for i in range(start, stop):
                        yield i, example(i)

        return Made

    path = str(tmp_path_factory.mktemp("tfds"))
    image, label = (
        tfds.features.Image(encoding_format="png"),
        tfds.features.ClassLabel(num_classes=7),
    )
    for made in (
        builder(
            "tiny_images",
            {"image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"), "label": label},
            lambda i: {"image": png(IMAGES[i]), "label": LABELS[i]},
        ),
        builder("no_labels", {"image": image}, lambda i: {"image": png(IMAGES[i])}),
        builder(
            "many_sizes",
            {"image": image, "label": label},
            lambda i: {"image": png(IMAGES[i, : 4 + i % 4]), "label": LABELS[i]},
        ),
    ):
        made(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def options(data_dir, tmp_path, name):
    config = base.default().dataset
    config.update({"name": name, "data_dir": data_dir, "cache_dir": str(tmp_path / "cache")})
    return config


def test_images_and_labels_are_those_that_were_written(data_dir, tmp_path):
    dataset = data.load(options(data_dir, tmp_path, "tiny_images"))
    assert dataset.num_classes == 7
    for split, rows in (("train", IMAGES[:20]), ("test", IMAGES[20:])):
        images, labels = dataset.splits[split].images, dataset.splits[split].labels
        # tfds shuffles when it writes: compare as sets of (image, label)
        written = {
            rows[i].tobytes(): int(LABELS[i + (20 if split == "test" else 0)])
            for i in range(len(rows))
        }
        assert {
            image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)
        } == written


def test_the_second_load_reads_the_cache_without_tfds(data_dir, tmp_path, monkeypatch):
    first = data.load(options(data_dir, tmp_path, "tiny_images"))
    monkeypatch.setattr(source, "_decode", lambda *_: pytest.fail("decoded again"))
    second = data.load(options(data_dir, tmp_path, "tiny_images"))
    for split in first.splits:
        np.testing.assert_array_equal(first.splits[split].images, second.splits[split].images)
        np.testing.assert_array_equal(first.splits[split].labels, second.splits[split].labels)


def test_a_damaged_cache_is_decoded_again(data_dir, tmp_path, caplog):
    first = data.load(options(data_dir, tmp_path, "tiny_images"))
    (file,) = (tmp_path / "cache").glob("*/train_images.npy")
    file.write_bytes(file.read_bytes()[:200])
    second = data.load(options(data_dir, tmp_path, "tiny_images"))
    np.testing.assert_array_equal(first.splits["train"].images, second.splits["train"].images)
    assert "is damaged" in caplog.text


def test_a_set_that_is_known_but_not_there_names_the_command_that_prepares_it(tmp_path):
    with pytest.raises(
        InputError, match=r"'cifar10' is not in .*tfds build cifar10 .*array_record"
    ):
        data.load(options(str(tmp_path), tmp_path, "cifar10"))


def test_sets_that_are_not_image_classification_are_refused(data_dir, tmp_path):
    with pytest.raises(InputError, match="'no_labels' has no features 'image' and 'label'"):
        data.load(options(data_dir, tmp_path, "no_labels"))
    with pytest.raises(InputError, match="images of 'many_sizes' must have one size"):
        data.load(options(data_dir, tmp_path, "many_sizes"))


def test_tensorflow_is_never_imported():
    assert "tensorflow" not in sys.modules
