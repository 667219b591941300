"""The report: one self-contained HTML file."""

import base64
import dataclasses
import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from sdd_jax.evaluation.metrics import paired_interval
from sdd_jax.evaluation.plots import Picture
from sdd_jax.evaluation.results import (
    MISSING,
    WARNING,
    CheckResult,
    Headline,
    Interval,
    Table,
)

UNCLEAR = "unclear"  # a difference whose interval includes zero


@dataclasses.dataclass(frozen=True)
class Section:
    """One check in the report.

    Attributes:
      name: name of the check.
      title: heading.
      results: ``{run: result}``.
      pictures: plots.
      skipped: ``{run: reason}`` for the runs that the check does not apply to.
      source: origin of the results, if not this evaluation.
      step: the step of the results, as "step N", if it differs from that of the report.
    """

    name: str
    title: str
    results: Mapping[str, CheckResult]
    pictures: Sequence[Picture] = ()
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    step: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of checks on one run, or on several runs side by side.

    Attributes:
      runs: ``{run: {fact: value}}``; the other runs are compared with the first.
      sections: the checks.
    """

    runs: Mapping[str, Mapping[str, Any]]
    sections: Sequence[Section]

    def summary(self) -> list["SummaryRow"]:
        """Rows of the summary table, computed once.

        A metric that several checks report at one step is one row. The raw figure is directly below its
        temperature-scaled one, at the place of the first of the two.
        """
        return self._rows

    @functools.cached_property
    def _rows(self) -> list["SummaryRow"]:
        quantities: dict[tuple[str, str], dict[str, Headline]] = {}
        for section in self.sections:
            for line in (line for result in section.results.values() for line in result.headline):
                lines = quantities.setdefault((section.step, line.raw or line.metric), {})
                lines[line.metric] = line
        return [
            self._summary_row(step, line, beside=i > 0)
            for (step, _), lines in quantities.items()
            for i, line in enumerate(sorted(lines.values(), key=lambda line: not line.raw))
        ]

    def _summary_row(self, step: str, line: Headline, *, beside: bool) -> "SummaryRow":
        first, *others = self.runs
        return SummaryRow(
            line,
            f"{line.label} ({step})" if step else line.label,
            beside,
            self._estimate(first, step, line.metric),
            [
                Comparison(
                    line,
                    self._estimate(first, step, line.metric),
                    self._estimate(run, step, line.metric),
                    self._interval(first, run, step, line.metric),
                )
                for run in others
            ],
        )

    def _interval(self, first: str, run: str, step: str, metric: str) -> Interval | None:
        """The interval of a difference, if one check has the images' contributions of both runs."""
        for section in self.sections:
            results = [section.results.get(name) for name in (first, run)]
            by_image = [result.by_image.get(metric, ()) for result in results if result]
            if section.step == step and len(by_image) == 2 and all(by_image):
                return paired_interval(*by_image)
        return None

    def _estimate(self, run: str, step: str, metric: str) -> "Estimate":
        for section in self.sections:
            result = section.results.get(run) if section.step == step else None
            if result and any(line.metric == metric for line in result.headline):
                return Estimate(result.metrics.get(metric), result.intervals.get(metric))
        return Estimate(None, None)

    def warnings(self) -> list[str]:
        """The notes that are warnings, without the word, preceded by their runs and step."""
        return [note for section in self.sections for note in self._notes(section, warnings=True)]

    def _notes(self, section: Section, *, warnings: bool = False) -> list[str]:
        """Each warning, or each other note, once, preceded by its runs unless it applies to all."""
        runs_of: dict[str, list[str]] = {}
        for run, result in section.results.items():
            for note in result.notes:
                if note.startswith(WARNING) == warnings:
                    runs_of.setdefault(note.removeprefix(WARNING), []).append(run)
        step = [section.step] if warnings and section.step else []
        where = {
            note: ", ".join((runs if len(runs) < len(self.runs) else []) + step)
            for note, runs in runs_of.items()
        }
        return [f"{prefix}: {note}" if prefix else note for note, prefix in where.items()]

    def text(self) -> str:
        """Notes and tables for a terminal, the warnings and the summary last."""
        blocks = []
        for section in self.sections:
            blocks += self._notes(section)
            for run, result in section.results.items():
                suffix = f" ({run})" if len(self.runs) > 1 else ""
                blocks += [
                    dataclasses.replace(table, title=table.title + suffix).text()
                    for table in result.tables
                ]
        blocks += [WARNING + warning for warning in self.warnings()]
        values = [[row.label, *row.shown] for row in self.summary()]
        blocks.append(Table(self._title(), ["", *self.runs], values).text())
        first, *others = self.runs
        if others:
            differences = [
                [row.label, *(cell.text() for cell in row.others)] for row in self.summary()
            ]
            blocks.append(Table(self._relation(), ["", *others], differences).text())
        return "\n\n".join(blocks)

    def _title(self) -> str:
        known = self._has_intervals()
        return f"Summary{' [95 % interval over the test images]' if known else ''}"

    def _has_intervals(self) -> bool:
        return any(interval for row in self.summary() for _, interval in row.cells)

    def _relation(self) -> str:
        first, *others = self.runs
        run = others[0] if len(others) == 1 else "each run"
        return (
            f"Difference, {run} minus {first} [95 % interval over the test images]; {UNCLEAR}: it "
            "includes zero"
        )

    def files(self) -> dict[str, str]:
        """``{name: content}`` of the report's files.

        ``report.html``; ``summary.csv`` and ``summary.tex``; ``CHECK.csv`` and ``CHECK.tex`` of each
        check with tables.
        """
        first, *others = self.runs
        header = ["metric", first, f"{first} low", f"{first} high"]
        for run in others:
            header += [run, f"{run} low", f"{run} high", f"{run} - {first}", "low", "high"]
        numbers = [
            [row.label]
            + [_exact(row.line, number) for number in row.first.numbers]
            + [_exact(row.line, number) for cell in row.others for number in cell.numbers]
            for row in self.summary()
        ]
        files = {"report.html": self.html(), "summary.csv": Table("", header, numbers).csv()}
        header = ["", first]
        for run in others:
            header += [run, f"{run} - {first}"]
        cells = [
            [row.label, row.shown[0]]
            + [
                text
                for shown, cell in zip(row.shown[1:], row.others, strict=True)
                for text in (shown, cell.text())
            ]
            for row in self.summary()
        ]
        title = f"{self._title()}. {self._relation()}" if others else self._title()
        files["summary.tex"] = Table(title, header, cells).latex()
        for section in self.sections:
            if table := self._merged_table(section):
                files[f"{section.name}.csv"] = table.csv()
                files[f"{section.name}.tex"] = table.latex()
        return files

    def _merged_table(self, section: Section) -> Table | None:
        """The tables of a check, of all runs, under each other."""
        tables = [
            (run, table) for run, result in section.results.items() for table in result.tables
        ]
        if not tables:
            return None
        _, first = tables[0]
        if len(self.runs) == 1 and len(tables) == 1:
            return first
        rows = [[run, *row] for run, table in tables for row in table.rows]
        return Table(first.title, ["run", *first.header], rows)

    def html(self) -> str:
        """The page; text from the runs is escaped."""
        import jinja2

        template = importlib.resources.files("sdd_jax.evaluation").joinpath("report.html.j2")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        sections = [
            {
                "name": section.name,
                "title": section.title,
                "source": section.source,
                "notes": self._notes(section),
                "skipped": section.skipped,
                "tables": [
                    (run, table)
                    for run, result in section.results.items()
                    for table in result.tables
                ],
                "pictures": [
                    (picture, base64.b64encode(picture.png).decode())
                    for picture in section.pictures
                ],
                "metrics": _side_by_side([section.results.get(run) for run in self.runs]),
            }
            for section in self.sections
        ]
        return environment.from_string(template.read_text(encoding="utf-8")).render(
            runs=self.runs,
            first=next(iter(self.runs)),
            warnings=self.warnings(),
            summary=self.summary(),
            intervals=self._has_intervals(),
            unclear=UNCLEAR,
            sections=sections,
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric of a run.

    Attributes:
      value: its value; None if the run has none.
      interval: its 95 % interval over the test images; None if unknown.
    """

    value: float | None
    interval: Interval | None

    @property
    def numbers(self) -> tuple[float | None, ...]:
        """Value and the ends of the interval."""
        return self.value, *(self.interval or (None, None))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A metric of a run beside that of the first run.

    Attributes:
      line: the metric.
      first: that of the first run.
      other: that of this run.
      interval: 95 % interval of the difference over the test images; None if unknown.
    """

    line: Headline
    first: Estimate
    other: Estimate
    interval: Interval | None

    @property
    def difference(self) -> float | None:
        """This run minus the first."""
        first, other = self.first.value, self.other.value
        return None if first is None or other is None else other - first

    @property
    def numbers(self) -> tuple[float | None, ...]:
        """Value, its interval, the difference and its interval."""
        return *self.other.numbers, self.difference, *(self.interval or (None, None))

    @property
    def shown_interval(self) -> str:
        """The interval of the difference as text; empty if unknown."""
        return self.line.show_interval(self.interval, signed=True)

    @property
    def verdict(self) -> str:
        """``unclear`` if the interval includes zero, else ``better`` or ``worse``; empty if unknown."""
        if self.interval is None:
            return ""
        low, high = self.interval
        if low <= 0 <= high:
            return UNCLEAR
        if self.line.higher_is_better is None:
            return ""
        return "better" if (low > 0) == self.line.higher_is_better else "worse"

    @property
    def shown_difference(self) -> str:
        """The difference as text; empty if unknown."""
        shown = self.line.show(self.difference, signed=True)
        return "" if shown == MISSING else shown

    def text(self) -> str:
        """Difference, interval and verdict."""
        parts = (self.shown_difference, self.shown_interval, self.verdict)
        return " ".join(filter(None, parts)) or MISSING


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """A row of the summary: a metric of all runs.

    Attributes:
      line: the metric.
      label: its label, with the step if that differs from the report's.
      beside: whether it is the raw figure below its temperature-scaled one.
      first: that of the first run.
      others: the other runs.
    """

    line: Headline
    label: str
    beside: bool
    first: Estimate
    others: Sequence[Comparison]

    @property
    def better(self) -> str:
        """The better direction."""
        return {None: "", True: "higher", False: "lower"}[self.line.higher_is_better]

    @property
    def shown(self) -> list[str]:
        """The values of all runs with their intervals, as text."""
        return [" ".join(filter(None, cell)) for cell in self.cells]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Value and interval of each run as text; an interval is empty if unknown."""
        estimates = [self.first, *(comparison.other for comparison in self.others)]
        return [(self.line.show(x.value), self.line.show_interval(x.interval)) for x in estimates]


def _exact(line: Headline, value: float | None) -> str:
    """A value in the unit of its label, with six digits; empty if there is none."""
    return "" if value is None else format(value * line.scale, ".6g")


def _side_by_side(results: Sequence[CheckResult | None]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for result in results if result for name in result.metrics)
    return [
        (name, [_number(result.metrics.get(name) if result else None) for result in results])
        for name in names
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else format(value, ".6g")
