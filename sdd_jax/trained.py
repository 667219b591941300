"""Trained networks, read from the workdirs of their runs."""

import dataclasses
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sdd_jax import models
from sdd_jax.config import OPERATIONAL, complete
from sdd_jax.data import Dataset
from sdd_jax.errors import InputError
from sdd_jax.parallel import AXIS
from sdd_jax.training.checkpoints import Checkpoints
from sdd_jax.training.workdir import read_config


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network and what it has learnt.

    Attributes:
      config: of its run, complete.
      model: the network.
      step: of the checkpoint.
      variables: parameters and batch statistics, as host arrays.
    """

    config: ConfigDict
    model: nn.Module
    step: int
    variables: dict[str, Any]


def load_trained(
    workdir: str, dataset: Dataset, *, checkpoint: str = "latest", field: str = "--workdir"
) -> Trained:
    """Loads the network of a run.

    Args:
      workdir: folder of the run.
      dataset: the data set it was trained on.
      checkpoint: "latest", "best" or a step.
      field: what the user set, for messages.

    Raises:
      InputError: there is no run, no such checkpoint, or none that can be read.
    """
    folder = pathlib.Path(os.path.expanduser(workdir))
    config = complete(read_config(folder, field=field))
    model = models.build(config.model, num_classes=dataset.num_classes, axis_name=AXIS)
    like = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *dataset.image_shape)))
    )
    checkpoints = Checkpoints(folder, read_only=True)
    restored = checkpoints.restore_variables(
        {"params": like["params"], "batch_stats": like.get("batch_stats", {})}, which=checkpoint
    )
    checkpoints.close()
    if restored is None:
        raise InputError(f"{field}: {folder} holds no checkpoint")
    step, variables = restored
    return Trained(config, model, step, variables)


def load_teacher(workdir: str, dataset: Dataset, options: ConfigDict) -> Trained:
    """Loads the frozen teacher of a run.

    Args:
      workdir: ``config.teacher``.
      dataset: the data set of the run.
      options: ``config.dataset`` of the run; the teacher must have seen its images the same way.

    Raises:
      InputError: no teacher, or one that was trained on other data.
    """
    if not workdir:
        raise InputError("config.teacher: must be the workdir of a finished run, got ''")
    folder = pathlib.Path(os.path.expanduser(workdir))
    theirs = complete(read_config(folder, field="config.teacher"))
    for name in (field for field in options if f"dataset.{field}" not in OPERATIONAL):
        ours_value, theirs_value = options[name], theirs.dataset[name]
        if ours_value != theirs_value:
            raise InputError(
                f"config.teacher: {workdir} was trained with config.dataset.{name} "
                f"{theirs_value!r}, this run has {ours_value!r}"
            )
    return load_trained(workdir, dataset, field="config.teacher")
