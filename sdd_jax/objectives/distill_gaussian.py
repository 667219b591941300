"""Distribution distillation: the student predicts a Gaussian distribution of the teachers' logits."""

from collections.abc import Callable, Sequence
from typing import Any

from sdd_jax import losses
from sdd_jax.objectives import teachers as ensembles
from sdd_jax.objectives.base import Objective, Output, Term, objectives
from sdd_jax.objectives.distill import Init, Samples


@objectives.register("distill_gaussian")
def distill_gaussian(
    *,
    load_teachers: Callable[[], Sequence[Any]],
    teacher_samples: Samples = 1,
    init: Init = "teacher",
) -> Objective:
    """A student whose two heads are the mean and the log-variance of the teachers' logits.

    It needs ``model.spread`` "gaussian". The term is :func:`sdd_jax.logit_gaussian_loss`.

    Args:
      load_teachers: returns the teachers, with attributes ``model`` and ``variables``.
      teacher_samples: masks of each teacher for each image at each step.
      init: see :func:`sdd_jax.objectives.distill.distill`. The log-variances start at 0.

    Raises:
      InputError: one teacher, without dropout.

    References:
      Shen, Zhang, Sabuncu and Sun, `Real-Time Uncertainty Estimation in Computer Vision via
      Uncertainty-Aware Distribution Distillation <https://arxiv.org/abs/2007.15857>`_, 2021.
    """
    teachers = ensembles.load(load_teachers, teacher_samples, "distill_gaussian")

    def loss(forward, batch, keys):
        images = batch.views[0]
        view = forward(images, dropout=None)
        samples = teachers.sample(batch.constants, images, keys)
        log_variance = view.second_head(view.features)
        values = losses.logit_gaussian_loss(view.logits, log_variance, samples, sample_axis=0)
        metrics = {"distill/agreement": ensembles.agreement(samples, view.logits)}
        return Output(view, {"gaussian": Term(values)}, view.batch_stats, metrics)

    def constants(images, key):
        return teachers.variables

    return teachers.train(loss, init=init, spread="gaussian", constants=constants)
