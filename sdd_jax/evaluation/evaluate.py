"""Runs a network over a data set and lets checks look at the result."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sdd_jax.evaluation.checks import checks
from sdd_jax.experiment import Subject
from sdd_jax.parallel import AXIS, local_shares


class Predictor:
    """Logits of any number of images, compiled once.

    Batches are padded to one size and the padding's logits dropped, so that every image counts once on
    any number of devices.

    Args:
      subject: the network and how its input is normalised.
    """

    def __init__(self, subject: Subject):
        devices = jax.device_count()
        largest = max(len(split) for split in subject.dataset.splits.values())
        wanted = min(subject.config.eval.batch_size, largest)
        self._batch_size = math.ceil(wanted / devices) * devices

        def predict(variables, images):
            logits = subject.model.apply(variables, subject.normalise(images), train=False)
            return jax.lax.all_gather(logits, AXIS, tiled=True)

        self._predict = jax.pmap(predict, axis_name=AXIS, in_axes=(None, 0), out_axes=None)

    def __call__(self, variables: Any, images: np.ndarray) -> np.ndarray:
        """Logits ``[N, K]`` of uint8 ``images`` ``[N, H, W, C]``, dropout off, running statistics."""
        pending = []
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            padding = [(0, self._batch_size - len(batch))] + [(0, 0)] * (images.ndim - 1)
            shares = local_shares(np.pad(batch, padding))
            pending.append(self._predict(variables, shares))
        return np.concatenate(jax.device_get(pending))[: len(images)]


@dataclasses.dataclass
class Evaluation:
    """What a check may look at.

    Attributes:
      subject: config, data set and network.
      predictor: runs the network.
      variables: its parameters and batch statistics.
      split: the split that is evaluated.
    """

    subject: Subject
    predictor: Predictor
    variables: Any
    split: str = "test"

    def __post_init__(self):
        self._logits: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """``[N]``."""
        return self.subject.dataset.splits[self.split].labels

    @property
    def logits(self) -> np.ndarray:
        """``[N, K]``, computed when first asked for."""
        if self._logits is None:
            images = self.subject.dataset.splits[self.split].images
            self._logits = self.predictor(self.variables, images)
        return self._logits


def evaluate(
    evaluation: Evaluation, names: Sequence[str], *, prefix: str = "eval"
) -> dict[str, float]:
    """The figures of the named checks, as ``{"PREFIX/METRIC": value}``.

    Raises:
      InputError: an unknown check.
    """
    functions = [checks.get(name) for name in names]
    return {
        f"{prefix}/{metric}": value
        for function in functions
        for metric, value in function(evaluation).items()
    }
