"""One label for each pixel."""

from typing import Any, ClassVar

import numpy as np

from sdd_jax.errors import require, require_array
from sdd_jax.tasks.base import Task, tasks

UNLABELLED = 255


@tasks.register("segmentation")
class Segmentation(Task):
    """One class for each pixel: labels ``[N, H, W]``, outputs ``[N, H, W, K]``, K at most 255.

    A label of 255 says that the class of the pixel is unknown; it does not count anywhere.
    """

    shape = "[N, H, W]"
    noun = "pixel"
    figures: ClassVar = {"miou": "mIoU"}
    of_pixels = True

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
