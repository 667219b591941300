"""Evaluation of a run: a workdir's checkpoint in, figures out."""

import json
import pathlib
from collections.abc import Sequence

import jax

from sdd_jax.config import complete
from sdd_jax.evaluation.checks import checks as registry
from sdd_jax.evaluation.evaluate import Evaluation, evaluate
from sdd_jax.experiment import load_subject
from sdd_jax.parallel import replicate
from sdd_jax.trained import load_trained
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
    config = complete(read_config(folder))
    for name in checks:
        registry.get(name)
    if data_dir is not None:
        config.dataset.data_dir = data_dir
    subject = load_subject(config)
    trained = load_trained(workdir, subject.dataset, checkpoint=checkpoint)
    evaluation = Evaluation(subject, replicate(trained.variables), folder=folder / "eval")
    result = {"step": trained.step} | evaluate(evaluation, checks)
    if jax.process_index() == 0:
        output = folder / "eval" / "metrics.json"
        output.parent.mkdir(exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
        for table in evaluation.tables:
            print(table)
    return result
