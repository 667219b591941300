"""Monte-Carlo dropout: the predictive distribution of a network whose dropout stays on."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdd_jax.losses._precision import at_least_float32


class Prediction(NamedTuple):
    """What a dropout ensemble says of each example.

    Attributes:
      probs: mean of the masks' probabilities, ``[..., K]``.
      entropy: of that mean, in nats, ``[...]``: the total uncertainty.
      expected_entropy: mean of the masks' entropies: what remains when the network is known.
      mutual_information: their difference I(y; mask | x): how much the masks disagree. Its mean over
        inputs is the floor of the Dropout-Distillation loss.
    """

    probs: jax.Array
    entropy: jax.Array
    expected_entropy: jax.Array
    mutual_information: jax.Array


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

    Args:
      predict_fn: PRNG key to logits ``[..., K]``: dropout on, batch norm in evaluation mode. Compute
        what dropout does not touch before, so that it is not repeated: with dropout before the head
        alone, ``lambda key: head(dropout(key, features, rate=0.5))``.
      key: a PRNG key; the masks are a function of it and of ``num_samples`` alone.
      num_samples: m, at least 1.
      chunk_size: masks that are computed together, by vmap; 1 if not given.

    Returns:
      The prediction, in float32 or better.

    Raises:
      ValueError: ``num_samples`` or ``chunk_size`` below 1.

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

    def sums(keys):
        log_probs = jax.nn.log_softmax(at_least_float32(jax.vmap(predict_fn)(keys)))
        probs = jnp.exp(log_probs)
        return jnp.sum(probs, axis=0), -jnp.sum(probs * log_probs, axis=(0, -1))

    def add(total, keys):
        return jax.tree.map(jnp.add, total, sums(keys))

    total = sums(chunks[0])
    if isinstance(key, jax.core.Tracer):
        total, _ = jax.lax.scan(lambda total, keys: (add(total, keys), None), total, chunks[1:])
    else:
        for chunk in chunks[1:]:
            total = add(total, chunk)
    if whole < num_samples:
        total = add(total, keys[whole:])
    probs, expected_entropy = jax.tree.map(lambda x: x / num_samples, total)
    entropy = jnp.sum(jax.scipy.special.entr(probs), axis=-1)
    # Not negative by Jensen's inequality; rounding alone may say otherwise.
    mutual_information = jnp.maximum(entropy - expected_entropy, 0)
    return Prediction(probs, entropy, expected_entropy, mutual_information)
