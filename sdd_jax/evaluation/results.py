"""Results of a check: metrics, and their presentation in the terminal and the report."""

import csv
import dataclasses
import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sdd_jax.evaluation.metrics import bootstrap_interval

Interval = tuple[float, float]

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
        return format(value * self.scale, f"{'+' if signed else ''}z.{self.digits}f")  # z: no -0

    def show_interval(self, interval: Interval | None, *, signed: bool = False) -> str:
        """Formats an interval of the metric, or of a difference; empty if there is none."""
        if interval is None:
            return ""
        return f"[{', '.join(self.show(end, signed=signed) for end in interval)}]"


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

    def csv(self) -> str:
        """The table as comma-separated values."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([self.header, *self.rows])
        return file.getvalue()

    def latex(self) -> str:
        """The table as a ``tabular`` for LaTeX; it needs the package ``booktabs``."""
        header, *rows = (
            " & ".join(map(_latex, line)) + r" \\" for line in (self.header, *self.rows)
        )
        return "\n".join(
            [
                f"% {' '.join(self.title.split())}; \\usepackage{{booktabs}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
                r"\toprule",
                header,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                "",
            ]
        )


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _latex(text: str) -> str:
    """Escapes text; signed and negative numbers get the minus sign of mathematics."""
    escaped = re.sub(
        r"[\\~^&%$#_{}]", lambda m: _LATEX.get(m[0], f"\\{m[0]}"), " ".join(text.split())
    )
    return re.sub(r"(?<![\w.])[+-]\d[\d.]*", r"$\g<0>$", escaped)


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot of one run, or of several runs together.

    Attributes:
      name: name of the files, without ``.png`` and ``.pdf``.
      title: heading.
      caption: one sentence on how to read the plot.
      draw: fills a matplotlib figure, or a part of one, with the data of runs.
      data: data of this run.
      seen: what the plot shows of this run, for readers who cannot see it.
      size: width and height in inches, for one run.
      panels: draw each run in its own panel.
      shared_axes: the panels have the same limits.
    """

    name: str
    title: str
    caption: str
    draw: Draw
    data: Any
    seen: str = ""
    size: tuple[float, float] = (6.0, 4.0)
    panels: bool = False
    shared_axes: bool = True


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The result of one check on one run.

    Attributes:
      metrics: ``{name: value}``; the names do not depend on the values.
      headline: the metrics of the summary table.
      plots: plots.
      tables: tables for the terminal and the report.
      notes: sentences that a reader needs, e.g. that the data are generated; see :data:`WARNING`.
      by_image: what each image contributes to the metrics of the headline, for their intervals and those
        of differences, see :func:`sdd_jax.evaluation.metrics.bootstrap_interval`.
      recorded: intervals of an earlier evaluation, whose contributions are not kept.
    """

    metrics: Mapping[str, float]
    headline: Sequence[Headline] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    by_image: Mapping[str, Sequence[np.ndarray]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )
    recorded: Mapping[str, Interval] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of the metrics of the headline over the test images, where they are known."""
        intervals = dict(self.recorded)
        for line in self.headline:
            interval = bootstrap_interval(self.by_image.get(line.metric, ()))
            if interval is not None:
                # To first order, a metric near its bound can pass it; a percentage is at most 1.
                highest = 1 if line.scale == 100 else np.inf
                low, high = np.clip(interval, 0, highest).tolist()
                intervals[line.metric] = low, high
        return intervals
