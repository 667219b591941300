"""SD-Dropout, added to any objective."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.dropout import Rate
from sdd_jax.errors import InputError, check
from sdd_jax.objectives.base import Objective, Term, objectives


def build(options: Mapping[str, Any], sd_dropout: Mapping[str, Any], **context: Any) -> Objective:
    """The objective of a config: a base objective, and SD-Dropout on top unless its weight is 0.

    Args:
      options: ``config.objective``: the name and the objective's own options.
      sd_dropout: ``config.sd_dropout``.
      **context: what the program provides to objectives that ask for it: ``load_teacher``.

    Raises:
      InputError: unknown name, option or value.
    """
    base = objectives.build(options, **context)
    sd_dropout = dict(sd_dropout)
    weight, rate, random_rate, temperature = (
        sd_dropout[k] for k in ("weight", "rate", "random_rate", "temperature")
    )
    gradient, num_samples = sd_dropout["gradient"], sd_dropout["num_samples"]
    check(weight >= 0, "config.sd_dropout.weight", weight, "0 or more")
    check(0 <= rate < 1, "config.sd_dropout.rate", rate, "in [0, 1)")
    check(
        len(random_rate) in (0, 2)
        and min(random_rate, default=0) >= 0
        and max(random_rate, default=0) < 1
        and list(random_rate) == sorted(random_rate),
        "config.sd_dropout.random_rate",
        tuple(random_rate),
        "empty or (low, high) with 0 <= low <= high < 1",
    )
    check(temperature > 0, "config.sd_dropout.temperature", temperature, "greater than 0")
    check(num_samples >= 2, "config.sd_dropout.num_samples", num_samples, "at least 2")
    allowed = losses.GRADIENTS
    check(
        gradient in allowed, "config.sd_dropout.gradient", gradient, f"one of {', '.join(allowed)}"
    )
    lowest = min(random_rate, default=rate)
    if sd_dropout["exclusive"] and num_samples * (1 - lowest) > 1 + 1e-6:
        raise InputError(
            "config.sd_dropout.exclusive: disjoint masks need num_samples * (1 - rate) <= 1, got "
            f"{num_samples} * (1 - {lowest})"
        )
    if weight == 0:
        return base
    return with_sd_dropout(
        base,
        weight,
        rate=tuple(random_rate) or rate,
        temperature=temperature,
        num_samples=num_samples,
        gradient=gradient,
        exclusive=sd_dropout["exclusive"],
    )


def with_sd_dropout(
    base: Objective,
    weight: float = 1.0,
    *,
    rate: Rate = 0.5,
    temperature: float = 3.0,
    num_samples: int = 2,
    gradient: str = "both",
    exclusive: bool = False,
) -> Objective:
    """Adds the SD-Dropout term to any objective, on the features that the objective used.

    It also logs, of the dropped posteriors: their mean entropy (nats), and the share of mask pairs
    that agree on the class.

    Args:
      base: the objective to add to.
      weight: lambda; 1 in the paper when alone, 0.1 beside another self-distillation method.
      rate: dropout rate, or ``(low, high)`` for a random one.
      temperature: T > 0.
      num_samples: number of masks.
      gradient: "both", "forward" or "reverse".
      exclusive: draw disjoint masks.

    Returns:
      The objective ``base + weight * sd_dropout``.
    """

    def loss(forward, batch, keys):
        output = base.loss(forward, batch, keys)
        logits = losses.dropped_logits(
            output.view.features,
            output.view.head,
            keys("sd_dropout"),
            rate=rate,
            num_samples=num_samples,
            exclusive=exclusive,
        )
        divergence = losses.pairwise_symmetric_kl(
            logits, temperature=temperature, gradient=gradient
        )
        return dataclasses.replace(
            output,
            terms=output.terms | {"sd_dropout": Term(temperature**2 * divergence, weight)},
            metrics=output.metrics | _diagnostics(jax.lax.stop_gradient(logits)),
        )

    return dataclasses.replace(base, loss=loss)


def _diagnostics(logits: list[jax.Array]) -> dict[str, jax.Array]:
    """Does the term do anything? Entropy of the dropped posteriors, and how often they agree."""
    classes = [jnp.argmax(z, axis=-1) for z in logits]
    pairs = [(a == b).astype(jnp.float32) for i, a in enumerate(classes) for b in classes[i + 1 :]]
    return {
        "sd_dropout/entropy": sum(losses.entropy(z) for z in logits) / len(logits),
        "sd_dropout/agreement": sum(pairs) / len(pairs),
    }
