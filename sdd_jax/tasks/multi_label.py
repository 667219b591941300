"""Any number of labels for each example."""

from typing import Any, ClassVar

import jax
import numpy as np

from sdd_jax import losses
from sdd_jax.errors import require_array
from sdd_jax.tasks.base import Task, tasks, yes_or_no


@tasks.register("multi_label")
class MultiLabel(Task):
    """Which of K classes an example has: labels ``[N, K]`` of 0 and 1, a sigmoid for each class.

    Loss and SD-Dropout are sums over the classes, those of K independent Bernoulli distributions. A
    decision is about one class of one example: its logits are (0, z), whose softmax is the sigmoid of z.
    So accuracy is the share of the N K entries that are right, and calibration that of all sigmoids.
    """

    shape = "[N, K]"
    noun = "label"
    figures: ClassVar = {"map": "mAP"}
    divergence = staticmethod(losses.symmetric_bernoulli_kl)

    def fits(self, labels: np.ndarray, input_shape: tuple[int, ...]) -> bool:
        """Labels ``[N, K]``."""
        return labels.ndim == 2

    def count_classes(self, labels: np.ndarray) -> int:
        """The number of columns."""
        return labels.shape[1]

    def validated(
        self, name: str, labels: np.ndarray, num_classes: int, allowed: str
    ) -> np.ndarray:
        """The labels as int8, 0 or 1, with a column for each class."""
        columns = labels.shape[1]
        require_array(
            columns == num_classes, f"columns of {name}", columns, f"{num_classes}, the classes"
        )
        low, high = int(labels.min()), int(labels.max())
        require_array(low >= 0 and high <= 1, name, low if low < 0 else high, "0 or 1")
        return labels.astype(np.int8)

    def output_shape(
        self, input_shape: tuple[int, ...], label_shape: tuple[int, ...], num_classes: int
    ) -> tuple[int, ...]:
        """``(K,)``."""
        return label_shape

    def classes(self, outputs: Any) -> Any:
        """``[B, K]`` to ``[B, K, 2]``."""
        return yes_or_no(outputs)

    def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Binary cross-entropy, summed over the classes, ``[B]``."""
        return labels.shape[-1] * super().loss(outputs, labels)

    def probabilities(self, outputs: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """The sigmoids, ``[N, K]``."""
        return super().probabilities(self.classes(outputs), temperature)[..., 1]

    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Mean average precision over the classes that an example has; nan without any."""
        from sklearn.metrics import average_precision_score

        present = labels.any(axis=0)
        precision = [
            average_precision_score(labels[:, c], outputs[:, c]) for c in np.flatnonzero(present)
        ]
        return {"map": float(np.mean(precision)) if precision else float("nan")}
