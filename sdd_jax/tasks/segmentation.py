"""One label for each pixel."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.errors import InputError, require, require_array
from sdd_jax.tasks.base import Task, Window, tasks

UNLABELLED = 255


@tasks.register("segmentation")
class Segmentation(Task):
    """One class for each pixel: labels ``[N, H, W]``, outputs ``[N, H, W, K]``, K at most 255.

    A label of 255 says that the class of the pixel is unknown; it does not count anywhere.
    """

    shape = "[N, H, W]"
    noun = "pixel"
    figures: ClassVar = {"miou": "mIoU"}
    moves = True
    whole_images = True
    panels = ("image", "labels", "predicted")
    caption = "White: pixels of unknown class."

    def fits(self, labels: np.ndarray, input_shape: tuple[int, ...]) -> bool:
        """Labels ``[N, H, W]`` of images ``[N, H, W, C]``."""
        return labels.ndim == 3 and labels.shape[1:] == input_shape[:-1]

    def count_classes(self, labels: np.ndarray) -> int:
        """The largest label but 255, plus one."""
        return int(labels.max(initial=0, where=labels != UNLABELLED)) + 1

    def validated(
        self, name: str, labels: np.ndarray, num_classes: int, allowed: str
    ) -> np.ndarray:
        """The labels as uint8: in [0, K), or 255."""
        require(num_classes <= UNLABELLED, "num_classes", num_classes, f"at most {UNLABELLED}")
        known = labels != UNLABELLED
        low = int(labels.min(initial=0, where=known))
        high = int(labels.max(initial=0, where=known))
        in_range = low >= 0 and high < num_classes
        allowed += f", or {UNLABELLED}, unknown"
        require_array(in_range, name, low if low < 0 else high, f"in {allowed}")
        return labels.astype(np.uint8)

    def moved(self, labels: Any, window: Window, shape: tuple[int, int]) -> Any:
        """The label at the centre of each pixel of the view; 255 beyond the image.

        Raises:
          InputError: a map of another size than the image.
        """
        if window.of is not None and labels.shape != window.of:
            sizes = ("x".join(map(str, shape)) for shape in (labels.shape, window.of))
            raise InputError("its map has {} pixels, and the image {}".format(*sizes))
        xp = jnp if isinstance(labels, jax.Array) else np
        (rows, inside_rows), (columns, inside_columns) = (
            _nearest(xp, first, extent, size, of)
            for first, extent, size, of in zip(
                window[:2], window[2:4], shape, labels.shape, strict=True
            )
        )
        inside = inside_rows[:, None] & inside_columns[None]
        view = xp.where(inside, labels[rows[:, None], columns[None]], UNLABELLED).astype(
            labels.dtype
        )
        return xp.where(window.mirrored, view[:, ::-1], view)

    def valid(self, labels: Any) -> Any:
        """Where the label is not 255."""
        return labels != UNLABELLED

    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Mean, over the classes that occur, of intersection over union; nan without a labelled pixel.

        A class occurs if a labelled pixel has it, or is predicted to have it.
        """
        from sklearn.metrics import jaccard_score

        known = labels != UNLABELLED
        truth, predicted = labels[known], outputs.argmax(axis=-1)[known]
        if not len(truth):
            return {"miou": float("nan")}
        occurring = np.union1d(truth, predicted)
        return {"miou": float(jaccard_score(truth, predicted, labels=occurring, average="macro"))}

    def contributions(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        r"""The influence function of the mIoU plus the mIoU, ``[N]``, for intervals over images.

        With intersections :math:`I_{nc}` and unions :math:`U_{nc}` of image n, and their sums over n,

        .. math:: \frac{1}{C} \sum_c \frac{I_c}{U_c} + \frac{N}{C}
                  \sum_c \frac{I_{nc} - U_{nc} I_c / U_c}{U_c}
        """
        predicted, num_classes = outputs.argmax(axis=-1), outputs.shape[-1]
        known = labels != UNLABELLED

        def count(chosen, where):
            row = np.arange(len(labels)).reshape(-1, 1, 1) * num_classes
            index = (row + chosen)[where]
            counts = np.bincount(index, minlength=len(labels) * num_classes)
            return counts.reshape(-1, num_classes)

        both = count(predicted, known & (predicted == labels))
        union = count(predicted, known) + count(labels.astype(np.int64), known) - both
        occurring = union.sum(axis=0) > 0
        both, union = both[:, occurring], union[:, occurring]
        total = union.sum(axis=0)
        iou = both.sum(axis=0) / total
        influence = len(labels) * np.sum((both - union * iou) / total, axis=-1)
        return {"miou": (iou.sum() + influence) / max(1, occurring.sum())}

    def draw(
        self, panels: Sequence[Any], image: np.ndarray, outputs: np.ndarray, labels: np.ndarray
    ) -> None:
        """The image, its map and the predicted one; unknown pixels are white."""
        first, *maps = panels
        first.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        for axes, classes in zip(maps, (labels, outputs.argmax(axis=-1)), strict=True):
            shown = np.ma.masked_where(labels == UNLABELLED, classes)
            axes.imshow(shown, "turbo", vmin=0, vmax=outputs.shape[-1] - 1, interpolation="nearest")


def _nearest(xp: Any, first: Any, extent: Any, size: int, of: int) -> tuple[Any, Any]:
    """Indices in an axis of ``of`` pixels of the ``size`` pixels of a view, and which are inside."""
    first, extent = (xp.asarray(x, xp.float32) for x in (first, extent))
    centres = xp.arange(size, dtype=xp.float32) + 0.5
    index = xp.floor(first + centres * extent / size).astype(xp.int32)
    return xp.clip(index, 0, of - 1), (index >= 0) & (index < of)
