"""Weights & Biases."""

import os
import re
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdd_jax.errors import InputError, require, writing
from sdd_jax.paths import Path, is_remote
from sdd_jax.runs.files import write_text
from sdd_jax.runs.writers import FIELD, Writer, writers

ID_FILE = "wandb_id"  # in the workdir: a resumed run continues its run there


@writers.register("wandb")
class WeightsAndBiases(Writer):
    """A run in the project ``$WANDB_PROJECT`` (``sdd_jax`` by default), named as the workdir.

    wandb's environment variables apply, such as ``WANDB_MODE=offline``. wandb refuses steps before the
    last one: what a resumed run repeats after its checkpoint is not sent again. An evaluation is a run
    of its own, ``NAME/eval``, since two processes must not write to one run.
    """

    package = "wandb"

    def __init__(self, workdir: Path, *, start: int | None, config: Mapping[str, Any]):
        import wandb

        self._image = wandb.Image
        if start is None:
            options = {"name": f"{workdir.name}/eval", "job_type": "eval"}
        else:
            options = {"name": workdir.name, "id": _run_id(workdir), "resume": "allow"}
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "sdd_jax"),
                dir=None if is_remote(workdir) else str(workdir),
                config=dict(config),
                settings={"console": "off", "silent": True},
                **options,
            )
        except wandb.Error as error:
            raise InputError(f"'wandb' cannot be used: {error}", field=FIELD) from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values, unless a later step has been logged."""
        self._log(step, dict(values))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs an image."""
        self._log(step, {name: self._image(image)})

    def close(self) -> None:
        """Finishes the run, which uploads the rest."""
        self._run.finish()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._run.step:
            self._run.log(values, step=step)


def _run_id(workdir: Path) -> str:
    path = workdir / ID_FILE
    if path.is_symlink() or not path.exists():
        write_text(path, secrets.token_hex(8))
    with writing(path):
        run_id = path.read_bytes().decode(errors="replace")
    require(re.fullmatch(r"[\w-]{1,64}", run_id) is not None, str(path), run_id, "the id of a run")
    return run_id
