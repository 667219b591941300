"""SD-Dropout, added to any objective."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.dropout import Rate, dropout_samples
from sdd_jax.errors import InputError, check
from sdd_jax.objectives.base import Objective, Term, objectives


def build(
    options: Mapping[str, Any], sd_dropout: Mapping[str, Any], *, model: nn.Module, **context: Any
) -> Objective:
    """The objective of a config: a base objective, and SD-Dropout on top unless its weight is 0.

    Args:
      options: ``config.objective``: the name and the objective's own options.
      sd_dropout: ``config.sd_dropout``.
      model: the network.
      **context: what the program provides to objectives that ask for it, beside the model:
        ``image_shape``, ``axis_name``, ``load_teacher``.

    Raises:
      InputError: unknown name, option or value.
    """
    base = objectives.build(options, model=model, **context)
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
    ramp, position = sd_dropout["ramp"], sd_dropout["position"]
    check(0 <= ramp <= 1, "config.sd_dropout.ramp", ramp, "in [0, 1]")
    stages = model.num_stages()
    where = f"0 (the features) or one of the network's {stages} stages"
    check(0 <= position <= stages, "config.sd_dropout.position", position, where)
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
        position=position,
        ramp=ramp,
        gradient_cosine=sd_dropout["gradient_cosine"],
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
    position: int = 0,
    ramp: float = 0.0,
    gradient_cosine: bool = False,
) -> Objective:
    """Adds the SD-Dropout term to any objective, on the features that the objective used.

    Of an objective that sees each image in two views the masks fall on the two in turn, as the authors
    combine SD-Dropout with DDGSD.

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
      position: 0 for masks on the features; s for masks on what the network's stage s gave, so that the
        rest of the network runs once for each mask.
      ramp: share of the run over which the weight grows linearly from 0.
      gradient_cosine: also log the cosine between the gradients of the term that go through the
        prediction and through the target of each divergence ("forward" and "reverse"), with respect to
        what the masks fall on. Costs two more backward passes from there.

    Returns:
      The objective ``base + weight * sd_dropout``.
    """

    def loss(forward, batch, keys):
        output = base.loss(forward, batch, keys)
        views = [output.view] if output.other_view is None else [output.view, output.other_view]
        points = [view.stages[position - 1] if position else view.features for view in views]

        def dropped_logits(points):
            options = {"rate": rate, "num_samples": num_samples, "exclusive": exclusive}
            masked = [dropout_samples(keys("sd_dropout"), x, **options) for x in points]
            samples = [masked[i % len(points)][i] for i in range(num_samples)]
            if position:
                return [output.view.resume(sample, position) for sample in samples]
            return losses.head_of_each(output.view.head, samples)

        def term(logits, gradient):
            divergence = losses.pairwise_symmetric_kl(
                logits, temperature=temperature, gradient=gradient
            )
            return temperature**2 * divergence

        logits = dropped_logits(points)
        metrics = _diagnostics(jax.lax.stop_gradient(logits))
        if gradient_cosine:
            forward_gradient, reverse_gradient = (
                jax.grad(lambda x, kind=kind: jnp.sum(term(dropped_logits(x), kind)))(
                    jax.lax.stop_gradient(points)
                )
                for kind in ("forward", "reverse")
            )
            metrics["sd_dropout/gradient_cosine"] = _cosine(forward_gradient, reverse_gradient)
        grown = jnp.minimum(batch.clock.progress / ramp, 1.0) if ramp else 1.0
        return dataclasses.replace(
            output,
            terms=output.terms | {"sd_dropout": Term(term(logits, gradient), weight * grown)},
            metrics=output.metrics | metrics,
        )

    return dataclasses.replace(base, loss=loss)


def _cosine(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """Between two gradients, example by example ``[B]``; 0 where one is zero."""

    def product(x, y):
        return sum(jnp.sum((u * v).reshape(len(u), -1), axis=-1) for u, v in zip(x, y, strict=True))

    lengths = jnp.sqrt(product(a, a) * product(b, b))
    return jnp.where(lengths > 0, product(a, b) / jnp.where(lengths > 0, lengths, 1.0), 0.0)


def _diagnostics(logits: list[jax.Array]) -> dict[str, jax.Array]:
    """Does the term do anything? Entropy of the dropped posteriors, and how often they agree."""
    classes = [jnp.argmax(z, axis=-1) for z in logits]
    pairs = [(a == b).astype(jnp.float32) for i, a in enumerate(classes) for b in classes[i + 1 :]]
    return {
        "sd_dropout/entropy": sum(losses.entropy(z) for z in logits) / len(logits),
        "sd_dropout/agreement": sum(pairs) / len(pairs),
    }
