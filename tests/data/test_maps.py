"""Maps of the labels of pixels, of images of any size, from files to batches."""

import io

import numpy as np
import pytest
from PIL import Image

from sdd_jax import data
from sdd_jax.data.engines import engines
from sdd_jax.errors import InputError

SIZE = 32
SIZES = [(24, 40), (40, 24), (60, 60), (20, 80)]  # height and width
LAZY = {"image_size": SIZE, "mean": (0.5,) * 3, "std": (0.25,) * 3}
K = 4


def scene(n, size=None):
    """A photograph of grey areas, and the map that tells them apart."""
    rng = np.random.default_rng(n)
    height, width = size or SIZES[n % len(SIZES)]
    label_map = np.zeros((height, width), np.uint8)
    for label in range(1, K):
        top, left = int(rng.integers(height // 2)), int(rng.integers(width // 2))
        label_map[top : top + height // 2, left : left + width // 2] = label
    return np.repeat(label_map[..., None] * 80 + 15, 3, axis=-1).astype(np.uint8), label_map


def png(array, palette=False):
    image = Image.fromarray(array)
    if palette:
        image.putpalette([channel for i in range(256) for channel in (255 - i, i, 0)])
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes a data set of Hugging Face with a column of maps; returns its name."""
    import datasets

    def write(scenes, palette=False):
        features = datasets.Features({"image": datasets.Image(), "areas": datasets.Image()})
        rows = {
            "image": [{"bytes": png(image)} for image, _ in scenes],
            "areas": [{"bytes": png(label_map, palette)} for _, label_map in scenes],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        folder = tmp_path_factory.mktemp("maps") / "saved"
        datasets.DatasetDict(train=table, test=table).save_to_disk(folder)
        return f"hf:{folder}:label=areas"

    return write


@pytest.fixture(scope="module")
def name(write):
    return write([scene(n) for n in range(12)], palette=True)


def areas(view):
    """The label of each pixel of a view by its intensity; those between two areas have none."""
    distance = np.abs(view[..., :1].astype(int) - (np.arange(K) * 80 + 15))
    return np.where(distance.min(axis=-1) <= 2, distance.argmin(axis=-1), -1)


def assert_belong_together(view, label_map):
    """Where the view is of one area, the map has its label; beyond the image, both have none."""
    assert label_map.shape == view.shape[:2]
    assert label_map.dtype == np.uint8
    beyond = label_map == 255
    assert np.sum(view[beyond] >= 16) <= 0.1 * view[beyond].size  # but for resizing at the border
    shown = areas(view)
    certain = (shown >= 0) & ~beyond
    assert certain.sum() > 0.2 * (~beyond).sum()
    assert np.mean(shown[certain] == label_map[certain]) > 0.9


def test_images_of_one_size_are_kept_in_memory(write):
    scenes = [scene(n, size=(16, 16)) for n in range(6)]
    dataset = data.load(name=write(scenes, palette=True))
    assert (dataset.task.name, dataset.num_classes) == ("segmentation", K)
    for image, label_map, (pixels, labels) in zip(
        dataset.splits["train"].images, dataset.splits["train"].labels, scenes, strict=True
    ):
        np.testing.assert_array_equal(image, pixels)
        np.testing.assert_array_equal(label_map, labels)


def test_evaluation_views_show_whole_images(name):
    test = data.load(name=name, num_classes=K, **LAZY).splits["test"]
    assert test.labels.shape == (12, SIZE, SIZE)
    for n, view in enumerate(np.asarray(test.images)):
        assert_belong_together(view, test.labels[n])
        height, width = SIZES[n % len(SIZES)]
        shown = height * width / max(height, width) ** 2
        np.testing.assert_allclose(np.mean(test.labels[n] != 255), shown, atol=0.02)


@pytest.mark.parametrize("processes", [False, True])
def test_batches_have_the_maps_of_their_crops(name, processes):
    train = data.load(name=name, num_classes=K, **LAZY).splits["train"]
    engine = engines.build(
        {"name": "streamed", "workers": 2, "processes": processes},
        split=train, batch_size=4, sampler="uniform", seed=0,
    )  # fmt: skip
    try:
        for step in range(6):
            inputs = engine.inputs(step, step + 1)
            views, maps = (
                np.concatenate(np.asarray(x)[:, 0]) for x in (inputs["views"][0], inputs["labels"])
            )
            for view, label_map in zip(views, maps, strict=True):
                assert_belong_together(view, label_map)
    finally:
        engine.close()


def test_held_out_maps_are_of_evaluation_views_and_the_rest_stay_files(name):
    dataset = data.load(name=name, num_classes=K, validation=0.25, **LAZY)
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert (len(train), validation.labels.shape) == (9, (3, SIZE, SIZE))
    assert not isinstance(train.labels, np.ndarray)
    again = data.load(name=name, num_classes=K, validation=0.25, **LAZY)
    assert again.fingerprint() == dataset.fingerprint()


def test_the_fingerprint_changes_with_the_maps(write):
    scenes = [scene(n) for n in range(4)]
    first = data.load(name=write(scenes), num_classes=K, **LAZY).fingerprint()
    scenes[3][1][0, 0] ^= 1
    second = data.load(name=write(scenes), num_classes=K, **LAZY).fingerprint()
    assert first["train"]["labels"] != second["train"]["labels"]
    assert first["train"]["images"] == second["train"]["images"]


def test_what_cannot_be_used_is_one_line(write, name):
    with pytest.raises(
        InputError, match="num_classes: must be given, for maps .* on demand, got 0"
    ):
        data.load(name=name, **LAZY)
    with pytest.raises(
        InputError, match=r"^test labels: map 0 must be in \[0, 2\).*or 255.*, got 3"
    ):
        data.load(name=name, num_classes=2, **LAZY)
    image, label_map = scene(0)
    with pytest.raises(InputError, match="image 0: its map has 20x40 pixels, and the image 24x40"):
        data.load(name=write([(image, label_map[4:])]), num_classes=K, **LAZY)
    with pytest.raises(
        InputError, match=r"map 0 must be integers \[H, W\], got uint8 \(24, 40, 3\)"
    ):
        data.load(name=write([(image, image)]), num_classes=K, **LAZY)
