"""Folders of corrupted photographs in the layout of ImageNet-C, decoded on demand."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.errors import InputError, require

SUFFIXES = (".jpeg", ".jpg", ".png")


class _Files(Sequence):
    """The contents of files below a folder, read one at a time."""

    def __init__(self, folder: pathlib.Path, names: Sequence[str]):
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index):
        return (self._folder / self._names[index]).read_bytes()


def corrupted_folders(
    root: pathlib.Path,
    severities: Sequence[int],
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    field: str,
) -> tuple[dict[str, list[LazyImages]], np.ndarray]:
    """Opens ``CORRUPTION/SEVERITY/CLASS/*.JPEG``, with the same files for each corruption and severity.

    The sorted names of the classes are the labels 0, 1, ... An image is resized so that its short side
    is that of the network, and cropped to the central square: the authors' images for 224 pixels, which
    are cropped already, are kept as they are.

    Args:
      root: folder with a folder of each corruption.
      severities: names of the folders of a corruption.
      image_shape: ``(size, size, 3)``.
      num_classes: number of folders of classes.
      field: the input that ``root`` comes from, for messages.

    Returns:
      ``{corruption: images of each severity}``, each uint8 ``[N, size, size, 3]``, and their labels,
      int32 ``[N]``.

    Raises:
      InputError: another shape, or other folders or files; nothing has been decoded.
    """
    size = image_shape[0]
    square = (size, size, 3)
    require(image_shape == square, field, image_shape, "square colour images, to read folders")
    images: dict[str, list[LazyImages]] = {}
    classes: list[str] = []
    names: list[str] = []
    for corruption in _folders(root):
        for severity in severities:
            folder = root / corruption / str(severity)
            if not folder.is_dir():
                raise InputError(f"{folder} must be a folder of classes", field=field)
            found = _folders(folder)
            require(
                len(found) == num_classes,
                f"{field}: {folder}",
                len(found),
                f"{num_classes} folders",
            )
            files = [f"{name}/{file}" for name in found for file in _image_files(folder / name)]
            classes, names = classes or found, names or files
            if not files or (found, files) != (classes, names):
                first = next(iter(images), corruption)
                raise InputError(
                    f"{folder} must hold the same {len(names):,} images as {first}, at least one",
                    field=field,
                )
            images.setdefault(corruption, []).append(
                LazyImages(_Files(folder, names), size, str(folder), resize=1.0)
            )
    label = {name: i for i, name in enumerate(classes)}
    return images, np.array([label[name.partition("/")[0]] for name in names], np.int32)


def _folders(path: pathlib.Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(x.name for x in entries if x.is_dir() and not x.name.startswith("."))


def _image_files(path: pathlib.Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(x.name for x in entries if x.name.lower().endswith(SUFFIXES))
