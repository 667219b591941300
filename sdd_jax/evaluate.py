"""The evaluation program: from the checkpoints of runs to metrics, plots and a report."""

import dataclasses
import datetime
import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from sdd_jax import hosts
from sdd_jax.config import complete, complete_record
from sdd_jax.devices import replicate
from sdd_jax.errors import InputError, within, writing
from sdd_jax.evaluation import EvaluationSetup, Evaluator, records
from sdd_jax.evaluation.checks import Check, build
from sdd_jax.evaluation.checks import checks as registry
from sdd_jax.evaluation.plots import Picture, pictures
from sdd_jax.evaluation.report import Report, Section
from sdd_jax.evaluation.results import MISSING
from sdd_jax.experiment import load_setup
from sdd_jax.paths import Path, given_path
from sdd_jax.runs import (
    TrainedNetwork,
    changed_data,
    load_imports,
    load_trained_network,
    read_config,
    read_record,
    write_text,
    writers,
)

ALL = "all"

_logger = logging.getLogger(__name__)


def evaluate_workdir(
    workdir: str | os.PathLike,
    checks: str | Sequence[str] = ("accuracy", "calibration"),
    *,
    compare: Sequence[str | os.PathLike] = (),
    checkpoint: str | int = "latest",
    overrides: Mapping[str, Any] | None = None,
    output: str | os.PathLike | None = None,
    trust_imports: bool = False,
) -> dict[str, float]:
    """Evaluates a checkpoint on the test split.

    Writes to ``WORKDIR/eval``, or to ``output``: the record of each check (``checks.json``), the metrics
    of all records (``metrics.json``, null for a value that is not finite), plots and ``report.html``.
    The results of checks that are not repeated are kept. The runs to compare with are evaluated as well
    and shown beside the first in its plots and report; nothing is written to their workdirs. Without
    ``output``, the run's own plots also go to its metric writers (``config.log_to``) as images at the
    step of the checkpoint.

    Args:
      workdir: folder of the run.
      checks: names of checks; ``["all"]``: every check that applies to one of the runs.
      compare: folders of other runs on the same data set.
      checkpoint: "latest", "best" or a step.
      overrides: other values for fields of the runs' configs, e.g. ``{"eval.ood": ("mnist",)}``.
      output: folder of the results, in place of ``WORKDIR/eval``.
      trust_imports: execute the Python files that the configs of the runs and their teachers import.

    Returns:
      ``{"step": ..., "eval/accuracy": ..., ...}``, the results of this evaluation of ``workdir``.

    Raises:
      InputError: no run, check or checkpoint of that name, an unusable option, a check that applies to
        no run, missing data, or a config that imports files; nothing has been computed.
      WriteError: the results cannot be written; the earlier ones are kept.
    """
    # ------------------------------------------------------------------------- runs and checks
    checks = [checks] if isinstance(checks, str) else list(checks)
    folders = _folders([workdir, *compare])
    first, *others = folders
    results_folder = _results_folder(folders[first], output)
    fields = {run: "--workdir" if run == first else "--compare" for run in folders}
    for run in folders if trust_imports else ():
        load_imports(folders[run], field=fields[run])
    configs = {
        run: _config(folder, overrides or {}, fields[run]) for run, folder in folders.items()
    }
    setups = {run: load_setup(config) for run, config in configs.items()}
    for run, setup in setups.items():
        if different := changed_data(folders[run], setup.dataset, field=fields[run]):
            _logger.warning("%s was trained on other data (%s)", run, "; ".join(different))
    for run in others:
        expected, dataset = setups[first].dataset.name, setups[run].dataset.name
        if dataset != expected:
            raise InputError(
                f"must be runs on {expected}, {run} is on {dataset}", field="--compare"
            )
    requested = registry.names() if checks == [ALL] else list(dict.fromkeys(checks))
    built = {check: build(check, configs[first].eval.to_dict()) for check in requested}
    skipped = {check: _reasons(built[check], setups) for check in built}
    for reasons in skipped.values():
        if len(reasons) == len(setups) and checks != [ALL]:
            raise InputError(reasons[first], field="--checks")
    records.read(results_folder)  # reports damaged records now rather than after the evaluation

    # ------------------------------------------------------------------------------ evaluation
    trained = {
        run: load_trained_network(
            folder, setups[run].dataset, checkpoint=checkpoint, field=fields[run]
        )
        for run, folder in folders.items()
    }
    evaluators = {
        run: Evaluator(setup, replicate(trained[run].variables)) for run, setup in setups.items()
    }
    results = {
        check: {run: built[check](evaluators[run]) for run in setups if run not in skipped[check]}
        for check in built
        if len(skipped[check]) < len(setups)
    }
    step = trained[first].step
    metrics = {
        f"eval/{name}": value
        for by_run in results.values()
        if first in by_run
        for name, value in by_run[first].metrics.items()
    }

    # --------------------------------------------------------------------- records and report
    if hosts.first():
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        plots = {check: pictures(by_run, folders) for check, by_run in results.items()}
        new = {
            check: records.record(
                by_run.get(first),
                plots[check],
                title=built[check].title,
                step=step,
                time=time,
                checkpoint=str(checkpoint),
                options=dataclasses.asdict(built[check]),
                runs={run: trained[run].step for run in others if run in by_run},
            )
            for check, by_run in results.items()
        }
        facts = {
            run: _facts(configs[run], setups[run], trained[run], folders[run], time)
            for run in folders
        }
        sections = {
            check: Section(check, built[check].title, by_run, plots[check], skipped[check])
            for check, by_run in results.items()
        }
        with records.locked(results_folder):
            for check, record in records.write(results_folder, step, new, plots).items():
                if check not in sections:
                    sections[check] = _recorded_section(check, record, first, step, results_folder)
            report = Report(facts, [sections[check] for check in sorted(sections)])
            for name, content in report.files().items():
                write_text(results_folder / name, content)
        if output is None and configs[first].log_to:
            own = [
                plots[check] if len(by_run) == 1 else pictures({first: by_run[first]}, folders)
                for check, by_run in results.items()
                if first in by_run
            ]
            _log_plots(folders[first], configs[first], step, itertools.chain.from_iterable(own))
        with writing("standard output"):
            print(Report(facts, [sections[check] for check in results]).text())
            print(f"\nall metrics, plots and tables: {results_folder / 'report.html'}", flush=True)
    return {"step": step} | metrics


def _log_plots(workdir: Path, config: Any, step: int, plots: Iterable[Picture]) -> None:
    """Passes plots to the run's metric writers; one that cannot be used here is no reason to fail."""
    opened = []
    for name in config.log_to:
        try:
            (writer,) = writers.installed([name])
            opened.append(writer(workdir, start=None, config=config.to_dict()))
        except InputError as error:
            _logger.warning("the plots are not sent to %s: %s", name, error)
    for plot in plots:
        pixels = plot.pixels
        for writer in opened:
            writer.image(step, f"eval/{plot.name}", pixels)
    for writer in opened:
        writer.close()


def _folders(workdirs: Sequence[str | os.PathLike]) -> dict[str, Path]:
    """Folders by name: the last part of the path, or the whole path where two runs share it."""
    first, *others = workdirs
    folders = [given_path(first, field="--workdir")]
    folders += [given_path(workdir, field="--compare") for workdir in others]
    names = [folder.absolute().name for folder in folders]
    by_name = {
        name if names.count(name) == 1 else str(folder): folder
        for name, folder in zip(names, folders, strict=True)
    }
    if len(by_name) < len(folders):
        raise InputError(
            f"must be other runs, got {', '.join(map(str, workdirs))}", field="--compare"
        )
    return by_name


def _results_folder(workdir: Path, output: str | os.PathLike | None) -> Path:
    if output:
        return given_path(output, field="--output")
    folder = workdir / "eval"
    if folder.is_symlink():  # not of this run, perhaps not of its author
        raise InputError(f"{folder} is a link; choose a folder with --output", field="--workdir")
    return folder


def _config(folder: Path, overrides: Mapping[str, Any], field: str) -> Any:
    config = complete_record(read_config(folder, field=field))
    config.update_from_flattened_dict(dict(overrides))
    return complete(config)


def _reasons(check: Check, setups: Mapping[str, EvaluationSetup]) -> dict[str, str]:
    """``{run: reason}`` for the runs that the check does not apply to."""
    with within("config.eval"):
        reasons = {run: check.reason(setup) for run, setup in setups.items()}
    return {run: reason for run, reason in reasons.items() if reason}


def _facts(
    config: Any, setup: EvaluationSetup, trained: TrainedNetwork, folder: Path, time: str
) -> dict[str, str]:
    term = config.sd_dropout
    sd_dropout = f"weight {term.weight:g}, rate {term.rate:g}, temperature {term.temperature:g}"
    parameters = sum(x.size for x in jax.tree.leaves(trained.variables["params"]))
    commit = read_record(folder).get("commit") or MISSING
    splits = (f"{len(split):,} {name}" for name, split in setup.dataset.splits.items())
    return {
        "workdir": str(folder),
        "checkpoint": f"step {trained.step:,}",
        "evaluated": f"{datetime.datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC",
        "commit": commit[:12] + ("+" if commit.endswith("+") else ""),
        "seed": str(config.seed),
        "data": f"{config.dataset.name}: {', '.join(splits)} images",
        "network": config.model.name,
        "parameters": f"{parameters:,}",
        "objective": config.objective.name,
        "SD-Dropout": sd_dropout if term.weight else "none",
    }


def _recorded_section(
    check: str, record: records.CheckRecord, run: str, step: int, folder: Path
) -> Section:
    """The section of a check that this evaluation does not repeat."""
    time = datetime.datetime.fromisoformat(record.time)
    source = f"From an earlier evaluation: step {record.step:,}, {time:%Y-%m-%d %H:%M:%S} UTC"
    if record.runs:
        source += f", compared with {', '.join(record.runs)}"
    return Section(
        check,
        record.title,
        {run: record.result} if record.metrics else {},
        record.pictures(folder),
        source=f"{source}.",
        step="" if record.step == step else f"step {record.step:,}",
    )
