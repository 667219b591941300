"""tfds data sets, written and read through the real library, without TensorFlow."""

import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from sdd_jax import config as base
from sdd_jax import data
from sdd_jax.data.sources import tfds as source
from sdd_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(30) % 5


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, prepare, encoded) -> str:
    """A data_dir with the prepared sets tiny_images, no_labels, many_sizes, secret_test and masked."""
    import tensorflow_datasets as tfds

    path = tmp_path_factory.mktemp("tfds")
    fixed = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
    image = tfds.features.Image(encoding_format="png")
    label = tfds.features.ClassLabel(num_classes=7)

    def made(name, features, example):
        examples = [example(i) for i in range(30)]
        prepare(path, name, features, {"train": examples[:20], "test": examples[20:]})

    made(
        "tiny_images",
        {"image": fixed, "label": label},
        lambda i: {"image": encoded(IMAGES[i]), "label": LABELS[i]},
    )
    made("no_labels", {"image": image}, lambda i: {"image": encoded(IMAGES[i])})
    made(
        "many_sizes",
        {"image": image, "label": label},
        lambda i: {"image": encoded(IMAGES[i, : 4 + i % 4]), "label": LABELS[i]},
    )
    made(
        "masked",
        {"image": image, "label": label, "mask": image},
        lambda i: {"image": encoded(IMAGES[i]), "label": LABELS[i], "mask": encoded(IMAGES[i])},
    )
    prepare(
        path,
        "secret_test",
        {"image": fixed, "label": label},
        {
            "train": [{"image": encoded(IMAGES[i]), "label": LABELS[i]} for i in range(8)],
            "validation": [{"image": encoded(IMAGES[i]), "label": LABELS[i]} for i in range(8, 12)],
            "test": [{"image": encoded(IMAGES[i]), "label": -1} for i in range(12, 20)],
        },
    )
    return str(path)


def options(data_dir, tmp_path, name, **changes):
    config = base.default().dataset
    config.update({"name": name, "data_dir": data_dir, "cache_dir": str(tmp_path / "cache")})
    config.update(changes)
    return config


OF_ANY_SIZE = {"image_size": 4, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


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


def test_images_of_any_size_stay_encoded_and_their_labels_are_read_without_them(
    data_dir, tmp_path, monkeypatch
):
    import tensorflow_datasets as tfds

    def fail(*_):
        pytest.fail("decoded")

    monkeypatch.setattr(tfds.features.Image, "decode_example_np", fail)  # masks neither
    whole = options(data_dir, tmp_path, "masked", **OF_ANY_SIZE)
    dataset = data.load(whole)
    assert dataset.image_shape == (4, 4, 3)
    assert (dataset.num_classes, len(dataset.splits["test"].images)) == (7, 10)
    file = source.EncodedImages("masked", data_dir, "train")[3]
    image = np.asarray(Image.open(io.BytesIO(file)))
    (place,) = [i for i in range(20) if np.array_equal(IMAGES[i], image)]
    assert dataset.splits["train"].labels[3] == LABELS[place]


def test_labels_are_cached_beside_the_arrays(data_dir, tmp_path, monkeypatch):
    first = data.load(options(data_dir, tmp_path, "many_sizes", **OF_ANY_SIZE))
    monkeypatch.setattr(source, "_read_labels", lambda *_: pytest.fail("read again"))
    second = data.load(options(data_dir, tmp_path, "many_sizes", **OF_ANY_SIZE))
    for split in ("train", "test"):
        np.testing.assert_array_equal(first.splits[split].labels, second.splits[split].labels)
    data.load(options(data_dir, tmp_path, "tiny_images"))
    monkeypatch.undo()
    small = data.load(options(data_dir, tmp_path, "tiny_images", **OF_ANY_SIZE))
    assert small.image_shape == (4, 4, 3)


def test_encoded_images_open_again_in_another_process(data_dir):
    images = source.EncodedImages("many_sizes", data_dir, "test")
    again = pickle.loads(pickle.dumps(images))
    assert [again[i] for i in range(10)] == [images[i] for i in range(10)]


def test_a_test_split_without_labels_gives_way_to_validation(data_dir, tmp_path):
    for changes in ({}, OF_ANY_SIZE):
        dataset = data.load(options(data_dir, tmp_path, "secret_test", **changes))
        assert {name: len(split) for name, split in dataset.splits.items()} == {
            "train": 8,
            "test": 4,
        }
        np.testing.assert_array_equal(np.sort(dataset.splits["test"].labels), np.sort(LABELS[8:12]))


def test_tensorflow_is_never_imported():
    assert "tensorflow" not in sys.modules
