"""Sources of images and labels; each is a function registered in a file of this package.

A source takes any of the keyword arguments ``argument`` (the part of a data set's name after the
colon), ``data_dir``, ``cache_dir`` and ``encoded``. It returns a dict of arrays (``train_images`` uint8
``[N, H, W, C]``, ``train_labels`` integers ``[N]``, ``test_images``, ``test_labels``) and the number of
classes. If ``encoded``, images may also be sequences of image files, as bytes.
"""

import inspect
import re
from collections.abc import Callable, Collection
from typing import Any

from sdd_jax.registry import Registry

sources = Registry("sdd_jax.data.sources", "dataset")


def read(name: str, *, data_dir: str, cache_dir: str, encoded: bool) -> tuple[dict[str, Any], int]:
    """Reads a data set from the source ``SOURCE`` or ``SOURCE:ARGUMENT``, or else from tfds.

    Raises:
      InputError: from the source; the field is an argument of :func:`sdd_jax.data.load`.
    """
    source, _, argument = name.partition(":")
    if source not in sources.names():
        source, argument = "tfds", name
    # Not sources.build, which adds the section of the config: the caller of data.load does so.
    function = sources.get(source)
    args = {"argument": argument, "data_dir": data_dir, "cache_dir": cache_dir, "encoded": encoded}
    accepted = inspect.signature(function).parameters
    return function(**{key: value for key, value in args.items() if key in accepted})


def with_options(argument: str) -> tuple[str, dict[str, str]]:
    """Divides ``TEXT:OPTION=VALUE:OPTION=VALUE`` into the text and its options."""
    text = re.sub(r"(:\w+=[^:]*)+$", "", argument)
    return text, dict(re.findall(r":(\w+)=([^:]*)", argument[len(text) :]))


def labelled_splits(present: Collection[str], has_labels: Callable[[str], bool]) -> dict[str, str]:
    """The names in a source of our splits "train" and "test".

    "validation" stands for a test split that is missing or has no labels, as that of ImageNet.
    """
    splits = {"train": "train"} if "train" in present else {}
    for split in ("validation", "test"):
        if split in present and has_labels(split):
            splits["test"] = split
    return splits
