"""Evaluation of a run: a workdir's checkpoint in, figures out."""

import json
import pathlib
from collections.abc import Sequence
from functools import partial

import jax

from sdd_jax.errors import InputError
from sdd_jax.evaluation.checks import checks as registry
from sdd_jax.evaluation.evaluate import Evaluation, Predictor, evaluate
from sdd_jax.experiment import load_experiment
from sdd_jax.parallel import replicate
from sdd_jax.training import state as train_state
from sdd_jax.training.checkpoints import Checkpoints
from sdd_jax.training.workdir import read_config


def evaluate_workdir(
    workdir: str,
    checks: Sequence[str] = ("accuracy", "calibration"),
    *,
    checkpoint: str = "latest",
    data_dir: str | None = None,
) -> dict[str, float]:
    """Evaluates a checkpoint on the test split and writes ``WORKDIR/eval/metrics.json``.

    Args:
      workdir: folder of the run.
      checks: names of checks.
      checkpoint: "latest", "best" or a step.
      data_dir: where the data is now, if not where the run's config says.

    Returns:
      ``{"step": ..., "eval/accuracy": ..., ...}``.

    Raises:
      InputError: no run, no such check, no such checkpoint, or data that is not there.
    """
    folder = pathlib.Path(workdir).expanduser()
    config = read_config(folder)
    for name in checks:
        registry.get(name)
    if data_dir is not None:
        config.dataset.data_dir = data_dir
    experiment = load_experiment(config)
    create = partial(
        train_state.create,
        experiment.model,
        experiment.optimizer,
        seed=config.seed,
        image_shape=experiment.dataset.image_shape,
    )
    checkpoints = Checkpoints(folder, read_only=True)
    state = checkpoints.restore(jax.eval_shape(create), which=checkpoint)
    checkpoints.close()
    if state is None:
        raise InputError(f"--workdir: {folder} holds no checkpoint")
    subject = Evaluation(experiment, Predictor(experiment), replicate(state.variables))
    result = {"step": int(state.step)} | evaluate(subject, checks)
    if jax.process_index() == 0:
        output = folder / "eval" / "metrics.json"
        output.parent.mkdir(exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
    return result
