"""Results of a check: metrics, and their presentation in the terminal and the report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MISSING = "-"
WARNING = "Warning: "  # start of a note that is displayed with the summary, not with its check

# (figure, {run: (data of the run, keyword arguments of its lines)})
Draw = Callable[[Any, Mapping[str, tuple[Any, Mapping[str, Any]]]], None]


@dataclasses.dataclass(frozen=True)
class Headline:
    """A metric for the summary table.

    Attributes:
      metric: its name in the metrics.
      label: text with the unit.
      scale: factor of the displayed value, 100 for per cent.
      digits: number of decimal places.
      higher_is_better: None if neither direction is better.
      raw: for a temperature-scaled figure, the metric without the scaling, shown below it.
    """

    metric: str
    label: str
    scale: float = 1.0
    digits: int = 2
    higher_is_better: bool | None = True
    raw: str = ""

    def show(self, value: float | None, *, signed: bool = False) -> str:
        """Formats a value of the metric, or a difference of two values."""
        if value is None or value != value:
            return MISSING
        return format(value * self.scale, f"{'+' if signed else ''}.{self.digits}f")


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """The table for a terminal, with aligned columns."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        aligned = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        ]
        return "\n".join([self.title, *aligned])


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot of one run, or of several runs together.

    Attributes:
      name: name of the file, without ``.png``.
      title: heading.
      caption: one sentence on how to read the plot.
      draw: fills a matplotlib figure with the data of all runs.
      data: data of this run.
      size: width and height in inches, for one run.
      panels: draw each run in its own panel; the width is multiplied by the number of runs.
    """

    name: str
    title: str
    caption: str
    draw: Draw
    data: Any
    size: tuple[float, float] = (6.0, 4.0)
    panels: bool = False


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The result of one check on one run.

    Attributes:
      metrics: ``{name: value}``; the names do not depend on the values.
      headline: the metrics of the summary table.
      plots: plots.
      tables: tables for the terminal and the report.
      notes: sentences that a reader needs, e.g. that the data are generated; see :data:`WARNING`.
    """

    metrics: Mapping[str, float]
    headline: Sequence[Headline] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
