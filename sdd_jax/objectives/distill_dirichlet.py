"""Distribution distillation: the student predicts a Dirichlet distribution over posteriors."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from annotated_types import Ge

from sdd_jax import losses
from sdd_jax.errors import require
from sdd_jax.objectives import teachers as ensembles
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.objectives.distill import Init, Samples

ANNEALED = 0.5  # share of the run in which the temperature falls


@objectives.register("distill_dirichlet")
def distill_dirichlet(
    *,
    load_teachers: Callable[[], Sequence[Any]],
    loss: Literal["proxy", "nll"] = "proxy",
    temperature: Annotated[float, Ge(1)] = 10.0,
    teacher_samples: Samples = 10,
    init: Init = "teacher",
) -> Objective:
    """A student whose logits are the log-concentrations of a Dirichlet distribution.

    It needs ``model.spread`` "dirichlet". The term is :func:`sdd_jax.dirichlet_proxy_loss` or
    :func:`sdd_jax.dirichlet_nll_loss`.

    Args:
      load_teachers: returns the teachers, with attributes ``model`` and ``variables``.
      loss: "proxy" or "nll".
      temperature: of "nll": the temperature at the start, which falls linearly to 1 in the first half of
        the run.
      teacher_samples: masks of each teacher for each image at each step.
      init: see :func:`sdd_jax.objectives.distill.distill`.

    Raises:
      InputError: one teacher, without dropout; or one sample for "proxy".

    References:
      Malinin, Mlodozeniec and Gales, `Ensemble Distribution Distillation
      <https://arxiv.org/abs/1905.00076>`_, 2020; Ryabinin, Malinin and Gales, `Scaling Ensemble
      Distribution Distillation to Many Classes with Proxy Targets
      <https://arxiv.org/abs/2105.06987>`_, 2021.
    """
    teachers = ensembles.load(load_teachers, teacher_samples, "distill_dirichlet")
    count = teachers.num_samples * len(teachers.networks)
    require(loss != "proxy" or count > 1, "teacher_samples", teacher_samples, "2 or more for proxy")

    def evaluate(forward, batch, keys):
        images = batch.views[0]
        view = forward(images, dropout=None)
        samples = teachers.sample(batch.constants, images, keys)
        if loss == "proxy":
            values = losses.dirichlet_proxy_loss(view.logits, samples, sample_axis=0)
        else:
            remaining = jnp.maximum(1 - batch.clock.progress / ANNEALED, 0)
            values = losses.dirichlet_nll_loss(
                view.logits, samples, temperature=1 + (temperature - 1) * remaining, sample_axis=0
            )
        metrics = {"distill/agreement": ensembles.agreement(samples, view.logits)}
        return Output(view, {"dirichlet": Term(values)}, view.batch_stats, metrics)

    def constants(images, key):
        return teachers.variables

    return teachers.train(evaluate, init=init, spread="dirichlet", constants=constants)
