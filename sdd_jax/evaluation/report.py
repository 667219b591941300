"""The report: one HTML file that needs no network and no other file."""

import base64
import dataclasses
import importlib.resources
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sdd_jax.evaluation import figures
from sdd_jax.evaluation.findings import MISSING, Findings, Headline, Plot, Table


@dataclasses.dataclass(frozen=True)
class Report:
    """What checks found about one run, or about several side by side.

    Attributes:
      runs: facts about each run, ``{run: {fact: value}}``; the first run is the one compared with.
      titles: of the checks, ``{check: title}``.
      findings: ``{check: {run: findings}}``.
      skipped: ``{check: {run: why}}``.
    """

    runs: Mapping[str, Mapping[str, Any]]
    titles: Mapping[str, str]
    findings: Mapping[str, Mapping[str, Findings]]
    skipped: Mapping[str, Mapping[str, str]]

    def plots(self, check: str) -> dict[str, tuple[Plot, dict[str, Any]]]:
        """``{name: (plot, {run: data})}`` of a check."""
        plots: dict[str, tuple[Plot, dict[str, Any]]] = {}
        for run, found in self.findings[check].items():
            for plot in found.plots:
                plots.setdefault(plot.name, (plot, {}))[1][run] = plot.data
        return plots

    def headline(self) -> list[dict[str, Any]]:
        """The rows of the table at the top: label, values by run, differences from the first run."""
        rows: dict[str, Headline] = {}
        for by_run in self.findings.values():
            for found in by_run.values():
                rows |= {line.metric: line for line in found.headline}
        values = {run: self.metrics(run) for run in self.runs}
        first = next(iter(self.runs))
        table = []
        for line in rows.values():
            at = {run: values[run].get(line.metric) for run in self.runs}
            cells = []
            for run in list(self.runs)[1:]:
                difference = None
                if at[run] is not None and at[first] is not None:
                    difference = at[run] - at[first]
                cells.append(
                    {
                        "value": line.show(at[run]),
                        "difference": line.show(difference, signed=True),
                        "verdict": _verdict(line, difference),
                    }
                )
            table.append(
                {
                    "label": line.label,
                    "better": {None: "", True: "higher", False: "lower"}[line.higher_is_better],
                    "first": line.show(at[first]),
                    "others": cells,
                }
            )
        return table

    def metrics(self, run: str) -> dict[str, float]:
        """All figures of a run."""
        return {
            name: value
            for by_run in self.findings.values()
            if run in by_run
            for name, value in by_run[run].metrics.items()
        }

    def text(self) -> str:
        """The tables for a terminal."""
        blocks = []
        for by_run in self.findings.values():
            blocks += _notes(by_run)
            for run, found in by_run.items():
                of = f" ({run})" if len(self.runs) > 1 else ""
                blocks += [
                    dataclasses.replace(table, title=table.title + of).text()
                    for table in found.tables
                ]
        rows = [
            [row["label"], row["first"]]
            + [
                cell["value"] + (f" ({cell['difference']})" if cell["verdict"] else "")
                for cell in row["others"]
            ]
            for row in self.headline()
        ]
        blocks.append(Table("In short", ["", *self.runs], rows).text())
        return "\n\n".join(blocks)

    def write(self, folder: pathlib.Path) -> None:
        """Writes the plots as PNG files, and ``report.html`` with the plots inside."""
        images = {}
        for check in self.findings:
            for name, (plot, data) in self.plots(check).items():
                path = folder / f"{name}.png"
                figures.save(plot, data, self.runs, path)
                images[name] = base64.b64encode(path.read_bytes()).decode()
        (folder / "report.html").write_text(self.html(images), encoding="utf-8")

    def html(self, images: Mapping[str, str]) -> str:
        """The page, everything from the runs escaped.

        Args:
          images: PNG files in base64, by name of the plot.
        """
        import jinja2

        template = importlib.resources.files("sdd_jax.evaluation").joinpath("report.html.j2")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        sections = [
            {
                "name": check,
                "title": self.titles[check],
                "notes": _notes(by_run),
                "skipped": self.skipped.get(check, {}),
                "plots": [
                    {
                        "image": images[plot.name],
                        "width": round(96 * plot.width(len(data))),
                        "title": plot.title,
                        "reading": plot.reading,
                    }
                    for plot, data in self.plots(check).values()
                ],
                "tables": [(run, table) for run, f in by_run.items() for table in f.tables],
                "metrics": _side_by_side([by_run.get(run) for run in self.runs]),
            }
            for check, by_run in self.findings.items()
        ]
        return environment.from_string(template.read_text(encoding="utf-8")).render(
            runs=self.runs, headline=self.headline(), sections=sections
        )


def _verdict(line: Headline, difference: float | None) -> str:
    if difference is None or difference != difference or line.higher_is_better is None:
        return ""
    if float(line.show(difference)) == 0:
        return "same"
    return "better" if (difference > 0) == line.higher_is_better else "worse"


def _notes(by_run: Mapping[str, Findings]) -> list[str]:
    """Each note once, with its runs where it does not hold for all."""
    runs_of: dict[str, list[str]] = {}
    for run, found in by_run.items():
        for note in found.notes:
            runs_of.setdefault(note, []).append(run)
    return [
        note if len(runs) == len(by_run) else f"{', '.join(runs)}: {note}"
        for note, runs in runs_of.items()
    ]


def _side_by_side(findings: Sequence[Findings | None]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for found in findings if found for name in found.metrics)
    return [
        (name, [_number(f.metrics.get(name) if f else None) for f in findings]) for name in names
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else format(value, ".6g")
