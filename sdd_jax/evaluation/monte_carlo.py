"""The dropout ensemble of a run, one mask after another."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sdd_jax.evaluation import metrics

CURVE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)


class Ensemble(NamedTuple):
    """What ``num_samples`` masks say together.

    Attributes:
      num_samples: m.
      log_probs: logarithm of the mean probabilities, ``[N, K]``.
      entropy: of the mean, in nats, ``[N]``.
      mutual_information: between class and mask, in nats, ``[N]``.
      seconds_per_image: of m passes, from those after the first, which compiles; None of one alone.
    """

    num_samples: int
    log_probs: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray
    seconds_per_image: float | None


def monte_carlo(evaluation, num_samples: int, *, rate: float = 0.0) -> Iterator[Ensemble]:
    """The ensembles of the first m masks, for a few m up to ``num_samples``, which comes last.

    Probabilities are averaged in float64; only the running sums are kept.

    Args:
      evaluation: a :class:`sdd_jax.evaluation.Evaluation`.
      num_samples: at least 1.
      rate: of dropout on the features; 0: the network's own dropout.
    """
    probs, entropies, seconds = 0.0, 0.0, 0.0
    for m in range(1, num_samples + 1):
        start = time.perf_counter()
        logits = evaluation.sampled_logits(m - 1, rate=rate)
        seconds += time.perf_counter() - start if m > 1 else 0.0
        log_probs = metrics.log_softmax(logits)
        probs = probs + np.exp(log_probs)
        entropies = entropies + _entropy(log_probs)
        if m in CURVE or m == num_samples:
            mean = np.log(np.maximum(probs / m, np.finfo(np.float64).tiny))
            entropy = _entropy(mean)
            # Not negative by Jensen's inequality; rounding alone may say otherwise.
            information = np.maximum(entropy - entropies / m, 0)
            per_image = seconds * m / (m - 1) / len(logits) if m > 1 else None
            yield Ensemble(m, mean, entropy, information, per_image)


def _entropy(log_probs: np.ndarray) -> np.ndarray:
    probs = np.exp(log_probs)
    return -np.sum(np.where(probs > 0, probs * log_probs, 0), axis=-1)
