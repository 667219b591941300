"""Out-of-distribution detectors by name: scores of images, fitted to the training split where needed.

A detector is a function here, or in a file of ``config.imports``, that returns a :class:`Detector`. Its
arguments are any of ``training``, ``odin_temperature`` and ``odin_epsilon``. The scores themselves are
functions of arrays in :mod:`sdd_jax.evaluation.metrics`; a higher score means more in-distribution.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from sdd_jax.evaluation import attacks, metrics
from sdd_jax.evaluation.batching import HostArray, Network
from sdd_jax.evaluation.evaluator import Evaluator
from sdd_jax.registry import Registry

detectors = Registry("sdd_jax.evaluation.detectors", "eval.ood_detectors")

BANK = 50_000  # training images whose features are kept


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of the network for some images, computed when a detector first reads them."""

    evaluator: Evaluator
    images: HostArray

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """Logits, ``[N, K]``."""
        known = self.images is self.evaluator.images
        return self.evaluator.logits if known else self.evaluator.logits_of(self.images)

    @functools.cached_property
    def features(self) -> np.ndarray:
        """Penultimate features, ``[N, D]``."""
        known = self.images is self.evaluator.images
        return self.evaluator.features if known else self.evaluator.features_of(self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Features of the training split without augmentation, and the head, computed when first read.

    One pass over the split gives the moments of all features and keeps those of at most ``BANK`` images,
    chosen by the run's seed.
    """

    evaluator: Evaluator

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return len(self.evaluator.setup.dataset.splits["train"])

    @property
    def is_computed(self) -> bool:
        """Whether a detector has read the features."""
        return "_fitted" in vars(self)

    @property
    def moments(self) -> metrics.FeatureMoments:
        """Moments of the features of all training images."""
        return self._fitted[0]

    @property
    def bank(self) -> np.ndarray:
        """Features of the chosen images, ``[M, D]``."""
        return self._fitted[1]

    @functools.cached_property
    def _fitted(self) -> tuple[metrics.FeatureMoments, np.ndarray]:
        setup = self.evaluator.setup
        split, bank = setup.dataset.splits["train"], []
        kept = np.zeros(len(split), bool)
        rng = np.random.default_rng(setup.seed)
        kept[rng.choice(len(split), min(BANK, len(split)), replace=False)] = True

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            start = 0
            for features in self.evaluator.feature_batches(split.images):
                part = slice(start, start + len(features))
                bank.append(features[kept[part]])
                yield features, split.labels[part]
                start = part.stop

        moments = metrics.feature_moments(batches(), setup.dataset.num_classes)
        return moments, np.concatenate(bank)

    @functools.cached_property
    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel ``[D, K]`` and bias ``[K]`` of the linear head, from its outputs for unit vectors."""
        width = self.evaluator.features.shape[1]
        logits = self.evaluator.map(Network.head, np.eye(width + 1, width, -1, dtype=np.float32))
        return logits[1:] - logits[0], logits[0]

    def energy(self, features: np.ndarray) -> np.ndarray:
        """The negative energy of the logits of changed features ``[N, D]``, ``[N]``."""
        kernel, bias = self.head
        with np.errstate(invalid="ignore"):  # nan where a feature is infinite
            return metrics.negative_energy(features @ kernel + bias)


@dataclasses.dataclass(frozen=True)
class Detector:
    """A detector, fitted.

    Attributes:
      title: its name in tables and plots.
      score: scores ``[N]`` of the outputs for N images.
      log: whether the scores are logarithms.
    """

    title: str
    score: Callable[[Outputs], np.ndarray]
    log: bool = False


@detectors.register("msp")
def msp() -> Detector:
    """Maximum softmax probability."""
    score = metrics.maximum_softmax_probability
    return Detector("MSP", lambda outputs: score(outputs.logits), log=True)


@detectors.register("max_logit")
def max_logit() -> Detector:
    """Maximum logit."""
    return Detector("Max logit", lambda outputs: metrics.maximum_logit(outputs.logits))


@detectors.register("energy")
def energy() -> Detector:
    """Energy."""
    return Detector("Energy", lambda outputs: metrics.negative_energy(outputs.logits))


@detectors.register("gen")
def gen() -> Detector:
    """Generalised entropy."""
    return Detector("GEN", lambda outputs: metrics.negative_generalized_entropy(outputs.logits))


@detectors.register("odin")
def odin(odin_temperature: float, odin_epsilon: float) -> Detector:
    """MSP at a high temperature, after a step of the pixels towards the predicted class."""
    scalars = np.float32(odin_temperature), np.float32(255 * odin_epsilon)

    def score(outputs: Outputs) -> np.ndarray:
        moved = outputs.evaluator.map(_odin_logits, outputs.images, scalars=scalars)
        return metrics.maximum_softmax_probability(moved, temperature=odin_temperature)

    return Detector("ODIN", score, log=True)


def _odin_logits(network, variables, images, temperature, epsilon):
    logits_fn = functools.partial(network.logits, variables)
    images = images.astype(jnp.float32)
    moved = attacks.odin_inputs(logits_fn, images, epsilon, temperature=temperature)
    return network.logits(variables, moved)


@detectors.register("react")
def react(training: Training) -> Detector:
    """Energy of features that are clipped at the 90th percentile of the training features."""
    threshold = float(np.percentile(training.bank, 90))
    return Detector(
        "ReAct",
        lambda outputs: training.energy(metrics.react(outputs.features, threshold=threshold)),
    )


@detectors.register("ash")
def ash(training: Training) -> Detector:
    """Energy of the largest tenth of each feature, scaled (ASH-S)."""
    return Detector("ASH-S", lambda outputs: training.energy(metrics.ash_s(outputs.features)))


@detectors.register("vim")
def vim(training: Training) -> Detector:
    """Virtual-logit matching."""
    fitted = metrics.fit_virtual_logit(training.moments, training.bank, *training.head)
    return Detector(
        "ViM", lambda outputs: metrics.virtual_logit(outputs.features, outputs.logits, fitted)
    )


@detectors.register("mahalanobis")
def mahalanobis(training: Training) -> Detector:
    """Mahalanobis distance to the nearest class."""
    moments = training.moments
    return Detector("Mahalanobis", lambda outputs: metrics.mahalanobis(outputs.features, moments))


@detectors.register("relative_mahalanobis")
def relative_mahalanobis(training: Training) -> Detector:
    """The same, relative to one Gaussian for all classes."""
    moments = training.moments
    return Detector(
        "Relative Mahalanobis",
        lambda outputs: metrics.relative_mahalanobis(outputs.features, moments),
    )


@detectors.register("knn")
def knn(training: Training) -> Detector:
    """Distance to the 50th nearest training image, or to the last of fewer."""
    bank = training.bank
    k = min(50, len(bank))
    return Detector(
        "kNN", lambda outputs: metrics.negative_neighbour_distance(outputs.features, bank, k=k)
    )
