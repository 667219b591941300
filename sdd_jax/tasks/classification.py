"""One label for each example."""

import numpy as np

from sdd_jax.errors import require_array
from sdd_jax.tasks.base import Task, tasks


@tasks.register("classification")
class Classification(Task):
    """One class for each example: labels ``[N]``, outputs ``[N, K]``."""

    shape = "[N]"
    one_label = True

    def fits(self, labels: np.ndarray, input_shape: tuple[int, ...]) -> bool:
        """Labels ``[N]``."""
        return labels.ndim == 1

    def count_classes(self, labels: np.ndarray) -> int:
        """The largest label plus one."""
        return int(labels.max(initial=0)) + 1

    def validated(
        self, name: str, labels: np.ndarray, num_classes: int, allowed: str
    ) -> np.ndarray:
        """The labels as int32, which lie in [0, K)."""
        low, high = int(labels.min()), int(labels.max())
        in_range = low >= 0 and high < num_classes
        require_array(in_range, name, low if low < 0 else high, f"in {allowed}")
        return labels.astype(np.int32)

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """The classes."""
        return labels
