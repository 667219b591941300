"""Runs a network over a data set and lets checks look at the result."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sdd_jax.evaluation.checks import checks
from sdd_jax.experiment import Subject
from sdd_jax.parallel import AXIS, local_shares, replicate
from sdd_jax.trained import Trained
from sdd_jax.training.random import example_keys


class Predictor:
    """Runs a network over any number of images; each function compiles once.

    Batches are padded to one size and the padding's results dropped, so that every image counts once on
    any number of devices.

    Args:
      subject: the network and how its input is normalised.
    """

    def __init__(self, subject: Subject):
        devices = jax.device_count()
        largest = max(len(split) for split in subject.dataset.splits.values())
        wanted = min(subject.config.eval.batch_size, largest)
        self._batch_size = math.ceil(wanted / devices) * devices
        model = subject.model

        def logits(variables, images, *_):
            return model.apply(variables, subject.normalise(images), train=False)

        def features(variables, images, *_):
            return model.apply(variables, subject.normalise(images), method="features")

        def keys(position, sample):
            return example_keys(subject.config.seed, "mc_dropout", sample, position)

        def sample(variables, images, position, sample):
            return model.apply(
                variables, subject.normalise(images), dropout_keys=keys(position, sample)
            )

        def sample_of_features(variables, features, position, sample):
            dropped = model.apply({}, features, keys(position, sample), method="drop")
            return model.apply(variables, dropped, method="head")

        functions = (logits, features, sample, sample_of_features)
        self._mapped = {function.__name__: _gathered(function) for function in functions}

    def __call__(self, variables: Any, images: np.ndarray) -> np.ndarray:
        """Logits ``[N, K]`` of uint8 ``images`` ``[N, H, W, C]``, dropout off, running statistics."""
        return self._run("logits", variables, images)

    def features(self, variables: Any, images: np.ndarray) -> np.ndarray:
        """Features ``[N, D]`` of uint8 ``images`` ``[N, H, W, C]``, dropout off."""
        return self._run("features", variables, images)

    def sample(
        self, variables: Any, inputs: np.ndarray, sample: int, *, of_features: bool = False
    ) -> np.ndarray:
        """Logits ``[N, K]`` with the network's dropout on, batch norm in evaluation mode.

        Args:
          variables: parameters and batch statistics.
          inputs: uint8 images ``[N, H, W, C]``, or features ``[N, D]``.
          sample: number of the mask; an image's mask depends on it and on the image's place alone.
          of_features: whether the inputs are features.
        """
        name = "sample_of_features" if of_features else "sample"
        return self._run(name, variables, inputs, sample)

    def _run(self, name, variables, inputs, sample=0):
        pending = []
        for start in range(0, len(inputs), self._batch_size):
            batch = inputs[start : start + self._batch_size]
            padding = [(0, self._batch_size - len(batch))] + [(0, 0)] * (inputs.ndim - 1)
            position = np.arange(start, start + self._batch_size, dtype=np.int32)
            shares = local_shares(np.pad(batch, padding)), local_shares(position)
            pending.append(self._mapped[name](variables, *shares, np.int32(sample)))
        return np.concatenate(jax.device_get(pending))[: len(inputs)]


def _gathered(function):
    """``function`` on every device's share, its results gathered everywhere."""

    def gathered(*arguments):
        return jax.lax.all_gather(function(*arguments), AXIS, tiled=True)

    return jax.pmap(gathered, axis_name=AXIS, in_axes=(None, 0, 0, None), out_axes=None)


@dataclasses.dataclass
class Evaluation:
    """What a check may look at, and where it may leave a figure.

    Attributes:
      subject: config, data set and network.
      variables: the network's parameters and batch statistics.
      split: the split that is evaluated.
      predictor: runs the network.
      folder: for figures; None for none.
      tables: for the terminal; a check may add one.
    """

    subject: Subject
    variables: Any
    split: str = "test"
    predictor: Predictor | None = None
    folder: pathlib.Path | None = None
    tables: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.predictor = self.predictor or Predictor(self.subject)

    @property
    def images(self) -> np.ndarray:
        """``[N, H, W, C]`` uint8."""
        return self.subject.dataset.splits[self.split].images

    @property
    def labels(self) -> np.ndarray:
        """``[N]``."""
        return self.subject.dataset.splits[self.split].labels

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """``[N, K]``, computed when first asked for."""
        return self.predictor(self.variables, self.images)

    def sampled_logits(self, sample: int) -> np.ndarray:
        """``[N, K]`` under dropout mask number ``sample``; the backbone runs once if it has none."""
        in_backbone, _ = self.subject.model.stochastic()
        inputs = self.images if in_backbone else self._features
        return self.predictor.sample(self.variables, inputs, sample, of_features=not in_backbone)

    @functools.cached_property
    def _features(self) -> np.ndarray:
        return self.predictor.features(self.variables, self.images)

    def of(self, trained: Trained) -> "Evaluation":
        """The evaluation of another network on the same images."""
        subject = dataclasses.replace(self.subject, model=trained.model)
        return Evaluation(subject, replicate(trained.variables), self.split)

    def save_figure(self, name: str, draw: Callable[[Any], None]) -> None:
        """Lets ``draw`` fill the axes of a new figure and saves it as ``folder/name``."""
        if self.folder is None:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
        draw(figure.subplots())
        self.folder.mkdir(exist_ok=True)
        figure.savefig(self.folder / name)


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
