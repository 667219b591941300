"""Dropout Distillation: a deterministic student learns the mean of its teacher's dropout ensemble."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from annotated_types import Interval

from sdd_jax import losses
from sdd_jax.objectives import teachers as ensembles
from sdd_jax.objectives.base import Objective, Output, Term, objectives

Samples = Annotated[int, Interval(ge=1, le=1000)]
Init = Literal["teacher", "scratch"]


@objectives.register("distill")
def distill(
    *,
    load_teachers: Callable[[], Sequence[Any]],
    divergence: Literal["kl", "brier", "reverse_kl"] = "kl",
    teacher_samples: Samples = 1,
    init: Init = "teacher",
) -> Objective:
    """Divergence between a student without dropout and teachers with fresh masks at every step.

    The term is :func:`sdd_jax.dropout_distillation_loss`. With the KL divergence it cannot fall below
    the mean mutual information of the ensemble. An estimate from 100 masks on some training inputs,
    biased low by a few thousandths of a nat, is logged as ``distill/floor``.

    Args:
      load_teachers: returns the teachers, with attributes ``model`` and ``variables``.
      divergence: "kl", "brier" or "reverse_kl", see :func:`sdd_jax.dropout_distillation_loss`.
      teacher_samples: masks of each teacher for each image at each step.
      init: "teacher" starts the student from the first teacher's parameters, with layers of another
        shape redrawn from N(0, 0.01); "scratch" from the network's own initialisation.

    Raises:
      InputError: one teacher, without dropout.

    References:
      Rota Bulo et al., `Dropout Distillation <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016.
    """
    teachers = ensembles.load(load_teachers, teacher_samples, "distill")

    def loss(forward, batch, keys):
        images, constants = batch.views[0], batch.constants
        view = forward(images, dropout=None)
        samples = teachers.sample(constants["teachers"], images, keys)
        values = losses.dropout_distillation_loss(
            view.logits, samples, divergence=divergence, sample_axis=0
        )
        metrics = {"distill/agreement": ensembles.agreement(samples, view.logits)}
        if "floor" in constants:
            metrics["distill/floor"] = jnp.broadcast_to(constants["floor"], values.shape)
        return Output(view, {"distill": Term(values)}, view.batch_stats, metrics)

    def constants(images, key):
        if divergence != "kl":
            return {"teachers": teachers.variables}
        return {"teachers": teachers.variables, "floor": teachers.floor(images, key)}

    return teachers.train(loss, init=init, constants=constants)
