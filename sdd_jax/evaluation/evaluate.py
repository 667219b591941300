"""One network on one split of a data set: what checks look at."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from sdd_jax.dropout import dropout
from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.network import Network, compiled, stream
from sdd_jax.parallel import replicate
from sdd_jax.training.random import keys_at, stream_key

if TYPE_CHECKING:  # the config of an experiment lists the checks' options
    from sdd_jax.experiment import Subject
    from sdd_jax.trained import Trained


@dataclasses.dataclass
class Evaluation:
    """A network, its parameters and the images to evaluate it on.

    Attributes:
      subject: config, data set and network.
      variables: the network's parameters and batch statistics, on the devices.
      split: the split that is evaluated.
      before_batch: called before each batch; what it raises ends the evaluation.
    """

    subject: "Subject"
    variables: Any
    split: str = "test"
    before_batch: Callable[[], None] = lambda: None

    @property
    def images(self) -> np.ndarray:
        """``[N, H, W, C]`` uint8."""
        return self.subject.dataset.splits[self.split].images

    @property
    def labels(self) -> np.ndarray:
        """``[N]``."""
        return self.subject.dataset.splits[self.split].labels

    @property
    def position(self) -> np.ndarray:
        """Places of the images in the split, ``[N]``: what randomness of an image depends on."""
        return np.arange(len(self.labels), dtype=np.int32)

    @functools.cached_property
    def network(self) -> Network:
        """The network and its normalisation."""
        mean, std = (
            tuple(v.tolist()) for v in (self.subject.dataset.mean, self.subject.dataset.std)
        )
        return Network(self.subject.model, mean, std)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """``[N, K]``, dropout off, running statistics; computed when first asked for."""
        return self.logits_of(self.images)

    def summary(self) -> dict[str, float]:
        """Accuracy, top-5 accuracy (of more than five classes), NLL, Brier score and ECE."""
        log_probs, labels = metrics.log_softmax(self.logits), self.labels
        result = metrics.scores(log_probs, labels, "accuracy")
        if log_probs.shape[-1] > 5:
            result["top5_accuracy"] = metrics.top_k_accuracy(log_probs, labels, k=5)
        return result | metrics.scores(log_probs, labels, "nll", "brier", "ece")

    def logits_of(self, images: np.ndarray) -> np.ndarray:
        """Logits ``[N, K]`` of other uint8 images ``[N, H, W, C]``."""
        return self.map(Network.logits, images)

    def sampled_logits(self, sample: int, *, rate: float = 0.0) -> np.ndarray:
        """Logits ``[N, K]`` under dropout mask number ``sample``, batch norm in evaluation mode.

        An image's mask depends on the number and on the image's place alone. The backbone runs once if
        dropout does not reach into it.

        Args:
          sample: 0, 1, ...
          rate: of dropout on the features, in place of the network's own dropout, if it is not zero.
        """
        in_backbone, _ = self.subject.model.stochastic()
        scalars = stream_key(self.subject.config.seed, "mc_dropout"), np.int32(sample)
        if in_backbone and not rate:
            return self.map(_sample, self.images, self.position, scalars=scalars)
        return self.map(
            _sample_of_features, self._features, self.position, scalars=scalars, rate=rate
        )

    def map(self, function: Callable, *arrays: np.ndarray, scalars: tuple = (), **static) -> Any:
        """``function(network, variables, *arrays, *scalars, **static)`` over all examples.

        Args:
          function: see :func:`sdd_jax.evaluation.network.compiled`.
          *arrays: host arrays ``[N, ...]``.
          scalars: the same for all examples.
          **static: constants of the compilation.

        Returns:
          What the function returns, as host arrays ``[N, ...]``.
        """
        mapped = self.compiled(function, **static)
        return self.stream(lambda *shares: mapped(self.variables, shares, scalars), *arrays)

    def compiled(self, function: Callable, *, gather: bool = True, **static) -> Callable:
        """The compiled function of this network, for a program of several."""
        return compiled(function, self.network, gather=gather, **static)

    def stream(self, program: Callable, *arrays: np.ndarray) -> Any:
        """Runs a program of compiled functions over all examples; empty arrays are refused."""
        return stream(program, self._batch_size, *arrays, before_batch=self.before_batch)

    def of(self, trained: "Trained") -> "Evaluation":
        """The evaluation of another network on the same images."""
        subject = dataclasses.replace(self.subject, model=trained.model)
        return dataclasses.replace(self, subject=subject, variables=replicate(trained.variables))

    @functools.cached_property
    def _features(self) -> np.ndarray:
        return self.map(Network.features, self.images)

    @functools.cached_property
    def _batch_size(self) -> int:
        devices = jax.device_count()
        largest = max(len(split) for split in self.subject.dataset.splits.values())
        wanted = min(self.subject.config.eval.batch_size, largest)
        return math.ceil(wanted / devices) * devices


def _sample(network, variables, images, position, key, sample):
    return network.logits(variables, images, dropout_keys=_keys(key, sample, position))


def _sample_of_features(network, variables, features, position, key, sample, *, rate):
    keys = _keys(key, sample, position)
    dropped = dropout(keys, features, rate=rate) if rate else network.drop(features, keys)
    return network.head(variables, dropped)


def _keys(key, sample, position):
    return keys_at(jax.random.fold_in(key, sample), position)
