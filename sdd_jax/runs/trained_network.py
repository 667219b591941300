"""Trained networks, loaded from the workdirs of their runs."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax import models
from sdd_jax.data import Dataset
from sdd_jax.devices import AXIS
from sdd_jax.errors import InputError
from sdd_jax.paths import Path, given_path
from sdd_jax.runs.checkpoints import Checkpoints
from sdd_jax.runs.workdir import differing, read_config, read_record

# What records of earlier versions do not state of a network, since no other had existed.
UNSTATED = {"task": "classification", "inputs": "images"}


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network with the parameters of a checkpoint.

    Attributes:
      config: the recorded config of its run.
      model: the network.
      step: the step of the checkpoint.
      variables: parameters and batch statistics, as host arrays. The parameters are their exponential
        moving average if the run keeps one.
    """

    config: ConfigDict
    model: nn.Module
    step: int
    variables: dict[str, Any]


def load_trained_network(
    workdir: str | os.PathLike,
    dataset: Dataset,
    *,
    checkpoint: str | int = "latest",
    field: str = "--workdir",
) -> TrainedNetwork:
    """Loads the network of a run.

    Args:
      workdir: folder of the run.
      dataset: the data set that the network was trained on.
      checkpoint: "latest", "best" or a step.
      field: the input that names the folder, for messages.

    Raises:
      InputError: there is no run, no such checkpoint, or none that can be read; or the run's config
        imports files that have not been loaded, see :func:`sdd_jax.runs.load_imports`.
    """
    folder = given_path(workdir, field=field)
    config = read_config(folder, field=field)
    model = build_network(config, dataset.num_classes)
    like = abstract_variables(model, dataset.image_shape, dataset.inputs.dtype)
    return TrainedNetwork(config, model, *restore(folder, like, checkpoint, field=field))


def build_network(config: ConfigDict, num_classes: int) -> nn.Module:
    """Builds the network of a run.

    Raises:
      InputError: a network or option that does not exist.
    """
    return models.build(config.model.to_dict(), num_classes=num_classes, axis_name=AXIS)


def abstract_variables(
    model: nn.Module, image_shape: Sequence[int], dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Shapes and dtypes of the parameters and batch statistics of a network.

    Raises:
      InputError: the network cannot take images of this shape.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), dtype)
    abstract = jax.eval_shape(model.init, jax.random.key(0), images)
    return {"params": abstract["params"], "batch_stats": abstract.get("batch_stats", {})}


def restore(
    folder: Path, like: dict[str, Any], checkpoint: str | int, *, field: str
) -> tuple[int, dict[str, Any]]:
    """Restores the step and the variables of a checkpoint.

    Raises:
      InputError: there is no such checkpoint, or none that can be read.
    """
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        restored = checkpoints.restore_variables(like, which=str(checkpoint))
    finally:
        checkpoints.close()
    if restored is None:
        raise InputError(f"{folder} holds no checkpoint", field=field)
    return restored


def network_facts(dataset: Dataset) -> dict[str, Any]:
    """What the network of a run takes and returns, as its record holds it.

    Returns:
      ``num_classes``, K; ``image_shape``, ``[H, W, C]``; ``mean`` and ``std``, by channel, of pixels in
      [0, 1], with which images are normalised; ``task`` and ``inputs``, the names of the task and of the
      kind of inputs, whose shape and moments the others may also be. All values are plain.
    """
    return {
        "num_classes": int(dataset.num_classes),
        "image_shape": [int(n) for n in dataset.image_shape],
        "mean": np.asarray(dataset.mean).tolist(),
        "std": np.asarray(dataset.std).tolist(),
        "task": dataset.task.name,
        "inputs": dataset.inputs.name,
    }


def changed_data(
    workdir: str | os.PathLike, dataset: Dataset, *, field: str = "--workdir"
) -> list[str]:
    """Differences between a data set and the one that a run was trained on.

    Args:
      workdir: folder of the run.
      dataset: the data set, loaded with the options of the run.
      field: the input that names the folder, for messages.

    Returns:
      "data.FIELD: A now, B in the workdir"; empty also for a run of version 0.1, without this record.

    Raises:
      InputError: there is no record, or it cannot be read.
    """
    ours = {"data": dataset.fingerprint()}
    recorded = read_record(given_path(workdir, field=field), field=field)
    return differing(ours, {"data": recorded.get("data", ours["data"])})
