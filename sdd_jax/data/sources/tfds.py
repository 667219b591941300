"""TensorFlow Datasets, read without TensorFlow.

``tfds.data_source`` reads ArrayRecord files and decodes images with Pillow, in about 20 s for CIFAR. The
decoded arrays are cached, so the next start does not import tfds. Images of any size stay encoded in
their files; only their labels are cached.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sdd_jax.buckets import BucketPath
from sdd_jax.data.copies import on_disk, written_whole
from sdd_jax.data.sources import labelled_splits, sources, with_options
from sdd_jax.errors import InputError, require
from sdd_jax.extras import pip_command
from sdd_jax.paths import cache_folder, given_path

_logger = logging.getLogger(__name__)
LABELS = ("train_labels", "test_labels")
ARRAYS = ("train_images", "test_images", *LABELS)
READ_BATCH = 256  # records per read of labels
SLOW = 100_000  # labels; reading more takes minutes


@sources.register("tfds")
def tfds(
    *, argument: str, data_dir: str, cache_dir: str, encoded: bool
) -> tuple[dict[str, Any], int]:
    """Reads the splits "train" and "test"; "validation" in place of a test split without labels.

    The argument is a name, and then possibly ``:label=FEATURE``, in place of "label": a feature
    ``ClassLabel``, or an image that maps the labels of the pixels.

    Raises:
      InputError: the data set is unknown, not prepared, damaged, or not one of labelled images.
    """
    name, options = with_options(argument)
    allowed = "NAME, and then possibly :label=FEATURE"
    require(options.keys() <= {"label"}, "name", argument, allowed)
    label = options.get("label", "label")
    default_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = given_path(data_dir or default_dir, field="data_dir")
    if isinstance(folder, BucketPath):  # ArrayRecord files are read from a disk
        top = folder / re.split("[/:]", name)[0]
        folder = on_disk(top, field="data_dir", cache_dir=cache_dir).parent
    data_dir = str(folder)
    with _readable(name, data_dir):
        arrays, num_classes = _cached(name, label, data_dir, cache_dir, encoded)
        if encoded:
            for split in ("train", "test"):
                arrays[f"{split}_images"] = TfdsImageFiles(name, label, data_dir, split, "image")
                if f"{split}_labels" not in arrays:
                    arrays[f"{split}_labels"] = TfdsImageFiles(name, label, data_dir, split, label)
    return arrays, num_classes


class TfdsImageFiles:
    """The encoded images of a split, a sequence of bytes. Unpickling opens the split again.

    Args:
      name: name of the data set.
      label: the feature of its labels.
      data_dir: its folder.
      split: "train" or "test".
      feature: the feature of the images.
    """

    def __init__(self, name: str, label: str, data_dir: str, split: str, feature: str):
        import tensorflow_datasets as tfds

        self._arguments = name, label, data_dir, split, feature
        builder, splits = _open(name, label, data_dir)
        self._records = _Records(builder, splits[split], feature, tfds.decode.SkipDecoding())

    def __reduce__(self):
        return TfdsImageFiles, self._arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        return self._records.read([index])[0]


def _cached(name, label, data_dir, cache_dir, encoded) -> tuple[dict[str, Any], int]:
    """The arrays, or only the labels if the images stay encoded, and the number of classes.

    Labels that are maps stay encoded with the images.
    """
    names, read = (LABELS, _read_labels) if encoded else (ARRAYS, _decode)
    root = cache_folder(cache_dir)
    fingerprint = _fingerprint(_folder(name, data_dir))
    if fingerprint is None:
        return read(name, label, data_dir)
    folder = f"{name.replace('/', '-').replace(':', '-')}-{fingerprint}"
    folder += "" if label == "label" else f"-{re.sub(r'[^0-9A-Za-z_]', '-', label)}"
    cache = root / (f"{folder}-labels" if encoded else folder)
    cached = _read_cache(cache, names)
    if cached is None:
        cached = read(name, label, data_dir)
        if cached[0]:
            _write_cache(cache, *cached)
    return cached


def _folder(name: str, data_dir: str) -> pathlib.Path:
    """The folder of all versions of a data set ``NAME``, ``NAME/CONFIG`` or ``NAME:VERSION``."""
    return pathlib.Path(data_dir, *name.split(":")[0].split("/"))


class _Records:
    """One feature of all examples of a split; the other features are not decoded.

    Args:
      builder: builder of the data set.
      split: name of the split in tfds.
      feature: name of the feature.
      decoder: decoder in place of the feature's own.
    """

    def __init__(self, builder: Any, split: str, feature: str, decoder: Any = None):
        import tensorflow_datasets as tfds

        self._name, self._decoders = feature, {feature: decoder} if decoder else None
        self._features: Any = tfds.features.FeaturesDict({feature: builder.info.features[feature]})
        self._source = _data_source(
            builder, split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[Any]:
        decode, options = self._features.deserialize_example_np, {"decoders": self._decoders}
        records = self._source.__getitems__(indices)
        values = [decode(record, **options)[self._name] for record in records]
        if any(value is None for value in values):  # the file was truncated
            raise ValueError(f"there is no {self._name} in a record of {indices}")
        return values


def _open(name: str, label: str, data_dir: str) -> tuple[Any, dict[str, str]]:
    """The builder of a data set, and the names in tfds of our splits "train" and "test"."""
    import tensorflow_datasets as tfds

    _refuse_code(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except ValueError as error:  # unknown, or not a name at all
        folder = _folder(name, data_dir)
        if os.path.isdir(folder) and any(folder.glob("*/dataset_info.json")):
            raise  # prepared, but damaged
        known = ", ".join(
            n for n in sources.names() if n not in ("blank", "coco", "hf", "npz", "tfds")
        )
        raise InputError(
            f"must be {known}, npz:PATH, coco:PATH, hf:NAME or a data set known to tfds, got {name!r}",
            field="name",
        ) from error
    if not builder.is_prepared():
        how = _how_to_prepare(name, data_dir)
        raise InputError(f"{name!r} is not in {data_dir!r}; {how}", field="name")
    features: Any = builder.info.features
    if features is None or not {"image", label} <= set(features):
        raise InputError(f"{name!r} has no features 'image' and {label!r}", field="name")

    def has_labels(split: str) -> bool:
        if _is_map(builder, label):
            return True
        labels = _Records(builder, split, label)
        return not len(labels) or labels.read([0])[0] >= 0  # -1: withheld

    splits = labelled_splits(builder.info.splits, has_labels)
    if len(splits) < 2:
        present = ", ".join(builder.info.splits)
        raise InputError(
            f"{name!r} must have the splits train and test (or validation), got {present}",
            field="name",
        )
    return builder, splits


def _refuse_code(name: str, data_dir: str) -> None:
    """Refuses what tfds would execute: code fetched for a namespace, modules named by the features."""
    if re.match(r"\w+:[^0-9]", name):  # NAME:1.0.0 is a version
        raise InputError(f"must be without a namespace, got {name!r}", field="name")
    folder = _folder(name, data_dir)
    for path in sorted(folder.rglob("features.json")) if os.path.isdir(folder) else ():
        for feature in _features(json.loads(path.read_text(encoding="utf-8"))):
            if not feature.startswith("tensorflow_datasets.core.features."):
                raise InputError(
                    f"{path} must name features of tfds, got {feature!r}", field="name"
                )


def _features(content: Any) -> Iterator[str]:
    """Names of the classes in ``features.json``, which tfds imports."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                yield value
            yield from _features(value)
    elif isinstance(content, list):
        for value in content:
            yield from _features(value)


def _how_to_prepare(name: str, data_dir: str) -> str:
    return (
        f"prepare it with: {pip_command('prepare')} && tfds build {name} "
        f"--file_format=array_record --data_dir={data_dir}"
    )


def _data_source(builder: Any, split: str, **options: Any) -> Any:
    try:
        return builder.as_data_source(split=split, **options)
    except NotImplementedError as error:  # the file format has no random access
        name, folder = builder.info.name, str(builder.data_dir)
        how = _how_to_prepare(name, folder)
        raise InputError(
            f"{name!r} in {folder!r} is not stored as array_record; {how}", field="name"
        ) from error


@contextlib.contextmanager
def _readable(name: str, data_dir: str) -> Iterator[None]:
    """Converts errors of missing or damaged files to an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # on damaged files, ArrayRecord and tfds raise errors of many types
        raise InputError(
            f"the files of {name!r} in {data_dir!r} cannot be read: {type(error).__name__}: {error}",
            field="name",
        ) from error


def _is_map(builder: Any, label: str) -> bool:
    """Whether the labels are images."""
    import tensorflow_datasets as tfds

    return isinstance(builder.info.features[label], tfds.features.Image)


def _num_classes(builder: Any, label: str) -> int:
    """The number of classes; 0: the data set does not state it."""
    return getattr(builder.info.features[label], "num_classes", None) or 0


def _decode(name: str, label: str, data_dir: str) -> tuple[dict[str, np.ndarray], int]:
    builder, splits = _open(name, label, data_dir)
    arrays, is_map = {}, _is_map(builder, label)
    for split, source_split in splits.items():
        source = _data_source(builder, source_split)
        images = labels = None
        for i, example in enumerate(source):
            image, of_image = np.asarray(example["image"]), np.asarray(example[label])
            if is_map:
                of_image = of_image[..., 0]
            if images is None or labels is None:
                images = np.empty((len(source), *image.shape), image.dtype)
                labels = np.empty((len(source), *of_image.shape), np.int32)
            elif image.shape != images.shape[1:]:
                raise InputError(
                    f"the images of {name!r} must have one size where image_size is 0, "
                    f"got {images.shape[1:]} and {image.shape}",
                    field="name",
                )
            images[i], labels[i] = image, of_image
        if images is None or labels is None:
            raise InputError(f"the split {source_split} of {name!r} is empty", field="name")
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels
    return arrays, _num_classes(builder, label)


def _read_labels(name: str, label: str, data_dir: str) -> tuple[dict[str, np.ndarray], int]:
    builder, splits = _open(name, label, data_dir)
    if _is_map(builder, label):
        return {}, _num_classes(builder, label)
    arrays = {}
    for split, source_split in splits.items():
        records = _Records(builder, source_split, label)
        if len(records) >= SLOW:
            _logger.warning("reading %d labels of %s; later runs use a cache", len(records), name)
        labels = np.empty(len(records), np.int32)
        for start in range(0, len(records), READ_BATCH):
            indices = range(start, min(start + READ_BATCH, len(records)))
            labels[indices.start : indices.stop] = records.read(indices)
        arrays[f"{split}_labels"] = labels
    return arrays, _num_classes(builder, label)


def _fingerprint(folder: pathlib.Path) -> str | None:
    """A digest of the names, sizes and times of the prepared files; None if there are none."""
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if os.path.isdir(folder) else []
    if not files:
        return None
    listing = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def _read_cache(
    cache: pathlib.Path, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], int] | None:
    if not cache.is_dir():
        return None
    try:
        arrays = {name: np.load(cache / f"{name}.npy", allow_pickle=False) for name in names}
        return arrays, int(json.loads((cache / "num_classes.json").read_text()))
    except Exception as error:  # on damaged files, NumPy raises errors of many types
        _logger.warning("%s is damaged (%s); reading the data set again", cache, error)
        return None


def _write_cache(cache: pathlib.Path, arrays: dict[str, np.ndarray], num_classes: int) -> None:
    """Writes the arrays; a damaged cache is replaced."""
    try:
        with written_whole(cache) as partial:
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array)
            (partial / "num_classes.json").write_text(json.dumps(num_classes))
            shutil.rmtree(cache, ignore_errors=True)
    except OSError as error:
        _logger.warning("could not cache the data set in %s: %s", cache, error)
