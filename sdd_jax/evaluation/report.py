"""The report: one self-contained HTML file."""

import base64
import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from sdd_jax.evaluation.plots import Picture
from sdd_jax.evaluation.results import MISSING, CheckResult, Headline, Table


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
        """Rows of the summary table: label, values by run, differences from the first run."""
        return [
            self._summary_row(section, line)
            for section in self.sections
            for line in {
                line.metric: line for result in section.results.values() for line in result.headline
            }.values()
        ]

    def _summary_row(self, section: Section, line: Headline) -> dict[str, Any]:
        values = [
            section.results[run].metrics.get(line.metric) if run in section.results else None
            for run in self.runs
        ]
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
            "label": f"{line.label} ({section.step})" if section.step else line.label,
            "better": {None: "", True: "higher", False: "lower"}[line.higher_is_better],
            "first": line.show(values[0]),
            "others": others,
        }

    def text(self) -> str:
        """Notes and tables for a terminal, the summary last."""
        blocks = []
        for section in self.sections:
            blocks += _notes(section.results)
            for run, result in section.results.items():
                suffix = f" ({run})" if len(self.runs) > 1 else ""
                blocks += [
                    dataclasses.replace(table, title=table.title + suffix).text()
                    for table in result.tables
                ]
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
                "notes": _notes(section.results),
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
            runs=self.runs, summary=self.summary(), sections=sections
        )


def _verdict(line: Headline, difference: float | None) -> str:
    if difference is None or difference != difference or line.higher_is_better is None:
        return ""
    if float(line.show(difference)) == 0:
        return "same"
    return "better" if (difference > 0) == line.higher_is_better else "worse"


def _notes(results: Mapping[str, CheckResult]) -> list[str]:
    """Each note once, preceded by its runs unless it applies to all."""
    runs_of: dict[str, list[str]] = {}
    for run, result in results.items():
        for note in result.notes:
            runs_of.setdefault(note, []).append(run)
    return [
        note if len(runs) == len(results) else f"{', '.join(runs)}: {note}"
        for note, runs in runs_of.items()
    ]


def _side_by_side(results: Sequence[CheckResult | None]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for result in results if result for name in result.metrics)
    return [
        (name, [_number(result.metrics.get(name) if result else None) for result in results])
        for name in names
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else format(value, ".6g")
