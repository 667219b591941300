"""Data sets: loading, validation, splits, normalisation constants."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from sdd_jax.data import inputs as kinds
from sdd_jax.data import sources
from sdd_jax.data.inputs import Images, Inputs
from sdd_jax.data.label_noise import read_labels, symmetric_noise
from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.data.lazy_maps import LazyMaps
from sdd_jax.data.split import Split
from sdd_jax.errors import InputError, require, require_array, within
from sdd_jax.options import Count, Fraction
from sdd_jax.tasks import Classification, Task, of_labels

_logger = logging.getLogger(__name__)
MAX_CLASSES = 10_000_000


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
      name: the name it was loaded by.
      num_classes: K.
      splits: "train", "test" and, if one was held out, "validation".
      mean: float32 ``[C]``, means by channel: of pixels in [0, 1], or of each feature.
      std: float32 ``[C]``, standard deviations, likewise.
      task: what the labels are.
      inputs: the kind of the inputs.
    """

    name: str
    num_classes: int
    splits: Mapping[str, Split]
    mean: np.ndarray
    std: np.ndarray
    task: Task = dataclasses.field(default_factory=Classification)
    inputs: Inputs = dataclasses.field(default_factory=Images)

    @property
    def image_shape(self) -> Any:
        """Shape of an input; of an image, ``(H, W, C)``."""
        return self.splits["train"].images.shape[1:]

    @property
    def noun(self) -> str:
        """What a decision of the task is about, in the singular."""
        return self.task.noun or self.inputs.noun

    def fingerprint(self) -> dict[str, Any]:
        """The number of classes and :meth:`Split.fingerprint` of each split, plain values for JSON.

        Computed at each call.

        Raises:
          InputError: an image file cannot be read.
        """
        names = [name for name in ("train", "test", "validation") if name in self.splits]
        return {"classes": self.num_classes} | {n: self.splits[n].fingerprint() for n in names}


def load(
    seed: int = 0,
    /,
    *,
    name: str = "digits",
    data_dir: str = "",
    cache_dir: str = "",
    num_classes: Annotated[int, Interval(ge=0, le=MAX_CLASSES)] = 0,
    task: str = "",
    validation: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    examples_per_class: Count = 0,
    label_noise: Fraction = 0.0,
    train_labels: str = "",
    image_size: Annotated[int, Interval(ge=0, le=4096)] = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Dataset:
    """Loads a data set and validates its arrays.

    The keyword arguments are the section ``dataset`` of a config. Types and ranges are validated by the
    caller, with :func:`sdd_jax.options.validate`.

    Labels with the errors of human annotators, for ``train_labels``, are in CIFAR-10N and CIFAR-100N
    (`Wei et al., 2022 <https://arxiv.org/abs/2110.12088>`_). Their files are pickles, which can execute
    code and are not read here. Convert the one in the order of tfds, once, if you trust it::

      labels = np.load("CIFAR-10_human_ordered.npy", allow_pickle=True).item()
      np.save("worse.npy", labels["worse_label"])

    The other keys are ``aggre_label``, ``random_label1`` to ``random_label3`` and ``clean_label``; in
    ``CIFAR-100_human_ordered.npy``, ``noise_label`` and ``clean_label``.

    Args:
      seed: the run's seed; only the label noise depends on it.
      name: "digits", "photos", "scenes", "npz:PATH", "coco:FOLDER", "hf:NAME" of the Hugging Face Hub,
        "hf:PATH" of a folder, or a data set of TensorFlow Datasets such as "cifar100".
      data_dir: folder of the data; empty: ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``, and for npz
        files and folders of hf the current folder.
      cache_dir: folder for decoded tfds images and for what hf downloads and converts; empty:
        ``~/.cache/sdd_jax``, and for hf the cache of the package ``datasets``.
      num_classes: number of classes; 0: as the data state.
      task: what the labels are, see :mod:`sdd_jax.tasks`; empty: as their shape shows. Labels ``[N]``
        are classes, ``[N, K]`` of 0 and 1 any number of classes for each example, ``[N, H, W]`` classes
        of pixels (255: unknown), ``[N, M, 5]`` boxes (class -1: none).
      validation: fraction of the training images held out, stratified by class. The held-out images do
        not depend on the seed of a run.
      examples_per_class: training images to keep of each class, the same ones for every value of
        ``validation``; 0: all. For labels ``[N]``, as the next two.
      label_noise: fraction of wrong labels in the split "train" (symmetric noise). Of its N labels,
        ``round(label_noise * N)`` are replaced, each by one of the K - 1 other classes, uniformly. By
        another convention the replacement is drawn from all K classes, so that fewer labels are wrong.
        The splits "validation" and "test" keep their labels: what is selected on "validation" relies on
        a small trusted set.
      train_labels: npy file of other labels for the split "train": integers ``[N]``, one for each
        training image of the data set, in order, before any are held out. A relative path starts at
        ``data_dir``, or at the current folder if that is empty. "validation" and "test" keep the data
        set's own labels, which also decide what ``validation`` and ``examples_per_class`` select. Not
        together with ``label_noise``.
      image_size: side in pixels of the views of images of any size, which are then decoded on demand:
        crops, or whole images if they have boxes or maps; 0: images of one size, kept in memory.
      mean: channel means of pixels in [0, 1]; empty: computed from the training images. Required with
        ``image_size``.
      std: channel standard deviations, likewise.

    Returns:
      The data set.

    Raises:
      InputError: the data set is unknown, absent or empty, its arrays cannot be used, or an option does
        not fit them.
    """
    if image_size:
        for field, value in (("mean", mean), ("std", std)):
            require(len(value) == 3, field, value, "3 numbers where image_size is set")
    require(not (label_noise and train_labels), "label_noise", label_noise, "0 with train_labels")
    arrays, stated_classes = sources.read(
        name, data_dir=data_dir, cache_dir=cache_dir, encoded=image_size > 0
    )
    for split in ("train", "test"):
        if not isinstance(labels := arrays[f"{split}_labels"], np.ndarray):  # files of maps
            known = num_classes or stated_classes
            require(known > 0, "num_classes", 0, "given, for maps that are decoded on demand")
            stated_classes = known
            arrays[f"{split}_labels"] = LazyMaps(labels, image_size, f"{split} labels")
    kind, found = _kind_and_task(arrays, image_size, task)
    # npz files state no number of classes.
    stated_classes = min(stated_classes or found.count_classes(arrays["train_labels"]), MAX_CLASSES)
    allowed = f"[0, {num_classes}), by num_classes" if num_classes else f"[0, {stated_classes})"
    num_classes = num_classes or stated_classes
    for field, value in {
        "examples_per_class": examples_per_class,
        "label_noise": label_noise,
        "train_labels": train_labels,
    }.items():
        require(found.one_label or not value, field, value, f"{type(value)()!r} for {found.name}")
    whole, test = (
        _validated_split(name, split, arrays, image_size, kind, found, num_classes, allowed)
        for split in ("train", "test")
    )
    if whole.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{kind.name} must have one size, got {whole.images.shape[1:]} in train and "
            f"{test.images.shape[1:]} in test"
        )
    if found.one_label:
        _warn_of_empty_classes(name, whole.labels, num_classes, kind.name)
    train, splits = whole, {"test": test}
    if train_labels:
        labels = read_labels(train_labels, data_dir)
        with within("train_labels"):
            shown = f"labels in {train_labels!r}"
            labels = _validated_labels(
                shown, labels, whole.images, kind, found, num_classes, allowed
            )
        train = dataclasses.replace(whole, labels=labels)
    if validation or examples_per_class:
        kept, held_out = _hold_out(found.strata(whole.labels), validation, examples_per_class)
        train = train.take(kept)
        splits |= {"validation": whole.take(held_out)} if validation else {}
    if label_noise:
        labels = symmetric_noise(
            train.labels, fraction=label_noise, num_classes=num_classes, seed=seed
        )
        train = dataclasses.replace(train, labels=labels)
    mean_and_std = _normalisation(kind, train.images, mean, std)
    splits = {split: examples.for_evaluation() for split, examples in splits.items()}
    return Dataset(name, num_classes, {"train": train} | splits, *mean_and_std, found, kind)


def load_other(name: str, options: Mapping[str, Any]) -> Dataset:
    """Loads the whole of another data set, with the folders and the image size of the first.

    Its training labels are its own.

    Args:
      name: the other data set, as for :func:`load`.
      options: the options that the first was loaded with.

    Raises:
      InputError: as :func:`load`, but without naming a field.
    """
    whole = {"name": name, "num_classes": 0, "task": "", "validation": 0.0, "examples_per_class": 0}
    own_labels = {"label_noise": 0.0, "train_labels": ""}
    other: dict[str, Any] = {**options, **whole, **own_labels}
    if not other.get("image_size"):
        other |= {"mean": (), "std": ()}  # the number of channels may differ
    try:
        return load(**other)
    except InputError as error:  # the caller knows where the name came from
        raise InputError(error.reason) from error.__cause__


def _kind_and_task(arrays: Mapping[str, Any], image_size: int, task: str) -> tuple[Inputs, Task]:
    """The kind of the training inputs, and the task of their labels."""
    images, labels = arrays["train_images"], arrays["train_labels"]
    if image_size:
        kind, shape = Images(), (image_size, image_size, 3)
    else:
        kind = kinds.of_array("train images", images)
        shape = kind.validated("train images", images[:1]).shape[1:]
    numbers = labels.ndim > 0 and labels.dtype.kind in ("iu" if labels.ndim < 3 else "iuf")
    shown = f"{labels.dtype} {labels.shape}"
    require_array(numbers, "train labels", shown, "integers [N]")
    found = of_labels(task, labels, shape)
    on_demand = found.one_label or found.whole_images
    require(not image_size or on_demand, "image_size", image_size, f"0 for {found.name}")
    return kind, found


def _validated_split(
    name: str,
    split: str,
    arrays: Mapping[str, Any],
    image_size: int,
    kind: Inputs,
    task: Task,
    num_classes: int,
    allowed: str,
) -> Split:
    """The split of the data set ``name``, its arrays in their final shapes and dtypes."""
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    shown = f"{split} {kind.name}"
    if isinstance(images, np.ndarray):
        require_array(
            kind.fits(images), shown, f"{images.dtype} {list(images.shape)}", "as in train"
        )
        images = kind.validated(shown, images)
    if image_size:
        images = LazyImages(images, image_size, f"dataset {name}, {split}", whole=task.whole_images)
    require_array(len(images) > 0, shown, len(images), "at least one")
    labels = _validated_labels(f"{split} labels", labels, images, kind, task, num_classes, allowed)
    return Split(images, labels, task.moved if image_size and task.moves else None)


def _validated_labels(
    name: str,
    labels: Any,
    images: np.ndarray | LazyImages,
    kind: Inputs,
    task: Task,
    num_classes: int,
    allowed: str,
) -> Any:
    """The labels in their final dtype; ``allowed`` states the range in words."""
    fits = labels.dtype.kind in task.dtypes and task.fits(labels, images.shape[1:])
    numbers = "numbers" if "f" in task.dtypes else "integers"
    require_array(fits, name, f"{labels.dtype} {labels.shape}", f"{numbers} {task.shape}")
    require_array(
        len(labels) == len(images), name, len(labels), f"{len(images)}, as the {kind.name}"
    )
    if isinstance(labels, LazyMaps):
        validated = functools.partial(task.validated, num_classes=num_classes, allowed=allowed)
        return labels.validated_by(validated)
    return task.validated(name, labels, num_classes, allowed)


def _warn_of_empty_classes(name: str, labels: np.ndarray, num_classes: int, kind: str) -> None:
    """Warns of classes without a training input, in particular of labels that count from 1."""
    empty = np.setdiff1d(np.arange(num_classes), labels)
    if len(empty):
        some = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        hint = "; labels count from 0" if empty[0] == 0 else ""
        _logger.warning(
            "%s: %d of %d classes (%s) have no training %s%s",
            name, len(empty), num_classes, some, kind.removesuffix("s"), hint,
        )  # fmt: skip


def _hold_out(
    labels: np.ndarray, validation: float, examples_per_class: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images that train keeps and of those held out, stratified by class."""
    rng = np.random.default_rng(0)  # not the run's seed: every run has the same validation images
    kept, held_out = [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        rest = members[round(validation * len(members)) :]
        require(
            examples_per_class <= len(rest),
            "examples_per_class",
            examples_per_class,
            f"at most {len(rest)}, the images of class {label} in train",
        )
        held_out.append(members[: len(members) - len(rest)])
        # From the end, so that the kept examples do not depend on the fraction; -0 keeps all.
        kept.append(rest[-examples_per_class:])
    kept, held_out = (np.sort(np.concatenate(indices)) for indices in (kept, held_out))
    require(
        len(kept) > 0 and (len(held_out) > 0 or not validation),
        "validation",
        validation,
        "a fraction that leaves images in train and in validation",
    )
    return kept, held_out


def _normalisation(
    kind: Inputs, images: np.ndarray | LazyImages, mean: Sequence[float], std: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations by channel, computed from the inputs where none are given."""
    channels = kind.channels(images.shape[1:])
    for field, value in (("mean", mean), ("std", std)):
        allowed = f"empty or {channels} numbers, one for each channel of the {kind.name}"
        require(len(value) in (0, channels), field, value, allowed)
    require(bool(np.all(np.asarray(std, np.float32) > 0)), "std", std, "greater than 0")
    if not mean or not std:
        data_mean, data_std = kind.statistics(np.asarray(images))
        mean, std = mean or data_mean.tolist(), std or data_std.tolist()
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)
