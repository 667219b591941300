"""Data sets of the Hugging Face Hub and local folders, read with the package ``datasets``.

It maps its files into memory, so that images of any size stay encoded on the disk.
"""

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from sdd_jax.data.lazy_images import THREADS
from sdd_jax.data.sources import labelled_splits, sources, with_options
from sdd_jax.errors import InputError, require
from sdd_jax.extras import pip_command
from sdd_jax.paths import local_path

OPTIONS = ("config", "image", "label")
HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"
TYPES = {"image": "a feature Image", "label": "a feature ClassLabel, integers or another Image"}
SPLITS = "must have the splits train and test (or validation) with labels"
INTENSITIES = {"1": "L", "P": "RGB"}  # Pillow's arrays of these modes hold bits and palette indices


@sources.register("hf")
def hf(
    *, argument: str, data_dir: str, cache_dir: str, encoded: bool
) -> tuple[dict[str, Any], int]:
    """Reads the splits "train" and "test"; "validation" in place of a test split without labels.

    The argument is a folder, relative to ``data_dir``, or else a name on the Hub; then any of
    ``:config=NAME``, ``:image=COLUMN`` and ``:label=COLUMN``. The columns default to the only ``Image``
    and the only ``ClassLabel``. If it is named, the label may also be a column of integers, or another
    ``Image``: a map of the labels of pixels, of one channel or with a palette. The largest training
    label then gives the number of classes.

    Raises:
      InputError: the package is not installed; the data set is unknown, cannot be read, or is not one of
        labelled images.
    """
    name, options = _parsed(argument)
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InputError(f"hf: needs {pip_command('hf')}; {error}", field="name") from error

    with _readable(name), _quiet():
        splits = _open(name, options, data_dir, cache_dir)
        features = _features(name, splits)
        images = [c for c, feature in features.items() if isinstance(feature, datasets.Image)]
        classes = [c for c, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        scalars = [
            c for c, f in features.items() if isinstance(f, (datasets.ClassLabel, datasets.Value))
        ]
        integers = [c for c in scalars if re.match("u?int", features[c].dtype)]
        others = [column for column in images if column != options.get("label")]
        image = _chosen(name, "image", options, others, others, features)
        maps = [column for column in images if column != image]
        label = _chosen(name, "label", options, classes, integers + maps, features)
        mode, arrays = features[image].mode, {}
        for split, source in _labelled(name, splits, label, is_map=label in maps).items():
            shown, files = f"{name!r}, {source}", HfImageFiles(splits[source], image)
            arrays[f"{split}_images"] = (
                files if encoded else _decoded(shown, files, lambda x: x.convert(_mode(x, mode)))
            )
            if label in maps:
                files = HfImageFiles(splits[source], label)
                labels = files if encoded else _decoded(f"{shown}, {label}", files, lambda x: x)
            else:
                labels = _values(splits[source], label)
            arrays[f"{split}_labels"] = labels
    if label in classes:
        return arrays, features[label].num_classes
    if label in maps:
        return arrays, 0
    labels = arrays["train_labels"]
    return arrays, max(1, int(labels.max(initial=0)) + 1) if labels.dtype.kind in "iu" else 0


class HfImageFiles:
    """The encoded images of a split, a sequence of bytes. Unpickling opens the split again.

    Args:
      split: a ``datasets.Dataset``.
      column: name of its images.
    """

    def __init__(self, split: Any, column: str):
        import datasets

        images = split.with_format(None).select_columns(column)
        self._images = images.cast_column(column, datasets.Image(decode=False))
        self._column = column

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> bytes:
        stored = self._images[int(index)][self._column] or {}
        if stored.get("bytes") is not None:
            return stored["bytes"]
        if not stored.get("path"):
            raise ValueError("no image is stored")
        path = local_path(stored["path"], field="path")
        if not path.is_file():  # a device could be endless
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        return path.read_bytes()


def _parsed(argument: str) -> tuple[str, dict[str, str]]:
    """The name or path of a data set, and its options."""
    name, options = with_options(argument)
    allowed = f"hf:NAME or hf:PATH, and then any of {', '.join(f':{o}=...' for o in OPTIONS)}"
    require(bool(name) and options.keys() <= set(OPTIONS), "name", f"hf:{argument}", allowed)
    return name, options


def _open(name: str, options: Mapping[str, str], data_dir: str, cache_dir: str) -> dict[str, Any]:
    """The splits by name: of a folder, or of the Hub if there is no such folder."""
    import datasets

    folder = local_path(data_dir, field="data_dir") / local_path(name, field="name")
    config, is_folder = options.get("config"), os.path.isdir(folder)
    if any(os.path.isfile(folder / file) for file in ("dataset_dict.json", "state.json")):
        allowed = "without :config=, for a folder of save_to_disk"
        require(not config, "name", f"hf:{name}:config={config}", allowed)
        saved = datasets.load_from_disk(str(folder))
        whole = isinstance(saved, datasets.Dataset)
        return {str(saved.split): saved} if whole else {str(k): v for k, v in saved.items()}
    allowed = f"the name of a data set on the Hub, or a folder; there is no {str(folder)!r}"
    require(is_folder or bool(re.fullmatch(HUB_NAME, name)), "name", f"hf:{name}", allowed)
    cache = str(local_path(cache_dir, field="cache_dir") / "hf") if cache_dir else None
    loaded = datasets.load_dataset(str(folder) if is_folder else name, config, cache_dir=cache)
    return {str(split): loaded[split] for split in loaded}


def _features(name: str, splits: Mapping[str, Any]) -> Mapping[str, Any]:
    """Names and types of the columns, the same in every split that may be read."""
    names = [split for split in ("train", "validation", "test") if split in splits]
    if len(names) < 2 or names[0] != "train":
        raise InputError(f"{name!r} {SPLITS}, got {', '.join(splits)}", field="name")
    features = splits["train"].features
    for split in names:
        if splits[split].features != features:
            raise InputError(f"{name!r} has other features in {split} than in train", field="name")
    return features


def _chosen(
    name: str,
    option: str,
    options: Mapping[str, str],
    automatic: list[str],
    possible: list[str],
    features: Mapping[str, Any],
) -> str:
    """The column that an option names, or else the only one of the right type."""
    if not possible:
        present = ", ".join(f"{c} ({type(f).__name__})" for c, f in features.items())
        raise InputError(f"{name!r} must have {TYPES[option]}, got {present}", field="name")
    column = options.get(option) or (automatic[0] if len(automatic) == 1 else "")
    if column not in possible:
        choice = " or ".join(f":{option}={other}" for other in possible)
        raise InputError(
            f"the {option} of {name!r} must be chosen by {choice}, got {column!r}", field="name"
        )
    return column


def _labelled(name: str, splits: Mapping[str, Any], label: str, *, is_map: bool) -> dict[str, str]:
    """The names in ``splits`` of our splits "train" and "test"."""

    def has_labels(split: str) -> bool:
        if is_map:
            return all(
                row[label] is not None for row in splits[split].select_columns(label).take(1)
            )
        first = _values(splits[split].select(range(min(1, len(splits[split])))), label)
        return not len(first) or first[0] >= 0  # -1: withheld

    names = labelled_splits(splits, has_labels)
    if len(names) < 2:
        raise InputError(f"{name!r} {SPLITS}, got {', '.join(splits)}", field="name")
    return names


def _values(split: Any, column: str) -> np.ndarray:
    return np.asarray(split.with_format("numpy").select_columns(column)[:][column])


def _mode(image: Image.Image, stated: str | None) -> str:
    """The mode in which an image has intensities."""
    return stated or INTENSITIES.get(image.mode, image.mode)


def _decoded(
    name: str, files: HfImageFiles, convert: Callable[[Image.Image], Image.Image]
) -> np.ndarray:
    """All images, ``[N, H, W]`` or ``[N, H, W, C]``."""

    def decode(index: int) -> np.ndarray:
        try:
            return np.asarray(convert(Image.open(io.BytesIO(files[index]))))
        except Exception as error:  # on damaged files, Pillow raises errors of many types
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{name}: image {index} cannot be decoded: {reason}", field="name"
            ) from error

    images = None
    # Pillow releases the interpreter lock while it decodes.
    with ThreadPoolExecutor(THREADS) as pool:
        for i, image in enumerate(pool.map(decode, range(len(files)))):
            if images is None:
                images = np.empty((len(files), *image.shape), image.dtype)
            elif (image.shape, image.dtype) != (images.shape[1:], images.dtype):
                raise InputError(
                    f"the images of {name} must have one size and mode where image_size is 0, "
                    f"got {images.shape[1:]} and {image.shape}",
                    field="name",
                )
            images[i] = image
    if images is None:
        raise InputError(f"the split {name} is empty", field="name")
    return images


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Converts errors of missing or damaged data to an InputError."""
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except InputError:
        raise
    except Exception as error:  # on damaged files, Arrow and datasets raise errors of many types
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        reason = cause or error
        raise InputError(
            f"{name!r} cannot be read: {type(reason).__name__}: {reason}", field="name"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No line for each retry of a download, and progress bars on a terminal only."""
    from datasets import utils

    logger, hidden = logging.getLogger("huggingface_hub"), utils.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    if not (hidden or sys.stderr.isatty()):
        utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not hidden:
            utils.enable_progress_bars()
