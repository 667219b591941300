"""Monte-Carlo dropout: the predictive distribution of a network whose dropout stays on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


class Prediction(NamedTuple):
    """Per-example predictions of a dropout ensemble.

    Attributes:
      probs: mean of the masks' probabilities, ``[..., K]``.
      entropy: entropy of that mean in nats, ``[...]``: the total uncertainty.
      expected_entropy: mean of the masks' entropies, the uncertainty that remains given a mask.
      mutual_information: their difference I(y; mask | x), the disagreement between masks. Its mean over
        inputs is the minimum of the Dropout-Distillation loss.
    """

    probs: Any
    entropy: Any
    expected_entropy: Any
    mutual_information: Any


class DropoutEnsemble(NamedTuple):
    """Running sums over the masks of a dropout ensemble.

    The logits are JAX arrays (the ensemble may be the carry of a ``jax.lax.scan``), or NumPy arrays,
    which keep float64. Half precision is summed in float32.

    Attributes:
      count: number of masks.
      probs: sum of their probabilities, ``[..., K]``.
      entropies: sum of their entropies in nats, ``[...]``.

    Example:
      >>> import numpy as np, sdd_jax
      >>> ensemble = sdd_jax.DropoutEnsemble.of(np.array([0.0, 9.0])).add(np.array([9.0, 0.0]))
      >>> prediction = ensemble.prediction()
      >>> print(prediction.probs, prediction.mutual_information.round(4))
      [0.5 0.5] 0.6919
    """

    count: Any
    probs: Any
    entropies: Any

    @staticmethod
    def of(logits: Array, *, sample_axis: int | None = None) -> "DropoutEnsemble":
        """Creates the ensemble of one mask, or of several along an axis.

        Args:
          logits: ``[..., K]``, or with an additional axis for several masks.
          sample_axis: that axis, other than the last.

        Raises:
          TypeError: logits are not an array.
        """
        if not isinstance(logits, Array):
            raise TypeError(f"logits must be an array [..., K], got {type(logits).__name__}")
        xp: Any = logits.__array_namespace__()
        stacked = logits[None] if sample_axis is None else xp.moveaxis(logits, sample_axis, 0)
        if jnp.finfo(stacked.dtype).bits < 32:
            stacked = stacked.astype(xp.float32)
        shifted = stacked - xp.max(stacked, axis=-1, keepdims=True)
        log_probs = shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
        probs = xp.exp(log_probs)
        entropies = -xp.sum(probs * xp.where(probs > 0, log_probs, 0), axis=(0, -1))
        return DropoutEnsemble(len(stacked), xp.sum(probs, axis=0), entropies)

    def add(self, logits: Array, *, sample_axis: int | None = None) -> "DropoutEnsemble":
        """Returns the ensemble with more masks, given as in :meth:`of`.

        Raises:
          TypeError: logits are not an array.
          ValueError: logits are not of the ensemble's shape.
        """
        added = DropoutEnsemble.of(logits, sample_axis=sample_axis)
        if added.probs.shape != self.probs.shape:
            raise ValueError(
                f"logits of a mask must have the ensemble's shape {self.probs.shape}, got "
                f"{added.probs.shape}"
            )
        return DropoutEnsemble(*(old + new for old, new in zip(self, added, strict=True)))

    def prediction(self) -> Prediction:
        """Returns the prediction of the masks added so far."""
        xp = self.probs.__array_namespace__()
        probs, expected_entropy = self.probs / self.count, self.entropies / self.count
        entropy = -xp.sum(probs * xp.log(xp.where(probs > 0, probs, 1)), axis=-1)
        # Jensen's inequality: negative by rounding only.
        mutual_information = xp.maximum(entropy - expected_entropy, 0)
        return Prediction(probs, entropy, expected_entropy, mutual_information)


def mc_dropout(
    predict_fn: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    *,
    num_samples: int,
    chunk_size: int | None = None,
) -> Prediction:
    r"""Averages the predictions of ``num_samples`` dropout masks.

    .. math:: \bar p = \frac{1}{m} \sum_{i=1}^m p_{\sigma_i}, \qquad
              I(y; \sigma) \approx H[\bar p] - \frac{1}{m} \sum_{i=1}^m H[p_{\sigma_i}]

    Probabilities are averaged, not logits. The mean is a running one: memory grows with ``chunk_size``,
    not with ``num_samples``. Inside ``jit`` the samples run in a loop of XLA; outside, in a loop of
    Python, where ``predict_fn`` should be a jitted function.

    The entropy of the mean, and with it the mutual information, is biased low: by about
    :math:`I / m`, in practice 0.1/m to 0.4/m nats, and by all of :math:`I` for one mask.

    Args:
      predict_fn: PRNG key to logits ``[..., K]``, with dropout on and batch norm in evaluation mode.
        Compute whatever does not depend on dropout outside of it, so that it is not repeated: with
        dropout before the head alone, ``lambda key: head(dropout(key, features, rate=0.5))``.
      key: a PRNG key. The masks depend on it and on ``num_samples`` alone.
      num_samples: m, at least 1.
      chunk_size: number of masks computed together, by vmap; 1 by default.

    Returns:
      The prediction, in float32 or float64.

    Raises:
      ValueError: ``num_samples`` or ``chunk_size`` below 1.
      TypeError: ``predict_fn`` returns something else than an array.

    Example:
      >>> import jax, sdd_jax
      >>> features, kernel = jax.numpy.ones((4, 8)), jax.numpy.eye(8, 3)
      >>> predict_fn = lambda key: sdd_jax.dropout(key, features, rate=0.5) @ kernel
      >>> prediction = sdd_jax.mc_dropout(predict_fn, jax.random.key(0), num_samples=10)
      >>> prediction.probs.shape, prediction.mutual_information.shape
      ((4, 3), (4,))

    References:
      Gal and Ghahramani, `Dropout as a Bayesian Approximation <https://arxiv.org/abs/1506.02142>`_,
      2016.
    """
    chunk_size = 1 if chunk_size is None else min(chunk_size, num_samples)
    if num_samples < 1 or chunk_size < 1:
        raise ValueError(
            f"num_samples and chunk_size must be at least 1, got {num_samples} and {chunk_size}"
        )
    keys = jax.random.split(key, num_samples)
    whole = num_samples // chunk_size * chunk_size
    chunks = keys[:whole].reshape(-1, chunk_size, *keys.shape[1:])

    def predict(keys):
        logits = jax.vmap(predict_fn)(keys)
        if not isinstance(logits, Array):
            raise TypeError(
                f"predict_fn must return logits [..., K], an array, got {type(logits).__name__}"
            )
        return logits

    def add(ensemble, keys):
        return ensemble.add(predict(keys), sample_axis=0)

    ensemble = DropoutEnsemble.of(predict(chunks[0]), sample_axis=0)
    if isinstance(key, jax.core.Tracer):
        ensemble, _ = jax.lax.scan(lambda e, keys: (add(e, keys), None), ensemble, chunks[1:])
    else:
        for chunk in chunks[1:]:
            ensemble = add(ensemble, chunk)
    if whole < num_samples:
        ensemble = add(ensemble, keys[whole:])
    return ensemble.prediction()
