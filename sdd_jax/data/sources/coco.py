"""COCO's folders of photographs and their annotations."""

import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdd_jax.data.sources import sources, with_options
from sdd_jax.errors import InputError, require
from sdd_jax.paths import Path, given_path, is_file

ANNOTATIONS = "annotations/instances_{split}.json"
OPTIONS = ("train", "val")
LARGE = 10**8  # bytes; COCO's training annotations have four times as many and take half a minute

_logger = logging.getLogger(__name__)


@sources.register("coco")
def coco(*, argument: str, data_dir: str, encoded: bool) -> tuple[dict[str, Any], int]:
    """Reads a folder in COCO's layout; the validation images are the test set.

    The argument is the folder, relative to ``data_dir``. It holds ``train2017/``, ``val2017/``,
    ``annotations/instances_train2017.json`` and ``annotations/instances_val2017.json``. Other names can
    take the place of ``train2017`` and ``val2017``: ``coco:PATH:train=NAME:val=NAME``. Classes are the
    categories in the order of their ids. Boxes without an extent are left out.

    Raises:
      InputError: a file is missing or is not one of COCO's, or the images are to be kept in memory.
    """
    path, options = with_options(argument)
    allowed = "coco:PATH, and then any of :train=NAME, :val=NAME"
    require(options.keys() <= set(OPTIONS), "name", f"coco:{argument}", allowed)
    require(encoded, "image_size", 0, "greater than 0 for coco, whose images have any size")
    folder = given_path(path, field="name", below=given_path(data_dir, field="data_dir"))
    names = {"train": options.get("train", "train2017"), "test": options.get("val", "val2017")}
    files = {split: folder / ANNOTATIONS.format(split=name) for split, name in names.items()}
    contents = {split: _content(file) for split, file in files.items()}
    arrays: dict[str, Any] = {}
    ids = sorted(contents["train"]["categories"])
    for split, content in contents.items():
        if sorted(content["categories"]) != ids:
            raise InputError(f"{files[split]} has other categories than train", field="name")
        images = content["images"]
        arrays[f"{split}_images"] = CocoImageFiles(
            folder / names[split],
            [image["file_name"] for image in images.values()],
            np.array([[image["height"], image["width"]] for image in images.values()]),
        )
        arrays[f"{split}_labels"] = _labels(files[split], content, ids)
    return arrays, len(ids)


class CocoImageFiles:
    """The image files of a split, a sequence of bytes.

    Args:
      folder: folder of the files.
      names: their names.
      sizes: ``[N, 2]``, height and width of each image in pixels.
    """

    def __init__(self, folder: Path, names: list[str], sizes: np.ndarray):
        self._folder, self._names, self.sizes = folder, names, sizes

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> bytes:
        path = self._folder / self._names[index]
        if not is_file(path):  # a device could be endless
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        return path.read_bytes()


def _content(file: Path) -> dict[str, Any]:
    """Images and categories by id, and the annotations."""
    if not is_file(file):
        raise InputError(f"there is no file {str(file)!r} (after coco:)", field="name")
    text = file.read_bytes()
    if len(text) > LARGE:
        _logger.warning("reading %s, of %d MB", file, len(text) // 10**6)
    try:
        content = json.loads(text)
        images = {int(image["id"]): image for image in content["images"]}
        for image in images.values():
            name = pathlib.PurePosixPath(image["file_name"])
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(f"the file name {str(name)!r}")
            if not (image["height"] > 0 and image["width"] > 0):
                raise ValueError(f"the size of image {image['id']}")
        categories = {int(category["id"]) for category in content["categories"]}
        if not categories:
            raise ValueError("no categories")
        for annotation in content["annotations"]:
            if annotation["image_id"] not in images or annotation["category_id"] not in categories:
                raise ValueError(f"annotation {annotation['id']} of an unknown image or category")
        return {
            "images": images,
            "categories": categories,
            "annotations": content["annotations"],
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise InputError(
            f"{str(file)!r} is no file of COCO's annotations: {type(error).__name__}: {reason}",
            field="name",
        ) from error


def _labels(file: Path, content: Mapping[str, Any], ids: list[int]) -> np.ndarray:
    """The boxes, float32 ``[N, M, 7]``."""
    row = {image: n for n, image in enumerate(content["images"])}
    column = {category: c for c, category in enumerate(ids)}
    by_image: list[list[list[float]]] = [[] for _ in row]
    empty = 0
    try:
        for a in content["annotations"]:
            left, top, width, height = map(float, a["bbox"])
            if min(width, height) <= 0:
                empty += 1
                continue
            area = float(a.get("area", width * height))
            box = [column[a["category_id"]], left, top, width, height, area, a.get("iscrowd", 0)]
            by_image[row[a["image_id"]]].append(box)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(file)!r}: a box cannot be read: {type(error).__name__}: {error}", field="name"
        ) from error
    if empty:
        _logger.warning("%s: %d boxes without an extent are left out", file, empty)
    labels = np.zeros((len(row), max(1, *map(len, by_image)), 7), np.float32)
    labels[..., 0] = -1
    for boxes, found in zip(labels, by_image, strict=True):
        boxes[: len(found)] = found or boxes[:0]
    return labels
