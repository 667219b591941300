"""The interface of the checks to a network and the split that it is evaluated on."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from sdd_jax.data import Dataset, Split
from sdd_jax.devices import replicate
from sdd_jax.dropout import dropout
from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.batching import HostArray, Network, compiled, stream
from sdd_jax.mc_dropout import DropoutEnsemble, Prediction
from sdd_jax.prng import keys_at, stream_key
from sdd_jax.runs.trained_network import TrainedNetwork
from sdd_jax.tasks import Decisions

REPORTED_SAMPLES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
# That a map is fitted to, or that are sorted; of pixels there are millions.
MOST_DECISIONS = 100_000
BATCHES_OF_FEATURES = 32  # on the host at a time


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: arrays have no hash
class EvaluationSetup:
    """The parts of a run that an evaluation needs, except the checkpoint.

    Attributes:
      model: the network.
      dataset: the data set it is trained and evaluated on.
      seed: root of the randomness of dropout masks, attacks and corruptions.
      batch_size: global batch size; rounded up to a multiple of the number of devices.
      load_dataset: loads another data set by name, with images of any shape.
      load_teachers: loads the teachers of the run; None if it has none.
      sd_dropout_rate: mean rate of the SD-Dropout masks; 0 if trained without SD-Dropout.
    """

    model: nn.Module
    dataset: Dataset
    seed: int
    batch_size: int
    load_dataset: Callable[[str], Dataset]
    load_teachers: Callable[[], Sequence[TrainedNetwork]] | None = None
    sd_dropout_rate: float = 0.0

    def mask_rate(self, rate: float = 0.0) -> float | None:
        """The rate of Monte-Carlo dropout on the features; 0: the network's own dropout; None: neither.

        Args:
          rate: a rate in place of the network's own dropout; 0: that, or else that of SD-Dropout.
        """
        if rate or any(self.model.stochastic()):
            return rate
        return self.sd_dropout_rate or None


class EnsemblePrediction(NamedTuple):
    """Predictions of the ensemble of the first ``num_samples`` samples.

    Attributes:
      num_samples: m.
      log_probs: logarithm of the mean probabilities, ``[N, K]``.
      entropy: entropy of the mean probabilities in nats, ``[N]``.
      mutual_information: mutual information between class and mask in nats, ``[N]``.
      seconds_per_image: time of m passes, extrapolated from all but the first, which compiles; None for
        m = 1.
    """

    num_samples: int
    log_probs: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray
    seconds_per_image: float | None


@dataclasses.dataclass
class Evaluator:
    """A network, its variables and the split to evaluate it on.

    Attributes:
      setup: network, data set and options.
      variables: parameters and batch statistics, on the devices.
      split: "test", "validation" or "train".
      before_batch: called before each batch; an exception it raises ends the evaluation.
    """

    setup: EvaluationSetup
    variables: Any
    split: str = "test"
    before_batch: Callable[[], None] = lambda: None

    @property
    def images(self) -> HostArray:
        """Images of the split, uint8 ``[N, H, W, C]``, or its other inputs."""
        return self.setup.dataset.splits[self.split].images

    @property
    def labels(self) -> np.ndarray:
        """Labels of the split, ``[N]``, or as the task has them."""
        return self.setup.dataset.splits[self.split].labels

    @property
    def position(self) -> np.ndarray:
        """Indices of the images in the split, int32 ``[N]``; their PRNG keys are derived from these."""
        return np.arange(len(self.labels), dtype=np.int32)

    @property
    def spread(self) -> str:
        """The network's distribution over posteriors, see :class:`sdd_jax.models.Classifier`."""
        return getattr(self.setup.model, "spread", "none")

    @functools.cached_property
    def network(self) -> Network:
        """The network with the normalisation of the data set."""
        dataset = self.setup.dataset
        mean, std = tuple(dataset.mean.tolist()), tuple(dataset.std.tolist())
        return Network(self.setup.model, mean, std, dataset.inputs, dataset.task)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """Logits of the split, ``[N, K]``, or what the task reads from the outputs; dropout off."""
        return self.logits_of(self.images)

    @functools.cached_property
    def decisions(self) -> Decisions:
        """The decisions of the task on the split: for one label per image, the logits and the labels."""
        return self.setup.dataset.task.decisions(self.logits, self.labels)

    @functools.cached_property
    def features(self) -> np.ndarray:
        """Penultimate features of the split, ``[N, D]``, dropout off."""
        return self.features_of(self.images)

    @functools.cached_property
    def some_decisions(self) -> Decisions:
        """The decisions; if an image has several, at most 100,000 of them, evenly spaced."""
        return self._some(self.decisions)

    def note_on_decisions(self) -> list[str]:
        """What a report says of :attr:`some_decisions`, if they are not all."""
        some, all_of_them = len(self.some_decisions.labels), len(self.decisions.labels)
        if some == all_of_them:
            return []
        noun = self.setup.dataset.noun
        return [f"From {some:,} of the {all_of_them:,} {noun}s, evenly spaced."]

    def some_of(self, outputs: np.ndarray) -> Decisions:
        """As :attr:`some_decisions`, of other outputs of a network for the images of the split."""
        return self._some(self.setup.dataset.task.decisions(outputs, self.labels))

    def _some(self, decisions: Decisions) -> Decisions:
        one_label = self.setup.dataset.task.one_label
        return decisions if one_label else decisions.thinned(MOST_DECISIONS)

    def summary(self) -> dict[str, float]:
        """Accuracy, top-5 accuracy (with more than five classes), NLL, Brier score and ECE.

        They are those of the task's decisions. The task's own metrics are added.
        """
        logits, labels, *_ = self.decisions
        log_probs = metrics.log_softmax(logits)
        result = metrics.compute(log_probs, labels, "accuracy")
        if log_probs.shape[-1] > 5:
            result["top5_accuracy"] = metrics.top_k_accuracy(log_probs, labels, k=5)
        result |= metrics.compute(log_probs, labels, "nll", "brier", "ece")
        return result | self.setup.dataset.task.metrics(self.logits, self.labels)

    def logits_of(self, images: HostArray) -> np.ndarray:
        """Logits ``[N, K]`` of other uint8 images ``[N, H, W, C]``."""
        return self.map(Network.logits, images)

    def features_of(self, images: HostArray) -> np.ndarray:
        """Penultimate features ``[N, D]`` of other uint8 images ``[N, H, W, C]``."""
        return self.map(Network.features, images)

    def prediction_of(self, images: HostArray) -> Prediction:
        """Mean posterior and spread of uint8 images ``[N, H, W, C]``, of a network with a ``spread``."""
        return self.map(Network.prediction, images)

    def feature_batches(self, images: HostArray) -> Iterator[np.ndarray]:
        """Penultimate features of any number of images, in order, of a bounded number at a time."""
        size = BATCHES_OF_FEATURES * self._batch_size
        for start in range(0, len(images), size):
            yield self.features_of(images[start : start + size])

    def sampled_logits(self, sample: int, *, rate: float = 0.0) -> np.ndarray:
        """Logits ``[N, K]`` under one dropout mask per image, batch norm in evaluation mode.

        The mask depends on ``sample`` and the image's index alone. The backbone runs once for all
        samples unless it has dropout inside.

        Args:
          sample: 0, 1, ...
          rate: dropout rate on the features, in place of the network's own dropout; 0: the network's.
        """
        in_backbone, _ = self.setup.model.stochastic()
        scalars = stream_key(self.setup.seed, "mc_dropout"), np.int32(sample)
        if in_backbone and not rate:
            return self.map(_sampled, self.images, self.position, scalars=scalars)
        return self.map(
            _sampled_from_features, self.features, self.position, scalars=scalars, rate=rate
        )

    def ensemble_predictions(
        self, num_samples: int, *, rate: float = 0.0
    ) -> Iterator[EnsemblePrediction]:
        """Predictions of growing ensembles of dropout masks, see :func:`ensemble_predictions`."""
        return ensemble_predictions([self], num_samples, rate=rate)

    def map(
        self, function: Callable, *arrays: HostArray, scalars: tuple = (), **static: Any
    ) -> Any:
        """Maps ``function(network, variables, *arrays, *scalars, **static)`` over all examples.

        Args:
          function: see :func:`sdd_jax.evaluation.batching.compiled`.
          *arrays: host arrays ``[N, ...]``.
          scalars: arguments that all examples share.
          **static: constants of the compilation.

        Returns:
          The function's results, as host arrays ``[N, ...]``.
        """
        mapped = self.compiled(function, **static)
        return self.stream(lambda *batch: mapped(self.variables, batch, scalars), *arrays)

    def compiled(self, function: Callable, *, gather: bool = True, **static: Any) -> Callable:
        """Compiles a function of this network, for a program of several functions."""
        return compiled(function, self.network, gather=gather, **static)

    def stream(self, program: Callable, *arrays: HostArray) -> Any:
        """Runs a program of compiled functions over all examples (at least one)."""
        return stream(program, self._batch_size, *arrays, before_batch=self.before_batch)

    def with_network(self, trained: TrainedNetwork) -> "Evaluator":
        """The evaluator of another network on the same images."""
        setup = dataclasses.replace(self.setup, model=trained.model)
        return dataclasses.replace(self, setup=setup, variables=replicate(trained.variables))

    def with_images(self, images: HostArray) -> "Evaluator":
        """The evaluator of the same network on other uint8 images ``[N, H, W, C]``, without labels."""
        split = Split(images, np.zeros(len(images), np.int32))
        splits = dict(self.setup.dataset.splits) | {self.split: split}
        dataset = dataclasses.replace(self.setup.dataset, splits=splits)
        return dataclasses.replace(self, setup=dataclasses.replace(self.setup, dataset=dataset))

    @functools.cached_property
    def _batch_size(self) -> int:
        devices = jax.device_count()
        largest = max(len(split) for split in self.setup.dataset.splits.values())
        return math.ceil(min(self.setup.batch_size, largest) / devices) * devices


def ensemble_predictions(
    members: Sequence[Evaluator], num_samples: int, *, rate: float = 0.0
) -> Iterator[EnsemblePrediction]:
    """Predictions of growing ensembles of samples: dropout masks of one network or of several in turn.

    They are those of :attr:`Evaluator.some_decisions`.

    Args:
      members: the networks, on the same images.
      num_samples: number of masks of each network in the last ensemble, at least 1. A network without
        dropout counts as often as the others, and once if none has dropout.
      rate: as in :meth:`Evaluator.sampled_logits`.

    Yields:
      The predictions of the first m samples, for the m of ``REPORTED_SAMPLES`` up to the number of all
      samples and for this number.
    """
    drops = [bool(rate) or any(member.setup.model.stochastic()) for member in members]
    total = len(members) * (num_samples if any(drops) else 1)
    ensemble, seconds = None, 0.0
    for m in range(1, total + 1):
        mask, i = divmod(m - 1, len(members))
        start = time.perf_counter()
        outputs = members[i].sampled_logits(mask, rate=rate) if drops[i] else members[i].logits
        seconds += time.perf_counter() - start if m > 1 else 0.0
        logits = members[i].some_of(outputs).logits.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinite logits give nan, as in the metrics
            ensemble = DropoutEnsemble.of(logits) if ensemble is None else ensemble.add(logits)
        if m in REPORTED_SAMPLES or m == total:
            probs, entropy, _, mutual_information = ensemble.prediction()
            log_probs = np.log(np.maximum(probs, np.finfo(np.float64).tiny))
            per_image = seconds * m / (m - 1) / len(members[0].labels) if m > 1 else None
            yield EnsemblePrediction(m, log_probs, entropy, mutual_information, per_image)


def _sampled(network, variables, images, position, key, sample):
    return network.logits(variables, images, dropout_keys=_keys(key, sample, position))


def _sampled_from_features(network, variables, features, position, key, sample, *, rate):
    keys = _keys(key, sample, position)
    dropped = dropout(keys, features, rate=rate) if rate else network.drop(features, keys)
    return network.head(variables, dropped)


def _keys(key, sample, position):
    return keys_at(jax.random.fold_in(key, sample), position)
