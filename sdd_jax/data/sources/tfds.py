"""TensorFlow Datasets, read without TensorFlow.

``tfds.data_source`` reads ArrayRecord files and decodes images with Pillow, about 20 s for CIFAR. The
decoded arrays are kept in a cache, so that the next start does not even import tfds.
"""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile

import numpy as np

from sdd_jax.data.sources import sources
from sdd_jax.errors import InputError

_logger = logging.getLogger(__name__)
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@sources.register("tfds")
def tfds(name: str, *, data_dir: str, cache_dir: str):
    """Reads the splits "train" and "test" (or "validation", where there is no "test").

    Raises:
      InputError: unknown or unprepared data set, or one that is not image classification.
    """
    default_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    data_dir = os.path.expanduser(data_dir or default_dir)
    fingerprint = _fingerprint(pathlib.Path(data_dir, *name.split(":")[0].split("/")))
    if fingerprint is None:
        return _decode(name, data_dir)
    root = cache_dir or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "sdd_jax")
    cache = (
        pathlib.Path(root).expanduser()
        / f"{name.replace('/', '-').replace(':', '-')}-{fingerprint}"
    )
    cached = _read_cache(cache)
    if cached is None:
        cached = _decode(name, data_dir)
        _write_cache(cache, *cached)
    return cached


def _decode(name: str, data_dir: str) -> tuple[dict[str, np.ndarray], int]:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        known = ", ".join(n for n in sources.names() if n not in ("tfds", "npz"))
        raise InputError(
            f"config.dataset.name: must be {known}, npz:PATH or a data set known to tfds, got {name!r}"
        ) from error
    prepare = (
        f"prepare it with: pip install 'sdd_jax[prepare]' && tfds build {name} "
        f"--file_format=array_record --data_dir={data_dir}"
    )
    if not builder.is_prepared():
        raise InputError(f"config.dataset.name: {name!r} is not in {data_dir!r}; {prepare}")
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features):
        raise InputError(f"config.dataset.name: {name!r} has no features 'image' and 'label'")
    test = next((s for s in ("test", "validation") if s in builder.info.splits), None)
    if test is None or "train" not in builder.info.splits:
        raise InputError(
            f"config.dataset.name: {name!r} must have the splits train and test (or validation), "
            f"it has {', '.join(builder.info.splits)}"
        )
    arrays = {}
    for split, source_split in (("train", "train"), ("test", test)):
        try:
            source = builder.as_data_source(split=source_split)
        except NotImplementedError as error:  # prepared in a format without random access
            raise InputError(
                f"config.dataset.name: {name!r} in {data_dir!r} is not stored as array_record; {prepare}"
            ) from error
        images = None
        labels = np.empty(len(source), np.int32)
        for i, example in enumerate(source):
            image = np.asarray(example["image"])
            if images is None:
                images = np.empty((len(source), *image.shape), image.dtype)
            elif image.shape != images.shape[1:]:
                raise InputError(
                    f"config.dataset.name: the images of {name!r} must have one size for the "
                    f"resident engine, got {images.shape[1:]} and {image.shape}"
                )
            images[i], labels[i] = image, example["label"]
        if images is None:
            raise InputError(
                f"config.dataset.name: {name!r}, {source_split} must hold at least one image"
            )
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels
    return arrays, features["label"].num_classes


def _fingerprint(folder: pathlib.Path) -> str | None:
    """A digest of the prepared files' names, sizes and times; None if there are none."""
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    if not files:
        return None
    listing = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def _read_cache(cache: pathlib.Path) -> tuple[dict[str, np.ndarray], int] | None:
    if not cache.is_dir():
        return None
    try:
        arrays = {name: np.load(cache / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
        return arrays, json.loads((cache / "num_classes.json").read_text())
    except (OSError, ValueError, EOFError) as error:
        _logger.warning("%s is damaged (%s); decoding the data set again", cache, error)
        return None


def _write_cache(cache: pathlib.Path, arrays: dict[str, np.ndarray], num_classes: int) -> None:
    """Writes beside the final place and renames: a reader sees all of it or nothing."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = pathlib.Path(tempfile.mkdtemp(prefix="partial-", dir=cache.parent))
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        (partial / "num_classes.json").write_text(json.dumps(num_classes))
        shutil.rmtree(cache, ignore_errors=True)
        partial.rename(cache)
    except OSError as error:
        _logger.warning("could not cache the decoded images in %s: %s", cache, error)
