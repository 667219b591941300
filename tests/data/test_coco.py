"""A folder in COCO's layout, from its files to batches and to the units of AP."""

import json
import logging

import numpy as np
import pytest

from sdd_jax import data
from sdd_jax.data.engines import engines
from sdd_jax.errors import InputError

SIZE = 32
SIZES = [(24, 40), (40, 24), (60, 60), (20, 80)]  # of the images that write_coco writes
MOMENTS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def load(folder, **options):
    return data.load(**{"name": f"coco:{folder}", "image_size": SIZE, **MOMENTS, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_coco):
    return write_coco(tmp_path_factory.mktemp("coco") / "coco")


def test_a_folder_becomes_a_data_set(folder):
    dataset = load(folder)
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert (dataset.task.name, dataset.num_classes, len(train), len(test)) == (
        "detection",
        2,
        12,
        4,
    )
    content = json.loads((folder / "annotations/instances_train2017.json").read_text())
    found = train.labels[train.labels[..., 0] >= 0]
    assert len(found) == len(content["annotations"])
    by_image = sorted(content["annotations"], key=lambda a: a["image_id"])
    for row, annotation in zip(found, by_image, strict=True):
        np.testing.assert_allclose(row[1:5], annotation["bbox"])
        # In the order of the ids; the area is the annotation's, not the box's.
        assert (row[0], row[5]) == ({3: 0, 7: 1}[annotation["category_id"]], annotation["area"])


def bright(view):
    """The smallest box around the bright pixels of a view."""
    rows, columns = np.nonzero(view[..., 0] > 127)
    return [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_evaluation_views_show_whole_images_with_their_boxes(folder):
    test = load(folder).splits["test"]
    views = np.asarray(test.images)
    for n, (height, width) in enumerate(SIZES):
        scale = max(height, width) / SIZE
        np.testing.assert_allclose(test.labels[n, :, 7], scale)
        assert not views[n, int(height / scale) + 1 :].any()  # the border
        there = test.labels[n, test.labels[n, :, 0] >= 0]
        assert len(there) == n % 3
        if n % 3 == 1:
            np.testing.assert_allclose(there[0, 1:5], bright(views[n]), atol=1.5)


@pytest.mark.parametrize("processes", [False, True])
def test_batches_have_the_boxes_of_their_crops(folder, processes):
    train = load(folder).splits["train"]
    engine = engines.build(
        {"name": "streamed", "workers": 2, "processes": processes},
        split=train, batch_size=4, sampler="uniform", seed=0,
    )  # fmt: skip
    assert engine.resident == {}
    shown = 0
    try:
        for step in range(12):
            inputs = engine.inputs(step, step + 1)
            views, labels, index = (
                np.concatenate(np.asarray(x)[:, 0])
                for x in (inputs["views"][0], inputs["labels"], inputs["index"][..., 0])
            )
            for view, boxes, image in zip(views, labels, index, strict=True):
                there = boxes[boxes[:, 0] >= 0]
                assert len(there) <= (train.labels[image, :, 0] >= 0).sum()
                if len(there) == 1 and image % 3 == 1:
                    np.testing.assert_allclose(there[0, 1:5], bright(view), atol=1.5)
                    shown += 1
    finally:
        engine.close()
    assert shown > 5


def test_held_out_images_are_evaluated_and_the_rest_trained(folder):
    dataset = load(folder, validation=0.25)
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert (len(train), len(validation)) == (9, 3)
    assert train.move is not None
    assert validation.move is None
    assert (train.labels[..., 7] == 1).all()
    assert (validation.labels[..., 7] != 1).any()


def test_a_damaged_image_is_replaced_by_another(tmp_path, caplog, write_coco):
    folder = write_coco(tmp_path / "coco", (4, 2))
    (folder / "train2017" / f"{1:012}.png").write_bytes(b"no image")
    engine = engines.build(
        {"name": "streamed", "on_error": "skip"},
        split=load(folder).splits["train"], batch_size=4, sampler="uniform", seed=0,
    )  # fmt: skip
    try:
        index = np.asarray(engine.inputs(0, 1)["index"]).ravel()
    finally:
        engine.close()
    assert sorted(index.tolist()) == [0, 2, 2, 3]
    assert "skipped" in caplog.text


def test_other_folders_are_named(tmp_path, write_coco):
    folder = write_coco(tmp_path / "coco")
    for split in ("train", "val"):
        (folder / f"{split}2017").rename(folder / f"my_{split}")
        file = folder / "annotations" / f"instances_{split}2017.json"
        file.rename(folder / "annotations" / f"instances_my_{split}.json")
    dataset = load("coco:train=my_train:val=my_val", data_dir=str(tmp_path))
    assert np.asarray(dataset.splits["test"].images).shape == (4, SIZE, SIZE, 3)


def test_a_box_without_extent_is_left_out_with_a_warning(tmp_path, caplog, write_coco):
    def edit(content):
        for annotation in content["annotations"][:1]:
            annotation["bbox"][2] = 0
        return content

    with caplog.at_level(logging.WARNING):
        dataset = load(write_coco(tmp_path / "coco", edit=edit))
    assert (dataset.splits["train"].labels[..., 0] >= 0).sum() == 11
    assert "1 boxes without an extent" in caplog.text


def _damage(key, value):
    def edit(content):
        content["annotations"][0][key] = value
        return content

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: [], "is no file of COCO's annotations: TypeError"),
        (
            lambda content: {"images": []},
            "is no file of COCO's annotations: KeyError: 'categories'",
        ),
        (_damage("image_id", 9), "ValueError: annotation 0 of an unknown image or category"),
        (_damage("bbox", [1, 2]), "a box cannot be read: ValueError"),
        (
            lambda content: (
                content | {"images": [content["images"][0] | {"file_name": "../x.png"}]}
            ),
            "ValueError: the file name '../x.png'",
        ),
    ],
    ids=range(5),
)
def test_other_files_are_refused_in_one_line(tmp_path, edit, message, write_coco):
    folder = write_coco(tmp_path / "coco", edit=edit)
    with pytest.raises(InputError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("name: ")


def test_what_is_missing_is_named(folder, tmp_path, write_coco):
    with pytest.raises(
        InputError, match=r"there is no file '.*instances_train2017.json' \(after coco:\)"
    ):
        load(tmp_path)
    with pytest.raises(InputError, match="image_size: must be greater than 0 for coco"):
        load(folder, image_size=0, mean=(), std=())
    with pytest.raises(InputError, match="must be coco:PATH, and then any of :train=NAME"):
        load(f"{folder}:year=2014")
    dataset = load(write_coco(tmp_path / "other"))
    (tmp_path / "other" / "val2017" / f"{0:012}.png").unlink()
    with pytest.raises(InputError, match="image 0 cannot be decoded: FileNotFoundError"):
        np.asarray(dataset.splits["test"].images)
