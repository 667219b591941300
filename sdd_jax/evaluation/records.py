"""Records of checks: the latest result of each check on a run, kept in the folder ``WORKDIR/eval``.

``checks.json`` holds one record per check, ``metrics.json`` the union of their metrics. An evaluation
replaces the records of its own checks and keeps the others.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdd_jax.errors import InputError, writing
from sdd_jax.evaluation.plots import Picture
from sdd_jax.evaluation.results import CheckResult, Headline, Interval, Table
from sdd_jax.paths import Path
from sdd_jax.runs import files

CHECKS_FILE = "checks.json"
METRICS_FILE = "metrics.json"

# Version 0.1 wrote only metrics.json and plots. Their names start with the name of the check, with these
# exceptions.
SUMMARY = ("accuracy", "top5_accuracy", "nll", "brier", "ece")
PLOTS = {"reliability": "calibration", "risk_coverage": "calibration", "mc_error": "distillation"}


@dataclasses.dataclass(frozen=True)
class CheckRecord:
    """The latest result of one check on a run.

    Attributes:
      title: title of the check.
      step: step of the evaluated checkpoint.
      time: time of the evaluation, UTC in ISO 8601.
      checkpoint: the requested checkpoint: "latest", "best" or a step.
      options: options of the check.
      runs: ``{run: step}`` of the runs that it was compared with.
      metrics: ``{name: value}``, None for a value that is not finite.
      headline: as in :class:`CheckResult`.
      intervals: as in :class:`CheckResult`.
      tables: as in :class:`CheckResult`.
      notes: as in :class:`CheckResult`.
      plots: name, title, caption and description of each plot; the plot itself is in the files
        ``NAME.png`` and ``NAME.pdf``.
    """

    title: str
    step: int
    time: str
    checkpoint: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    headline: Sequence[Headline] = ()
    intervals: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    plots: Sequence[tuple[str, str, str, str]] = ()

    @property
    def result(self) -> CheckResult:
        """The result without its plots."""
        metrics = {k: math.nan if value is None else value for k, value in self.metrics.items()}
        return CheckResult(
            metrics, self.headline, tables=self.tables, notes=self.notes, recorded=self.intervals
        )

    def pictures(self, folder: Path) -> list[Picture]:
        """Reads the plots; those whose files were removed are left out."""
        paths = {plot: folder / f"{plot[0]}.png" for plot in self.plots}
        return [
            Picture(name, title, caption, path.read_bytes(), alt)
            for (name, title, caption, alt), path in paths.items()
            if path.is_file()
            and not path.is_symlink()  # a report shows files of its own folder only
        ]


def record(
    result: CheckResult | None, pictures: Sequence[Picture], **attributes: Any
) -> CheckRecord:
    """The record of a result, or of none if the check applies to the compared runs only."""
    result = result or CheckResult({})
    return CheckRecord(
        **attributes,
        metrics={k: v if math.isfinite(v) else None for k, v in result.metrics.items()},
        headline=result.headline,
        intervals=result.intervals,
        tables=result.tables,
        notes=result.notes,
        plots=[(plot.name, plot.title, plot.caption, plot.alt) for plot in pictures],
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates the folder and holds its lock, so that evaluations write one after the other."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / ".lock", wait=True):
        yield


def read(folder: Path) -> dict[str, CheckRecord]:
    """Reads the records, ``{check: record}``, oldest first.

    Raises:
      InputError: the file of the records cannot be read.
    """
    path = folder / CHECKS_FILE
    try:
        if not path.exists():
            path = folder / METRICS_FILE
            return _version_0_1(path) if path.exists() else {}
        records = json.loads(path.read_text(encoding="utf-8"))
        return {check: _from_json(values) for check, values in records.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error!r}; remove it to start over") from error


def write(
    folder: Path,
    step: int,
    records: Mapping[str, CheckRecord],
    pictures: Mapping[str, Sequence[Picture]],
) -> dict[str, CheckRecord]:
    """Writes new records and their plots; call it with the folder locked.

    A record without metrics (the check applies to compared runs only) never replaces one with metrics.
    Plots of a replaced record that the new one does not have are deleted.

    Args:
      folder: ``WORKDIR/eval``.
      step: step of the evaluated checkpoint.
      records: ``{check: record}`` of this evaluation.
      pictures: ``{check: plots}`` of this evaluation.

    Returns:
      All records, those of earlier evaluations first.

    Raises:
      WriteError: a file cannot be written; the earlier records are still there.
    """
    earlier = read(folder)
    new = {
        check: record
        for check, record in records.items()
        if record.metrics or check not in earlier or not earlier[check].metrics
    }
    merged = {check: earlier[check] for check in earlier if check not in new} | new
    for picture in (picture for check in new for picture in pictures[check]):
        files.write_bytes(folder / f"{picture.name}.png", picture.png)
        if picture.pdf:
            files.write_bytes(folder / f"{picture.name}.pdf", picture.pdf)
    as_json = {check: dataclasses.asdict(record) for check, record in merged.items()}
    metrics = {f"eval/{k}": v for record in merged.values() for k, v in record.metrics.items()}
    _write_json(folder / CHECKS_FILE, as_json)
    _write_json(folder / METRICS_FILE, {"step": step} | metrics)
    for name in _plot_names(earlier) - _plot_names(merged):
        for path in (folder / f"{name}.png", folder / f"{name}.pdf"):
            with writing(path):
                path.unlink(missing_ok=True)
    return merged


def _plot_names(records: Mapping[str, CheckRecord]) -> set[str]:
    return {name for record in records.values() for name, *_ in record.plots}


def _write_json(path: Path, value: Any) -> None:
    files.write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _from_json(values: Mapping[str, Any]) -> CheckRecord:
    plots = [
        (str(name), str(title), str(caption), str(alt[0]) if alt else str(title))
        for name, title, caption, *alt in values["plots"]
    ]
    for name, *_ in plots:
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{name!r} is not the name of a file")
    return CheckRecord(
        title=str(values["title"]),
        step=int(values["step"]),
        time=datetime.datetime.fromisoformat(values["time"]).isoformat(),
        checkpoint=str(values["checkpoint"]),
        options=dict(values["options"]),
        runs={run: int(step) for run, step in values["runs"].items()},
        metrics={name: _number(value) for name, value in values["metrics"].items()},
        headline=[
            Headline(
                str(line["metric"]),
                str(line["label"]),
                float(line["scale"]),
                int(line["digits"]),
                line["higher_is_better"],
                str(line.get("raw", "")),
            )
            for line in values["headline"]
        ],
        intervals={
            name: (float(low), float(high))
            for name, (low, high) in values.get("intervals", {}).items()
        },
        tables=[
            Table(
                str(table["title"]),
                list(map(str, table["header"])),
                [list(map(str, row)) for row in table["rows"]],
            )
            for table in values["tables"]
        ],
        notes=list(map(str, values["notes"])),
        plots=plots,
    )


def _number(value: Any) -> float | None:
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value


def _version_0_1(path: Path) -> dict[str, CheckRecord]:
    """Assigns the metrics and plots of version 0.1 to their checks."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    step = int(metrics.pop("step"))
    time = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    summary_check = "accuracy" if "eval/accuracy" in metrics else "calibration"
    by_check: dict[str, dict[str, float | None]] = {}
    for name, value in metrics.items():
        name = name.removeprefix("eval/")
        check = summary_check if name in SUMMARY else name.partition("/")[0]
        by_check.setdefault(check, {})[name] = _number(value)
    plots: dict[str, list[tuple[str, str, str, str]]] = {check: [] for check in by_check}
    for name in sorted(file.stem for file in path.parent.glob("*.png")):
        for check in by_check:
            if PLOTS.get(name, name) == check or name.startswith(f"{check}_"):
                title = name.replace("_", " ")
                plots[check].append((name, title, "", title))
    return {
        check: CheckRecord(
            title=check.replace("_", " "),
            step=step,
            time=time.isoformat(timespec="seconds"),
            metrics=values,
            plots=plots[check],
        )
        for check, values in by_check.items()
    }
