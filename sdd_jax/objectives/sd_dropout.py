"""SD-Dropout, added to any objective."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from annotated_types import Interval

from sdd_jax import losses
from sdd_jax.dropout import dropout_samples
from sdd_jax.objectives.base import Objective, Term, objectives
from sdd_jax.options import Count, Fraction, NonNegative, Positive, Rate


def build(options: Mapping[str, Any], sd_dropout: Mapping[str, Any], **context: Any) -> Objective:
    """Builds a base objective, with SD-Dropout on top unless its weight is 0.

    Args:
      options: the name of the base objective and its options.
      sd_dropout: options of :func:`with_sd_dropout`, among them ``weight``.
      **context: the program's arguments for objectives: ``model``, ``image_shape``, ``axis_name``,
        ``load_teachers``.

    Raises:
      InputError: unknown name, option or value.
    """
    base = objectives.build(options, **context)
    return base if sd_dropout["weight"] == 0 else with_sd_dropout(base, **sd_dropout)


def with_sd_dropout(
    base: Objective,
    weight: NonNegative = 1.0,
    *,
    rate: Rate = 0.5,
    random_rate: tuple[Rate, ...] = (),
    temperature: Positive = 3.0,
    num_samples: Annotated[int, Interval(ge=2, le=1000)] = 2,
    gradient: Literal["both", "forward", "reverse"] = "both",
    exclusive: bool = False,
    position: Count = 0,
    channel_masks: bool = False,
    ramp: Fraction = 0.0,
    gradient_cosine: bool = False,
) -> Objective:
    """Adds the SD-Dropout term to any objective, on the features of its own pass.

    For an objective with two views of each image, masks alternate between the views, as the authors
    combine SD-Dropout with DDGSD.

    The term is :func:`sdd_jax.losses.sd_dropout_loss_from_logits`, as the task applies it. Two
    diagnostics are logged beside it: ``sd_dropout/entropy``, the mean entropy of the dropped posteriors
    in nats, and ``sd_dropout/agreement``, the fraction of pairs of masks that predict the same class.

    Args:
      base: the objective to add to.
      weight: lambda; 1 in the paper when alone, 0.1 beside another self-distillation method.
      rate: dropout rate beta.
      random_rate: ``(low, high)`` to draw a rate for each example, in place of ``rate``.
      temperature: T > 0.
      num_samples: number of masks; the term is the mean over their pairs.
      gradient: "both", "forward" (the authors' detach) or "reverse".
      exclusive: draw disjoint masks.
      position: 0 to mask the features; s to mask the output of the network's stage s, so that the rest
        of the network runs once for each mask.
      channel_masks: where the masked array has locations, as in segmentation, share one mask over all
        locations of an example, so that whole channels are dropped.
      ramp: fraction of the run over which the weight grows linearly from 0.
      gradient_cosine: also log ``sd_dropout/gradient_cosine``, the cosine between the gradients of the
        term through the prediction and through the target of each divergence, with respect to the masked
        array. This costs two more backward passes, down to that array.

    Returns:
      The objective ``base + weight * sd_dropout``.
    """

    drop_rate: Any = random_rate or rate

    def loss(forward, batch, keys):
        output = base.loss(forward, batch, keys)
        views = [output.view] if output.other_view is None else [output.view, output.other_view]
        points = [view.stages[position - 1] if position else view.features for view in views]

        def dropped_logits(points):
            masked = [
                dropout_samples(
                    keys("sd_dropout"),
                    x,
                    rate=drop_rate,
                    num_samples=num_samples,
                    exclusive=exclusive,
                    broadcast_dims=range(1, x.ndim - 1) if channel_masks else (),
                )
                for x in points
            ]
            samples = [masked[i % len(points)][i] for i in range(num_samples)]
            if position == 0:
                return losses.head_of_each(output.view.head, samples)
            resume = jax.vmap(lambda x: output.view.resume(x, position))  # batch norm: per sample
            return list(resume(jnp.stack(samples)))

        task, labels = batch.task, batch.labels

        def term(logits, gradient):
            return task.sd_dropout(logits, labels, temperature=temperature, gradient=gradient)

        logits = dropped_logits(points)
        choices = [task.choices(jax.lax.stop_gradient(z), labels) for z in logits]
        _, _, valid = choices[0]
        metrics = {
            name: task.per_example(values, valid)
            for name, values in _diagnostics([z for z, _, _ in choices]).items()
        }
        if gradient_cosine:
            gradients = [
                jax.grad(lambda x, kind=kind: jnp.sum(term(dropped_logits(x), kind)))(
                    jax.lax.stop_gradient(points)
                )
                for kind in ("forward", "reverse")
            ]
            metrics["sd_dropout/gradient_cosine"] = _cosine(*gradients)
        growth = jnp.minimum(batch.clock.progress / ramp, 1.0) if ramp else 1.0
        return dataclasses.replace(
            output,
            terms=output.terms | {"sd_dropout": Term(term(logits, gradient), weight * growth)},
            metrics=output.metrics | metrics,
        )

    return dataclasses.replace(base, loss=loss)


def _cosine(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """Cosine between two gradients of each example, ``[B]``; 0 where one is zero."""

    def product(x, y):
        rows = [jnp.sum((u * v).reshape(len(u), -1), axis=-1) for u, v in zip(x, y, strict=True)]
        return jnp.sum(jnp.stack(rows), axis=0)

    lengths = jnp.sqrt(product(a, a) * product(b, b))
    safe_lengths = jnp.where(lengths > 0, lengths, 1.0)
    return jnp.where(lengths > 0, product(a, b) / safe_lengths, 0.0)


def _diagnostics(logits: list[jax.Array]) -> dict[str, jax.Array]:
    """Entropy of the dropped posteriors, and the fraction of pairs that agree on the class."""
    stacked, num_samples = jnp.stack(logits), len(logits)
    votes = jax.nn.one_hot(jnp.argmax(stacked, axis=-1), stacked.shape[-1], dtype=jnp.float32)
    # Of v votes for a class, v (v - 1) ordered pairs agree.
    pairs = jnp.sum(jnp.sum(votes, axis=0) ** 2, axis=-1) - num_samples
    return {
        "sd_dropout/entropy": jnp.mean(losses.entropy(stacked), axis=0),
        "sd_dropout/agreement": pairs / (num_samples * (num_samples - 1)),
    }
