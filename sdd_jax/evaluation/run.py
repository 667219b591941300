"""Evaluation of runs: workdirs' checkpoints in, figures and a report out."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from sdd_jax.config import complete
from sdd_jax.errors import InputError, writing
from sdd_jax.evaluation.checks import Check, build, checks
from sdd_jax.evaluation.evaluate import Evaluation
from sdd_jax.evaluation.report import Report
from sdd_jax.experiment import Subject, load_subject
from sdd_jax.parallel import replicate
from sdd_jax.trained import load_trained
from sdd_jax.training.workdir import read_config, write_text

ALL = "all"


def evaluate_workdir(
    workdir: str,
    names: Sequence[str] = ("accuracy", "calibration"),
    *,
    compare: Sequence[str] = (),
    checkpoint: str = "latest",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Evaluates a checkpoint on the test split.

    Writes ``WORKDIR/eval/metrics.json``, the plots and ``report.html``; runs to compare with are
    evaluated too, have their own ``metrics.json``, and stand beside the first in its plots and report. A
    figure that is not a finite number is null in the JSON.

    Args:
      workdir: folder of the run.
      names: of checks; ``["all"]`` for all that the runs can have.
      compare: folders of other runs on the same data set.
      checkpoint: "latest", "best" or a step.
      overrides: fields of the runs' configs with other values, e.g. ``{"eval.ood": ("mnist",)}``.

    Returns:
      ``{"step": ..., "eval/accuracy": ..., ...}`` of ``workdir``.

    Raises:
      InputError: no run, no such check or checkpoint, an unusable option, a check that no run can have,
      or
        data that is not there; nothing has been computed.
      WriteError: the figures or the report cannot be written.
    """
    folders = _named([workdir, *compare])
    subjects = {run: _subject(folder, overrides or {}) for run, folder in folders.items()}
    first = next(iter(subjects.values()))
    for run, subject in subjects.items():
        if subject.dataset.name != first.dataset.name:
            raise InputError(
                f"--compare: must be runs on {first.dataset.name}, {run} is on {subject.dataset.name}"
            )
    wanted = checks.names() if list(names) == [ALL] else list(dict.fromkeys(names))
    built = {name: build(name, first.config.eval.to_dict()) for name in wanted}
    skipped = _skipped(built, subjects, required=list(names) != [ALL])
    trained = {
        run: load_trained(str(folder), subjects[run].dataset, checkpoint=checkpoint)
        for run, folder in folders.items()
    }
    evaluations = {
        run: Evaluation(subject, replicate(trained[run].variables))
        for run, subject in subjects.items()
    }
    able = {name: set(subjects) - set(skipped[name]) for name in wanted}
    report = Report(
        runs={
            run: _facts(subjects[run].config, trained[run], folder)
            for run, folder in folders.items()
        },
        titles={name: one.title for name, one in built.items()},
        findings={
            name: {run: one(evaluations[run]) for run in subjects if run in able[name]}
            for name, one in built.items()
            if able[name]
        },
        skipped=skipped,
    )
    results = {
        run: {"step": trained[run].step}
        | {f"eval/{name}": value for name, value in report.metrics(run).items()}
        for run in subjects
    }
    if jax.process_index() == 0:
        for run, folder in folders.items():
            output = folder / "eval" / "metrics.json"
            with writing(output.parent):
                output.parent.mkdir(exist_ok=True)
            finite = {k: v if math.isfinite(v) else None for k, v in results[run].items()}
            write_text(output, json.dumps(finite, indent=2, allow_nan=False) + "\n")
        written = folders[next(iter(folders))] / "eval"
        with writing(written):
            report.write(written)
        with writing("standard output"):
            print(report.text())
            print(f"\nall figures and plots: {written / 'report.html'}", flush=True)
    return results[next(iter(results))]


def _named(workdirs: Sequence[str]) -> dict[str, pathlib.Path]:
    """Folders by name: the last part of the path, or all of it where two runs share that."""
    folders = [pathlib.Path(os.path.expanduser(workdir)) for workdir in workdirs]
    names = [folder.absolute().name for folder in folders]
    named = {
        name if names.count(name) == 1 else str(folder): folder
        for name, folder in zip(names, folders, strict=True)
    }
    if len(named) < len(folders):
        raise InputError(f"--compare: must be other runs, got {', '.join(workdirs)}")
    return named


def _subject(folder: pathlib.Path, overrides: Mapping[str, Any]) -> Subject:
    config = complete(read_config(folder))
    config.update_from_flattened_dict(dict(overrides))
    return load_subject(config)


def _skipped(
    built: Mapping[str, Check], subjects: Mapping[str, Subject], *, required: bool
) -> dict[str, dict[str, str]]:
    """``{check: {run: why it cannot have it}}``.

    Raises:
      InputError: a check is required and no run can have it.
    """
    skipped = {}
    for name, one in built.items():
        reasons = {run: one.requirement(subject) for run, subject in subjects.items()}
        skipped[name] = {run: reason for run, reason in reasons.items() if reason}
        if required and len(skipped[name]) == len(subjects):
            raise InputError(f"--checks: {next(iter(skipped[name].values()))}")
    return skipped


def _facts(config: ConfigDict, trained, folder: pathlib.Path) -> dict[str, Any]:
    term = config.sd_dropout
    sd_dropout = (
        f"weight {term.weight:g}, rate {term.rate:g}, temperature {term.temperature:g}"
        if term.weight
        else "none"
    )
    return {
        "workdir": str(folder),
        "checkpoint": f"step {trained.step:,}",
        "data": config.dataset.name,
        "network": config.model.name,
        "parameters": f"{sum(x.size for x in jax.tree.leaves(trained.variables['params'])):,}",
        "objective": config.objective.name,
        "SD-Dropout": sd_dropout,
    }
