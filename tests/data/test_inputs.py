"""Features, tokens and maps of labels in an npz file; augmentation of maps with their images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import data
from sdd_jax.data.images import augment, augment_pairs
from sdd_jax.errors import InputError
from sdd_jax.tasks import tasks

RNG = np.random.default_rng(0)
LABELS = np.arange(20) % 4
FEATURES = RNG.normal(3, 2, (20, 5))
TOKENS = RNG.integers(0, 50, (20, 7))
IMAGES = RNG.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
MAPS = RNG.integers(0, 3, (20, 6, 6))
SETS = (LABELS[:, None] == range(4)).astype(int) | RNG.integers(0, 2, (20, 4))


@pytest.fixture
def load(tmp_path):
    """Loads an npz file of training inputs and labels, and the same for the test."""

    def load(inputs, labels, test_inputs=None, test_labels=None, **options):
        arrays = {
            "train_images": inputs,
            "train_labels": labels,
            "test_images": inputs[:8] if test_inputs is None else test_inputs,
            "test_labels": labels[:8] if test_labels is None else test_labels,
        }
        np.savez(tmp_path / "data.npz", **arrays)
        return data.load(name=f"npz:{tmp_path / 'data.npz'}", **options)

    return load


@pytest.mark.parametrize(
    ("inputs", "labels", "kind", "task", "classes"),
    [
        (IMAGES, LABELS, "images", "classification", 4),
        (FEATURES, LABELS, "features", "classification", 4),
        (TOKENS, LABELS, "tokens", "classification", 4),
        (IMAGES, SETS, "images", "multi_label", 4),
        (FEATURES.astype(np.float16), SETS, "features", "multi_label", 4),
        (TOKENS, SETS, "tokens", "multi_label", 4),
        (IMAGES, np.where(MAPS == 1, 255, MAPS), "images", "segmentation", 3),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_arrays_show_what_they_are(load, inputs, labels, kind, task, classes):
    dataset = load(inputs, labels, validation=0.2)
    assert (dataset.inputs.name, dataset.task.name, dataset.num_classes) == (kind, task, classes)
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 16, "test": 8, "validation": 4,
    }  # fmt: skip
    np.testing.assert_array_equal(dataset.splits["test"].labels, labels[:8])
    np.testing.assert_array_equal(
        dataset.splits["test"].images, inputs[:8].astype(dataset.splits["test"].images.dtype)
    )


def test_features_are_normalised_by_the_moments_of_the_training_features(load):
    constant = np.concatenate([FEATURES, np.full((20, 1), 7.0)], axis=1)
    dataset = load(constant, LABELS)
    normalised = dataset.inputs.normalise(
        jnp.asarray(dataset.splits["train"].images), dataset.mean, dataset.std
    )
    expected = (FEATURES - FEATURES.mean(0)) / FEATURES.std(0)
    np.testing.assert_allclose(normalised[:, :5], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normalised[:, 5], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "labels", "options", "message"),
    [
        (np.where(FEATURES > 5, np.nan, FEATURES), LABELS, {},
         "train features must be finite numbers, got nan or infinity"),
        (TOKENS - 1, LABELS, {}, r"train tokens must be in \[0, 2147483647\], got -1"),
        (np.uint8(TOKENS), LABELS, {}, r"train images must be .*int64: tokens.*got uint8 \[20, 7\]"),
        (IMAGES, SETS + 1, {}, "train labels must be 0 or 1, got 2"),
        (IMAGES, SETS, {"num_classes": 3}, "columns of train labels must be 3.*, got 4"),
        (IMAGES, MAPS, {"num_classes": 2}, r"train labels must be in \[0, 2\).*or 255.*, got 2"),
        (IMAGES, MAPS[:, :, :4], {}, r"task: no task .* has labels int64 \[20, 6, 4\]"),
        (IMAGES, LABELS, {"task": "segmentation"}, "task: 'segmentation' does not fit labels"),
        (IMAGES, LABELS, {"task": "poetry"}, "^task: must be one of classification"),
        (IMAGES, SETS, {"label_noise": 0.1}, "label_noise: must be 0.0 for multi_label, got 0.1"),
        (IMAGES, MAPS, {"examples_per_class": 1}, "examples_per_class: must be 0 for segmentation"),
        (IMAGES, MAPS * 1.0, {}, r"task: no task .* has labels float64 \[20, 6, 6\]"),
        (IMAGES, SETS * 1.0, {}, "train labels must be integers"),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(load, inputs, labels, options, message):
    with pytest.raises(InputError, match=message) as caught:
        load(inputs, labels, **options)
    assert "\n" not in str(caught.value)


def test_test_inputs_are_of_the_kind_and_the_task_of_the_training_inputs(load):
    with pytest.raises(InputError, match="test features must be as in train, got int64"):
        load(FEATURES, LABELS, test_inputs=TOKENS[:8])
    with pytest.raises(
        InputError, match=r"test labels must be integers \[N, K\], got int64 \(8,\)"
    ):
        load(IMAGES, SETS, test_labels=LABELS[:8])
    with pytest.raises(InputError, match="features must have one size"):
        load(FEATURES, LABELS, test_inputs=FEATURES[:8, :4])


def test_maps_move_with_their_images():
    """Each pixel's label is its intensity, so they agree wherever the image has not ended."""
    keys = jax.random.split(jax.random.key(0), 20)
    images, maps = IMAGES[..., :1] // 2 + 1, IMAGES[..., 0] // 2 + 1  # in [1, 128]
    options = {"pad": 2, "flip": True}
    move = tasks.get("segmentation")().moved
    moved, moved_maps = augment_pairs(keys, images, maps, move=move, **options)
    np.testing.assert_array_equal(moved, augment(keys, images, **options))
    beyond = np.asarray(moved)[..., 0] == 0
    assert 0 < beyond.mean() < 0.5
    np.testing.assert_array_equal(moved_maps, np.where(beyond, 255, np.asarray(moved)[..., 0]))
    _, unperturbed = augment_pairs(keys, images, maps, drop_pixels=0.5)
    np.testing.assert_array_equal(unperturbed, maps)


def test_scenes_are_the_same_everywhere():
    maps, sets = data.load(name="scenes"), data.load(name="scenes:labels")
    train = maps.splits["train"]
    assert (len(train), maps.image_shape, maps.num_classes) == (2000, (64, 64, 3), 11)
    checksums = {name: train.fingerprint()[name] for name in ("labels", "images")}
    assert checksums == {"labels": 1015070603, "images": 1798579895}
    digits = (train.labels[:, None] == np.arange(1, 11).reshape(-1, 1, 1)).any((2, 3))
    np.testing.assert_array_equal(sets.splits["train"].labels, digits)
    np.testing.assert_array_equal(sets.splits["train"].images, train.images)
