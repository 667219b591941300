"""The report: one self-contained HTML file."""

import base64
import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from sdd_jax.evaluation.plots import Picture
from sdd_jax.evaluation.results import MISSING, WARNING, CheckResult, Headline, Table


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

    def summary(self) -> list[dict[str, Any]]:
        """Rows of the summary table: label, values by run, differences from the first run.

        A metric that several checks report at one step is one row. The raw figure is directly below its
        temperature-scaled one, at the place of the first of the two.
        """
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

    def _summary_row(self, step: str, line: Headline, *, beside: bool) -> dict[str, Any]:
        values = [self._headline_value(run, step, line.metric) for run in self.runs]
        others = []
        for value in values[1:]:
            difference = None if value is None or values[0] is None else value - values[0]
            others.append(
                {
                    "value": line.show(value),
                    "difference": line.show(difference, signed=True),
                    "verdict": _verdict(line, difference),
                }
            )
        return {
            "label": f"{line.label} ({step})" if step else line.label,
            "better": {None: "", True: "higher", False: "lower"}[line.higher_is_better],
            "beside": beside,
            "first": line.show(values[0]),
            "others": others,
        }

    def _headline_value(self, run: str, step: str, metric: str) -> float | None:
        for section in self.sections:
            result = section.results.get(run) if section.step == step else None
            if result and any(line.metric == metric for line in result.headline):
                return result.metrics.get(metric)
        return None

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
        rows = [
            [row["label"], row["first"]]
            + [
                cell["value"] + (f" ({cell['difference']})" if cell["verdict"] else "")
                for cell in row["others"]
            ]
            for row in self.summary()
        ]
        blocks.append(Table("Summary", ["", *self.runs], rows).text())
        return "\n\n".join(blocks)

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
            runs=self.runs, warnings=self.warnings(), summary=self.summary(), sections=sections
        )


def _verdict(line: Headline, difference: float | None) -> str:
    if difference is None or difference != difference or line.higher_is_better is None:
        return ""
    if float(line.show(difference)) == 0:
        return "same"
    return "better" if (difference > 0) == line.higher_is_better else "worse"


def _side_by_side(results: Sequence[CheckResult | None]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for result in results if result for name in result.metrics)
    return [
        (name, [_number(result.metrics.get(name) if result else None) for result in results])
        for name in names
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else format(value, ".6g")
