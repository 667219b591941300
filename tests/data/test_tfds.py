"""TensorFlow Datasets, written and read by the real library, without TensorFlow."""

import io
import json
import pathlib
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from sdd_jax import data
from sdd_jax.data.sources.tfds import TfdsImageFiles
from sdd_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(30) % 5
AREAS = np.repeat(np.repeat(IMAGES[:, :2, :2, 0] % 5, 4, axis=1), 4, axis=2)  # [30, 8, 8]
LAZY = {"image_size": 4, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, prepare, encoded) -> str:
    """A data_dir of prepared sets."""
    import tensorflow_datasets as tfds

    path = tmp_path_factory.mktemp("tfds")
    fixed = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
    image = tfds.features.Image(encoding_format="png")
    label = tfds.features.ClassLabel(num_classes=7)

    def example(i, **features):
        return {"image": encoded(IMAGES[i]), "label": LABELS[i]} | features

    def write(name, features, examples, **splits):
        splits = splits or {"train": slice(20), "test": slice(20, 30)}
        splits = {split: list(map(examples, range(30)[part])) for split, part in splits.items()}
        prepare(path, name, features, splits)

    both = {"image": fixed, "label": label}
    write("tiny_images", both, example)
    write("no_labels", {"image": image}, lambda i: {"image": encoded(IMAGES[i])})
    write(
        "many_sizes",
        {"image": image, "label": label},
        lambda i: example(i, image=encoded(IMAGES[i, : 4 + i % 4])),
    )
    write(
        "masked",
        {"image": image, "label": label, "mask": image},
        lambda i: example(i, mask=encoded(IMAGES[i])),
    )
    label_map = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
    write(
        "areas",
        {"image": fixed, "map": label_map},
        lambda i: {
            "image": encoded(np.repeat(AREAS[i, ..., None], 3, axis=-1)),
            "map": encoded(AREAS[i]),
        },
    )
    write(
        "secret_test",
        both,
        lambda i: example(i) if i < 12 else example(i, label=-1),
        train=slice(8),
        validation=slice(8, 12),
        test=slice(12, 20),
    )
    write("train_only", both, example, train=slice(5))
    return str(path)


@pytest.fixture
def load(data_dir, tmp_path):
    def load(name, **options):
        return data.load(name=name, data_dir=data_dir, cache_dir=str(tmp_path / "cache"), **options)

    return load


def assert_equal_splits(a, b):
    assert a.splits.keys() == b.splits.keys()
    for split in a.splits:
        np.testing.assert_array_equal(a.splits[split].images, b.splits[split].images)
        np.testing.assert_array_equal(a.splits[split].labels, b.splits[split].labels)


def test_images_and_labels_are_those_that_were_written(load):
    dataset = load("tiny_images")
    assert dataset.num_classes == 7
    for name, part in (("train", slice(20)), ("test", slice(20, 30))):
        # tfds shuffles when it writes: compare as sets of (image, label).
        split = dataset.splits[name]
        read = dict(zip(map(bytes, split.images), split.labels, strict=True))
        assert read == dict(zip(map(bytes, IMAGES[part]), LABELS[part], strict=True))


def test_the_second_load_reads_the_cache_without_tfds(load, monkeypatch):
    first = load("tiny_images")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # an import fails
    assert_equal_splits(load("tiny_images"), first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:200],
        lambda content: content.replace(b"(20, 8, 8, 3), }", b"(20, 8, 8, 3,((("),
        lambda content: content.replace(b"(20, 8, 8, 3), }", b"(1" + b"0" * 12 + b",)}"),
    ],
    ids=["cut", "header", "shape"],
)
def test_a_damaged_cache_is_replaced(load, tmp_path, caplog, monkeypatch, damage):
    first = load("tiny_images")
    (file,) = (tmp_path / "cache").glob("*/train_images.npy")
    file.write_bytes(damage(file.read_bytes()))
    assert_equal_splits(load("tiny_images"), first)
    assert "is damaged" in caplog.text
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert_equal_splits(load("tiny_images"), first)


def test_lazy_images_stay_encoded_and_labels_are_read_without_them(load, data_dir, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.features.Image, "decode_example_np", lambda *_: pytest.fail("decoded"))
    dataset = load("masked", **LAZY)
    assert dataset.image_shape == (4, 4, 3)
    assert (dataset.num_classes, len(dataset.splits["test"].images)) == (7, 10)
    file = TfdsImageFiles("masked", "label", data_dir, "train", "image")[3]
    image = np.asarray(Image.open(io.BytesIO(file)))
    (written,) = [i for i in range(20) if np.array_equal(IMAGES[i], image)]
    assert dataset.splits["train"].labels[3] == LABELS[written]


def test_labels_are_cached_beside_the_arrays(load, monkeypatch):
    import tensorflow_datasets as tfds

    records_read = []
    read = tfds.features.FeaturesDict.deserialize_example_np

    def counted(self, *args, **options):
        records_read.append(self)
        return read(self, *args, **options)

    monkeypatch.setattr(tfds.features.FeaturesDict, "deserialize_example_np", counted)
    in_memory, first = load("tiny_images"), load("tiny_images", **LAZY)
    assert len(records_read) > 60  # every record twice
    records_read.clear()
    assert_equal_splits(load("tiny_images"), in_memory)
    assert not records_read
    second = load("tiny_images", **LAZY)
    assert len(records_read) == 2  # a label of the test split, at each opening
    assert_equal_splits(second, first)


def test_image_files_open_again_in_another_process(data_dir):
    images = TfdsImageFiles("many_sizes", "label", data_dir, "test", "image")
    again = pickle.loads(pickle.dumps(images))
    assert [again[i] for i in range(10)] == [images[i] for i in range(10)]


@pytest.mark.parametrize("options", [{}, LAZY])
def test_a_test_split_without_labels_is_replaced_by_validation(load, options):
    splits = load("secret_test", **options).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "test": 4}
    assert sorted(splits["test"].labels) == sorted(LABELS[8:12])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_labels", "'no_labels' has no features 'image' and 'label'"),
        ("many_sizes", "the images of 'many_sizes' must have one size where image_size is 0"),
        ("train_only", "'train_only' must have the splits train and test .*, got train"),
        ("cifar10", "'cifar10' is not in .*tfds build cifar10 --file_format=array_record"),
    ],
)
def test_sets_that_cannot_be_used_are_refused(load, name, message):
    with pytest.raises(InputError, match=f"^name: {message}"):
        load(name)


@pytest.mark.parametrize("options", [{}, LAZY])
@pytest.mark.parametrize("content", ["", "{{", "null", "[]", "{}", '{"splits": 7}', "\0"])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_descriptions_are_refused(data_dir, tmp_path, file, content, options):
    shutil.copytree(pathlib.Path(data_dir, "tiny_images"), tmp_path / "tiny_images")
    (path,) = tmp_path.rglob(file)
    path.write_text(content)
    with pytest.raises(InputError, match="^name: the files of 'tiny_images' in .* cannot be read"):
        data.load(
            name="tiny_images", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), **options
        )


@pytest.mark.parametrize("options", [{}, LAZY])
@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_data_set_cannot_have_tfds_import_a_module(data_dir, tmp_path, monkeypatch, key, options):
    (tmp_path / "harmful_features.py").write_text(
        f"import pathlib; pathlib.Path({str(tmp_path / 'executed')!r}).touch()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(pathlib.Path(data_dir, "tiny_images"), tmp_path / "tiny_images")
    (path,) = tmp_path.rglob("features.json")
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["label"] = {key: "harmful_features.Label", "content": ""}
    path.write_text(json.dumps(features))
    folders = {"data_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(InputError, match="features.json must name features of tfds, got 'harmful_"):
        data.load(name="tiny_images", **folders, **options)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["huggingface:x", "kaggle:x/y", "someone:x:1.0.0"])
def test_namespaces_whose_code_tfds_would_fetch_are_refused(load, name):
    with pytest.raises(InputError, match=f"name: must be without a namespace, got '{name}'"):
        load(name)


def test_tensorflow_is_never_imported(load):
    load("tiny_images")
    assert "tensorflow" not in sys.modules


def test_a_feature_of_another_name_is_the_label(load):
    with pytest.raises(InputError, match="has no features 'image' and 'kind'"):
        load("many_sizes:label=kind", **LAZY)
    with pytest.raises(InputError, match="must be NAME, and then possibly :label=FEATURE"):
        load("many_sizes:image=kind", **LAZY)


@pytest.mark.parametrize("options", [{}, LAZY | {"num_classes": 5}])
def test_an_image_can_be_the_label(load, options):
    """In the set ``areas`` the map is the first channel of the image."""
    dataset = load("areas:label=map", **options)
    assert (dataset.task.name, dataset.num_classes) == ("segmentation", 5)
    train, test = dataset.splits["train"], dataset.splits["test"]
    maps = np.stack([train.labels[i] for i in range(20)])  # in the order of the files
    np.testing.assert_array_equal(sorted(maps.tolist()), sorted(AREAS[:20].tolist()))
    if options:
        assert test.labels.shape == (10, 4, 4)
        assert np.mean(np.asarray(test.images)[..., 0] == test.labels) > 0.4  # nearest and bilinear
    else:
        np.testing.assert_array_equal(maps, train.images[..., 0])
    again = load("areas:label=map", **options)
    assert again.fingerprint() == dataset.fingerprint()
