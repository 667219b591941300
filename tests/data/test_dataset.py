"""Loading: validated arrays, splits, normalisation constants."""

import json
import zlib

import numpy as np
import pytest

from sdd_jax import data
from sdd_jax.data import Split
from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.errors import InputError
from sdd_jax.options import validate

LAZY = {"image_size": 14, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


def as_bytes(images):
    return sorted(map(bytes, images))


def black(*shape):
    return np.zeros(shape, np.uint8)


def test_the_validation_split_is_stratified_and_disjoint():
    whole = data.load(name="digits")
    cut = data.load(name="digits", validation=0.2)
    assert (len(whole.splits), len(cut.splits)) == (2, 3)
    train, validation = cut.splits["train"], cut.splits["validation"]
    counts = np.bincount(whole.splits["train"].labels)
    np.testing.assert_array_equal(np.bincount(validation.labels), np.round(0.2 * counts))
    both = np.concatenate([train.images, validation.images])
    assert as_bytes(both) == as_bytes(whole.splits["train"].images)
    np.testing.assert_array_equal(cut.splits["test"].images, whole.splits["test"].images)


def test_a_few_examples_per_class_are_the_same_with_and_without_validation():
    few = data.load(examples_per_class=7)
    cut = data.load(examples_per_class=7, validation=0.2)
    train = few.splits["train"]
    np.testing.assert_array_equal(np.bincount(train.labels), [7] * 10)
    np.testing.assert_array_equal(cut.splits["train"].images, train.images)
    whole = data.load(validation=0.2).splits
    for split in ("validation", "test"):
        np.testing.assert_array_equal(cut.splits[split].images, whole[split].images)
    assert set(as_bytes(train.images)) <= set(as_bytes(whole["train"].images))


def test_classes_without_a_training_image_are_warned_about(tmp_path, caplog):
    labels = np.arange(1, 9)  # eight classes for someone who counts from 1
    arrays = {f"{split}_images": black(8, 2, 2) for split in ("train", "test")}
    arrays |= {f"{split}_labels": labels for split in ("train", "test")}
    np.savez(tmp_path / "from_one.npz", **arrays)
    name = f"npz:{tmp_path / 'from_one.npz'}"
    assert data.load(name=name).num_classes == 9
    (warning,) = caplog.messages
    assert "1 of 9 classes (0) have no training image; labels count from 0" in warning
    caplog.clear()
    data.load(name=name, num_classes=20)
    assert "12 of 20 classes (0, 9, 10, 11, 12, ...)" in caplog.text
    caplog.clear()
    data.load(name="digits")
    assert not caplog.messages


def test_lazy_images_are_split_without_decoding(monkeypatch):
    monkeypatch.setattr(LazyImages, "__array__", lambda *_: pytest.fail("decoded"))
    splits = data.load(validation=0.2, **LAZY).splits
    in_memory = data.load(validation=0.2).splits
    assert splits["train"].images.shape == (len(in_memory["train"]), 14, 14, 3)
    np.testing.assert_array_equal(splits["validation"].labels, in_memory["validation"].labels)
    monkeypatch.undo()
    expected = LazyImages(in_memory["validation"].images[:5], 14, "")
    np.testing.assert_array_equal(splits["validation"].images[:5], expected)


def test_normalisation_constants_are_those_of_the_training_images_or_of_the_options(npz):
    dataset = data.load(name=npz())
    pixels = dataset.splits["train"].images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-5)
    chosen = data.load(name=npz(), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    np.testing.assert_allclose((chosen.mean, chosen.std), [[0.1, 0.2, 0.3], [1, 2, 3]])
    half = data.load(name=npz(), std=(1.0, 2.0, 3.0))
    np.testing.assert_array_equal((half.mean, half.std), (dataset.mean, chosen.std))


def test_another_set_is_loaded_whole_in_the_same_image_size(npz):
    options = {"name": "digits", "validation": 0.2, "num_classes": 12, "examples_per_class": 3}
    for changes, shape in (({"mean": (0.5,), "std": (0.2,)}, (32, 32, 3)), (LAZY, (14, 14, 3))):
        other = data.load_other("photos", options | changes)
        assert (other.image_shape, other.num_classes, other.name) == (shape, 2, "photos")
        assert [len(split) for split in other.splits.values()] == [260, 260]
    with pytest.raises(InputError, match=r"^there is no file '/nowhere.npz'"):
        data.load_other("npz:/nowhere.npz", options)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_images": black(20, 6)}, r"train images must be \[N, H, W, C\]"),
        ({"test_images": np.zeros((7, 6, 5, 3), "f4")}, "test images must be uint8, got float32"),
        ({"test_images": black(7, 8, 5, 3)}, r"must have one size, got \(6, 5, 3\)"),
        ({"train_images": black(20, 6, 5, 2)}, "must be of 1 or 3 channels"),
        ({"train_labels": np.arange(20) / 2}, r"train labels must be integers \[N\], got float64"),
        ({"train_labels": np.arange(19) % 4}, "train labels must be 20, as the images, got 19"),
        ({"test_labels": np.arange(7)}, r"test labels must be in \[0, 4\), got 6"),
        ({"train_labels": np.arange(20) % 4 - 1}, r"train labels must be in \[0, 3\), got -1"),
        ({"test_images": black(0, 6, 5, 3)}, "test images must be at least one"),
    ],
)
def test_unusable_arrays_are_refused(npz, arrays, message):
    with pytest.raises(InputError, match=message):
        data.load(name=npz(**arrays))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1e-6}, "^validation: must be a fraction that leaves images in train and"),
        (
            {"examples_per_class": 142},
            "^examples_per_class: must be at most 141, the images of class",
        ),
        ({"num_classes": 3}, r"train labels must be in \[0, 3\), by num_classes, got 9"),
        ({"mean": (0.1, 0.2)}, "^mean: must be empty or 1 numbers, one for each channel"),
        ({"std": (0.0,)}, "^std: must be greater than 0"),
        (LAZY | {"std": (0.2, 0.2, 1e-50)}, "^std: must be greater than 0"),
        (LAZY | {"mean": ()}, "^mean: must be 3 numbers where image_size is set"),
        (LAZY | {"std": (0.2,)}, "^std: must be 3 numbers where image_size is set"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        data.load(**options)


@pytest.mark.parametrize(
    ("option", "values", "allowed"),
    [
        ("validation", (-0.1, 1.0), r"in \[0, 1\)"),
        ("examples_per_class", (-1,), "0 or more"),
        ("num_classes", (-1, 2**32 - 1), r"in \[0, 10000000\]"),
        ("image_size", (-1, 4097), r"in \[0, 4096\]"),
        ("mean", ("0.5", (True,)), "a list of finite numbers"),
    ],
)
def test_the_signature_states_the_ranges_of_a_config(option, values, allowed):
    for value in values:
        with pytest.raises(InputError, match=f"^{option}: must be {allowed}"):
            validate(data.load, {option: value})


def fingerprint(name, **options):
    return data.load(name=name, **options).fingerprint()


def test_the_fingerprint_is_of_the_sizes_labels_and_pixels_of_each_split(npz):
    images, labels = black(20, 6, 5, 3), np.arange(20) % 4
    brighter = images.copy()
    brighter[19, 5, 4, 2] = 1
    first = fingerprint(npz(train_images=images))
    assert first == json.loads(json.dumps(first))
    assert [*first] == ["classes", "train", "test"]
    assert first["classes"] == 4
    assert first["train"] == {
        "examples": 20,
        "shape": [6, 5, 3],
        "labels": zlib.crc32(labels.astype("<i4").tobytes()),
        "images": zlib.crc32(bytes(1800)),
    }
    assert fingerprint(npz(train_images=images)) == first
    assert fingerprint(npz(train_images=images, train_labels=labels.astype(">u8"))) == first
    for other in ({"train_labels": labels[::-1]}, {"train_images": brighter}):
        changed = fingerprint(npz(**{"train_images": images} | other))
        assert changed["train"] != first["train"]
        assert changed["test"] == first["test"]
    assert [*fingerprint("digits", validation=0.1)] == ["classes", "train", "test", "validation"]


def test_the_fingerprint_of_many_images_is_of_evenly_spaced_ones(monkeypatch):
    monkeypatch.setattr("sdd_jax.data.split.CHECKSUM_BYTES", 400)
    images = np.random.default_rng(0).integers(0, 256, (50, 5, 4, 1), dtype=np.uint8)
    split = Split(images, np.zeros(50, np.int32))  # 1000 bytes
    assert split.fingerprint()["images"] == zlib.crc32(images[::3].tobytes())
    assert split.take(np.arange(20)).fingerprint()["images"] == zlib.crc32(images[:20].tobytes())


def test_the_fingerprint_does_not_depend_on_decoding(npz):
    name = npz()
    small, large = (fingerprint(name, **LAZY | {"image_size": size}) for size in (4, 8))
    assert small["train"]["shape"] == [4, 4, 3]
    assert small["train"]["images"] == large["train"]["images"]


@pytest.mark.parametrize("label", [2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("num_classes", [0, 5])
def test_labels_beyond_any_number_of_classes_are_refused(npz, label, num_classes):
    labels = (np.arange(20) % 4).astype(np.uint64 if label >= 2**63 else np.int64)
    labels[3] = label
    limit = "5\\), by num_classes" if num_classes else "10000000\\)"
    for array in ("train_labels", "test_labels"):
        values = labels if array == "train_labels" else labels[:7]
        allowed = limit if array == "train_labels" or num_classes else "4\\)"
        message = rf"^{array.replace('_', ' ')} must be in \[0, {allowed}, got {label}$"
        with pytest.raises(InputError, match=message):
            data.load(name=npz(**{array: values}), num_classes=num_classes)
