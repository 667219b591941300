"""Dropout Distillation with a second head, which learns the mutual information of the ensemble."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from sdd_jax import losses
from sdd_jax.objectives import teachers as ensembles
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.objectives.distill import Init, Samples
from sdd_jax.options import NonNegative


@objectives.register("distill_two_heads")
def distill_two_heads(
    *,
    load_teachers: Callable[[], Sequence[Any]],
    weight: NonNegative = 1.0,
    teacher_samples: Samples = 1,
    init: Init = "teacher",
) -> Objective:
    """The objective ``distill``, beside a head that predicts the value that its loss tends to.

    It needs ``model.spread`` "two_heads". The terms are :func:`sdd_jax.dropout_distillation_loss` and
    :func:`sdd_jax.mutual_information_loss`.

    Args:
      load_teachers: returns the teachers, with attributes ``model`` and ``variables``.
      weight: weight of the second term.
      teacher_samples: masks of each teacher for each image at each step.
      init: see :func:`sdd_jax.objectives.distill.distill`.

    Raises:
      InputError: one teacher, without dropout.
    """
    teachers = ensembles.load(load_teachers, teacher_samples, "distill_two_heads")

    def loss(forward, batch, keys):
        images, constants = batch.views[0], batch.constants
        view = forward(images, dropout=None)
        samples = teachers.sample(constants["teachers"], images, keys)
        divergence = losses.dropout_distillation_loss(view.logits, samples, sample_axis=0)
        information = losses.mutual_information_loss(
            view.second_head(view.features), view.logits, samples, sample_axis=0
        )
        metrics = {
            "distill/agreement": ensembles.agreement(samples, view.logits),
            "distill/floor": jnp.broadcast_to(constants["floor"], divergence.shape),
        }
        terms = {"distill": Term(divergence), "information": Term(information, weight)}
        return Output(view, terms, view.batch_stats, metrics)

    def constants(images, key):
        return {"teachers": teachers.variables, "floor": teachers.floor(images, key)}

    return teachers.train(loss, init=init, spread="two_heads", constants=constants)
