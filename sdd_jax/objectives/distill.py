"""Dropout Distillation: a deterministic student learns the mean of its teacher's dropout ensemble."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

from sdd_jax import losses
from sdd_jax.errors import InputError
from sdd_jax.mc_dropout import mc_dropout
from sdd_jax.objectives.base import Objective, Output, Term, objectives

FLOOR_SAMPLES = 100


@objectives.register("distill")
def distill(
    *,
    load_teacher: Callable[[], Any],
    divergence: Literal["kl", "brier", "reverse_kl"] = "kl",
    teacher_samples: Annotated[int, Interval(ge=1, le=1000)] = 1,
    init: Literal["teacher", "scratch"] = "teacher",
) -> Objective:
    """Divergence between a student without dropout and a teacher with fresh masks at every step.

    The term is :func:`sdd_jax.dropout_distillation_loss`. With the KL divergence it cannot fall below
    the teacher's mean mutual information. An estimate from 100 masks on some training inputs, biased low
    by a few thousandths of a nat, is logged as ``distill/floor``.

    Args:
      load_teacher: returns the teacher, with attributes ``model`` and ``variables``.
      divergence: "kl", "brier" or "reverse_kl", see :func:`sdd_jax.dropout_distillation_loss`.
      teacher_samples: masks for each image at each step.
      init: "teacher" starts the student from the teacher's parameters, with layers of another shape
        redrawn from N(0, 0.01); "scratch" from the network's own initialisation.

    Raises:
      InputError: a teacher without dropout.

    References:
      Rota Bulo et al., `Dropout Distillation <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016.
    """
    teacher = load_teacher()
    if not any(teacher.model.stochastic()):
        raise InputError("'distill' needs a teacher with dropout, this one's dropout_rate is 0")

    def teacher_logits(variables, images, keys):
        return teacher.model.apply(variables, images, train=False, dropout_keys=keys)

    def loss(forward, batch, keys):
        images, constants = batch.views[0], batch.constants
        view = forward(images, dropout=None)
        sample_keys = jnp.stack([keys(f"teacher{i}") for i in range(teacher_samples)])
        samples = jax.vmap(teacher_logits, (None, None, 0))(
            constants["teacher"], images, sample_keys
        )
        values = losses.dropout_distillation_loss(
            view.logits, samples, divergence=divergence, sample_axis=0
        )
        agreement = jnp.argmax(samples, axis=-1) == jnp.argmax(view.logits, axis=-1)[None]
        metrics = {"distill/agreement": jnp.mean(agreement.astype(jnp.float32), axis=0)}
        if "floor" in constants:
            metrics["distill/floor"] = jnp.broadcast_to(constants["floor"], values.shape)
        return Output(view, {"distill": Term(values)}, view.batch_stats, metrics)

    def constants(images, key):
        if divergence != "kl":
            return {"teacher": teacher.variables}
        predict = jax.jit(teacher_logits)
        prediction = mc_dropout(
            lambda key: predict(teacher.variables, images, jax.random.split(key, len(images))),
            key,
            num_samples=FLOOR_SAMPLES,
        )
        floor = np.float32(jnp.mean(prediction.mutual_information))
        return {"teacher": teacher.variables, "floor": floor}

    return Objective(
        loss,
        uses_labels=False,
        constants=constants,
        initialise=None if init == "scratch" else _from_teacher(teacher.variables),
    )


def _from_teacher(teacher: dict[str, Any]) -> Callable[[jax.Array, dict[str, Any]], dict[str, Any]]:
    """Initialises layers of the teacher's shape with its values, the others with N(0, 0.01)."""

    def initialise(key, student):
        structure = jax.tree.structure(student)
        if structure != jax.tree.structure(teacher):
            raise InputError(
                "'distill' with init='teacher' needs the teacher's network, possibly narrower"
            )
        leaves = jax.tree_util.tree_leaves_with_path(student)
        pairs = [
            (path, x.shape, y)
            for (path, x), y in zip(leaves, jax.tree.leaves(teacher), strict=True)
        ]
        redrawn = {path[:-1] for path, shape, y in pairs if shape != y.shape}
        return jax.tree.unflatten(
            structure,
            [
                0.01 * jax.random.normal(jax.random.fold_in(key, i), shape)
                if path[:-1] in redrawn
                else jnp.asarray(y)
                for i, (path, shape, y) in enumerate(pairs)
            ],
        )

    return initialise
