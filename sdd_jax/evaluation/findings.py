"""What a check hands back: figures, and how a person should be shown them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MISSING = "-"
Draw = Callable[[Any, Mapping[str, tuple[Any, Mapping[str, Any]]]], None]


@dataclasses.dataclass(frozen=True)
class Headline:
    """A figure for the table at the top.

    Attributes:
      metric: its name in the metrics.
      label: for people, with the unit.
      scale: what it is multiplied by, 100 for per cent.
      digits: after the decimal point.
      higher_is_better: None if neither is.
    """

    metric: str
    label: str
    scale: float = 1.0
    digits: int = 2
    higher_is_better: bool | None = True

    def show(self, value: float | None, *, signed: bool = False) -> str:
        """The figure, or a difference of two, as text."""
        if value is None or value != value:
            return MISSING
        return format(value * self.scale, f"{'+' if signed else ''}.{self.digits}f")


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure, of one run or of several side by side.

    Attributes:
      name: of the file, without ``.png``.
      title: for people.
      reading: one sentence on how to read it.
      draw: fills a matplotlib figure from ``{name of the run: (data, its style of lines)}``.
      data: this run's.
      size: width and height in inches, of one run.
      panels: whether each run has a panel of its own, so that the width grows with the runs.
    """

    name: str
    title: str
    reading: str
    draw: Draw
    data: Any
    size: tuple[float, float] = (6.0, 4.0)
    panels: bool = False

    def width(self, runs: int) -> float:
        """Inches, for so many runs."""
        return self.size[0] * (runs if self.panels else 1)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """For a terminal, columns aligned."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        shown = (
            "  ".join(
                [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])],
            )
            for line in lines
        )
        return "\n".join([self.title, *shown])


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one check found about one run.

    Attributes:
      metrics: ``{name: value}``; names of one check never depend on the values.
      headline: which of them belong at the top.
      plots: figures.
      tables: for the terminal and the report.
      notes: what a reader must know, e.g. that data were generated.
    """

    metrics: Mapping[str, float]
    headline: Sequence[Headline] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
