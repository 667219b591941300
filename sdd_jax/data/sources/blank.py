"""Black images of given shapes, for programs that are compiled and not run."""

import re

import numpy as np

from sdd_jax.data.sources import sources
from sdd_jax.errors import require

SHAPES = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)x([13]):([1-9]\d*)(?::([1-9]\d*))?")
ALLOWED = (
    "NxHxWxC:K, as in 50000x32x32x3:100, for N training images of K classes, or NxHxWxC:K:M, with M "
    "boxes in each"
)


@sources.register("blank")
def blank(*, argument: str) -> tuple[dict[str, np.ndarray], int]:
    """``NxHxWxC:K``: N training and K test images, which take no memory; ``:M``: M boxes in each."""
    match = SHAPES.fullmatch(argument)
    require(match is not None, "name", f"blank:{argument}", f"blank:{ALLOWED}")
    assert match is not None
    count, height, width, channels, classes, boxes = map(int, match.groups("0"))
    arrays: dict[str, np.ndarray] = {}
    for split, number in (("train", count), ("test", classes)):
        shape = (number, height, width, channels)
        arrays[f"{split}_images"] = np.broadcast_to(np.uint8(0), shape)
        labels = np.arange(number) % classes
        if boxes:  # of a pixel
            labels = np.broadcast_to(np.array([0, 0, 0, 1, 1]), (number, boxes, 5))
        arrays[f"{split}_labels"] = labels
    return arrays, classes
