"""A data set, checked: in memory, or stored as images of any size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdd_jax.data.sources import sources
from sdd_jax.data.stored import StoredImages
from sdd_jax.errors import InputError, check


@dataclasses.dataclass(frozen=True)
class Split:
    """Images ``[N, H, W, C]`` uint8, perhaps not decoded yet, and labels ``[N]`` int32."""

    images: np.ndarray | StoredImages
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> "Split":
        """The examples at ``index``."""
        return Split(self.images[index], self.labels[index])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image-classification data set.

    Attributes:
      name: as in the config.
      num_classes: K; labels are in [0, K).
      splits: "train", "test" and, if the config cuts one from train, "validation".
      mean: per channel, of pixels in [0, 1].
      std: likewise.
    """

    name: str
    num_classes: int
    splits: Mapping[str, Split]
    mean: np.ndarray
    std: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return self.splits["train"].images.shape[1:]


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads the data set that a config names and checks it.

    Args:
      options: ``config.dataset``: ``name`` ("digits", "npz:PATH" or a tfds name), ``data_dir``,
        ``cache_dir``, ``num_classes`` (0: from the data), ``validation`` (share of train),
        ``examples_per_class`` (of train, 0 or not there: all; the same ones whatever the share of
        validation), ``image_size`` (0, or not there: as stored, in memory), ``mean`` and ``std``
        (empty: computed from train, which takes images in memory).

    Raises:
      InputError: the data set is unknown, absent, empty, or its arrays are not what they must be.
    """
    name, share = options["name"], options["validation"]
    image_size, per_class = options.get("image_size", 0), options.get("examples_per_class", 0)
    given_classes = options["num_classes"]
    check(given_classes >= 0, "config.dataset.num_classes", given_classes, "0 or more")
    check(0 <= share < 1, "config.dataset.validation", share, "in [0, 1)")
    check(image_size >= 0, "config.dataset.image_size", image_size, "0 or more")
    check(per_class >= 0, "config.dataset.examples_per_class", per_class, "0 or more")
    for key in ("mean", "std") if image_size else ():
        allowed = "3 numbers where config.dataset.image_size is set"
        check(len(options[key]) == 3, f"config.dataset.{key}", options[key], allowed)
    source, _, argument = name.partition(":")
    if source not in sources.names():
        source, argument = "tfds", name
    arrays, num_classes = sources.build(
        {"name": source},
        argument=argument,
        data_dir=options["data_dir"],
        cache_dir=options["cache_dir"],
        encoded=image_size > 0,
    )
    num_classes, splits = given_classes or num_classes, {}
    classes = f"[0, {num_classes})" + ", by config.dataset.num_classes" * (given_classes > 0)
    for split in ("train", "test"):
        what, images = f"dataset {name}, {split}", arrays[f"{split}_images"]
        if isinstance(images, np.ndarray):
            images = _checked_images(what, images)
        if image_size:
            images = StoredImages(images, image_size, what)
        splits[split] = _checked(what, images, arrays[f"{split}_labels"], num_classes, classes)
    train_shape, test_shape = (splits[s].images.shape[1:] for s in ("train", "test"))
    if train_shape != test_shape:
        raise InputError(
            f"dataset {name}: images must have one size, got {train_shape} in train and "
            f"{test_shape} in test"
        )
    if share or per_class:
        splits["train"], validation = _cut(splits["train"], share, per_class)
        splits |= {"validation": validation} if share else {}
    return Dataset(name, num_classes, splits, *_normalisation(options, splits["train"].images))


def load_other(name: str, options: Mapping[str, Any]) -> Dataset:
    """Loads another data set from the folders, and in the image size, that ``config.dataset`` says.

    Raises:
      InputError: as ``load``.
    """
    whole = {"num_classes": 0, "validation": 0.0, "examples_per_class": 0}
    other = dict(options) | whole | {"name": name}
    if not options.get("image_size", 0):
        other |= {"mean": (), "std": ()}  # its images need not have as many channels
    return load(other)


def _checked_images(what: str, images: np.ndarray) -> np.ndarray:
    """The images, if rank and dtype are right; grey ones without a channel axis get one."""
    if images.ndim == 3:
        images = images[..., None]
    check(images.ndim == 4, f"{what}: images", images.shape, "[N, H, W, C] or [N, H, W]")
    check(images.dtype == np.uint8, f"{what}: images", str(images.dtype), "uint8")
    check(images.shape[-1] in (1, 3), f"{what}: images", images.shape, "of 1 or 3 channels")
    return images


def _checked(
    what: str,
    images: np.ndarray | StoredImages,
    labels: np.ndarray,
    num_classes: int,
    classes: str,
) -> Split:
    """The split, if there are images, and a label in range for each; ``classes`` is that, in words."""
    check(len(images) > 0, f"{what}: images", images.shape, "at least one image")
    check(
        labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
        f"{what}: labels",
        f"{labels.dtype} {labels.shape}",
        "integers [N]",
    )
    check(
        len(labels) == len(images), f"{what}: labels", len(labels), f"{len(images)}, as the images"
    )
    low, high = int(labels.min()), int(labels.max())
    check(
        low >= 0 and high < num_classes,
        f"{what}: labels",
        low if low < 0 else high,
        f"in {classes}",
    )
    return Split(images, labels.astype(np.int32))


def _cut(train: Split, share: float, per_class: int) -> tuple[Split, Split]:
    """Train and validation, stratified by class; the same cut whatever the seed of the run."""
    rng = np.random.default_rng(0)
    kept, held_out = [], []
    for label in np.unique(train.labels):
        members = rng.permutation(np.flatnonzero(train.labels == label))
        rest = members[round(share * len(members)) :]
        check(
            per_class <= len(rest),
            "config.dataset.examples_per_class",
            per_class,
            f"at most {len(rest)}, the images of class {label} in train",
        )
        held_out.append(members[: len(members) - len(rest)])
        kept.append(rest[-per_class:])  # (-0: all) from the end, so that no share changes them
    kept, held_out = (np.sort(np.concatenate(of_classes)) for of_classes in (kept, held_out))
    check(
        len(kept) > 0 and (len(held_out) > 0 or not share),
        "config.dataset.validation",
        share,
        "a share that leaves both splits an image",
    )
    return train.take(kept), train.take(held_out)


def _normalisation(
    options: Mapping[str, Any], images: np.ndarray | StoredImages
) -> tuple[np.ndarray, np.ndarray]:
    """Per-channel mean and standard deviation, of the config or else of the training images."""
    channels = images.shape[-1]
    given = {key: np.asarray(options[key], np.float32) for key in ("mean", "std")}
    for key, value in given.items():
        check(
            len(value) in (0, channels),
            f"config.dataset.{key}",
            options[key],
            f"empty or {channels} numbers",
        )
    check(bool(np.all(given["std"] > 0)), "config.dataset.std", options["std"], "greater than 0")
    if all(map(len, given.values())):
        return given["mean"], given["std"]
    # From the histogram: exact, and no floating-point copy of the images.
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(channels)])
    shares, levels = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = shares @ levels
    variance = shares @ levels**2 - mean**2
    mean = given["mean"] if len(given["mean"]) else mean
    std = given["std"] if len(given["std"]) else np.sqrt(np.maximum(variance, 1e-6))
    return mean.astype(np.float32), std.astype(np.float32)
