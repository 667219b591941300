"""Dropout Distillation: a deterministic student learns the mean of its teacher's dropout ensemble."""

from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.errors import InputError, check
from sdd_jax.mc_dropout import mc_dropout
from sdd_jax.objectives.base import Objective, Output, Term, objectives

FLOOR_SAMPLES = 100


@objectives.register("distill")
def distill(
    *,
    load_teacher: Callable[[], Any],
    divergence: str = "kl",
    teacher_samples: int = 1,
    init: str = "teacher",
) -> Objective:
    """The teacher sees each image under fresh dropout masks; the student has no dropout.

    Beside its term, which for the KL divergence cannot fall below the teacher's mean mutual information,
    it logs an estimate of that floor, from 100 masks on some training inputs.

    Rota Bulo et al., `Dropout Distillation <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016.

    Args:
      load_teacher: gives the :class:`sdd_jax.trained.Trained` teacher.
      divergence: "kl", "brier" or "reverse_kl", see :func:`sdd_jax.dropout_distillation_loss`.
      teacher_samples: masks for each image at each step.
      init: "teacher" starts the student from the teacher's parameters, with layers of another shape
        redrawn from N(0, 0.01); "scratch" from the network's own initialisation.
    """
    allowed = losses.DIVERGENCES
    check(
        divergence in allowed,
        "config.objective.divergence",
        divergence,
        f"one of {', '.join(allowed)}",
    )
    check(teacher_samples >= 1, "config.objective.teacher_samples", teacher_samples, "at least 1")
    check(init in ("teacher", "scratch"), "config.objective.init", init, "teacher or scratch")
    teacher = load_teacher()
    if not any(teacher.model.stochastic()):
        raise InputError("config.teacher: must be a network with dropout, its dropout_rate is 0")

    def teacher_logits(variables, images, keys):
        return teacher.model.apply(variables, images, train=False, dropout_keys=keys)

    def loss(forward, batch, keys):
        images = batch.views[0]
        view = forward(images, dropout=None)
        samples = jnp.stack(
            [
                teacher_logits(batch.constants, images, keys(f"teacher{i}"))
                for i in range(teacher_samples)
            ]
        )
        values = losses.dropout_distillation_loss(
            view.logits, samples, divergence=divergence, sample_axis=0
        )
        agreement = jnp.argmax(samples, axis=-1) == jnp.argmax(view.logits, axis=-1)[None]
        metrics = {"distill/agreement": jnp.mean(agreement.astype(jnp.float32), axis=0)}
        return Output(view, {"distill": Term(values)}, view.batch_stats, metrics)

    def floor(images, key):
        if divergence != "kl":
            return {}
        predict = jax.jit(
            lambda key: teacher_logits(
                teacher.variables, images, jax.random.split(key, len(images))
            )
        )
        prediction = mc_dropout(predict, key, num_samples=FLOOR_SAMPLES)
        return {"distill/floor": float(jnp.mean(prediction.mutual_information))}

    return Objective(
        loss,
        uses_labels=False,
        constants=teacher.variables,
        initialise=None if init == "scratch" else _from_teacher(teacher.variables),
        references=floor,
    )


def _from_teacher(teacher: dict[str, Any]) -> Callable[[jax.Array, dict[str, Any]], dict[str, Any]]:
    """Layers that have the teacher's shapes get its values, the others N(0, 0.01) throughout."""

    def initialise(key, student):
        ours, theirs = (flax.traverse_util.flatten_dict(v) for v in (student, teacher))
        if ours.keys() != theirs.keys():
            raise InputError(
                "config.model: must be the teacher's network, possibly narrower, for "
                "config.objective.init = 'teacher'"
            )
        touched = {path[:-1] for path in ours if ours[path].shape != theirs[path].shape}
        return flax.traverse_util.unflatten_dict(
            {
                path: 0.01 * jax.random.normal(jax.random.fold_in(key, i), ours[path].shape)
                if path[:-1] in touched
                else jnp.asarray(theirs[path])
                for i, path in enumerate(sorted(ours))
            }
        )

    return initialise
