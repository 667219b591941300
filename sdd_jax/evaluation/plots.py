"""Plots: a common style, and functions that draw several runs together."""

import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sdd_jax.evaluation.results import CheckResult, Draw, Plot

# The palette of Okabe and Ito, distinct to colour-blind readers; markers and dashes are for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
PIXELS_PER_INCH = 150
MAX_OVERLAID = 4  # runs on the same axes; more get a panel each
MAX_ROW = 14.0  # inches of the panels in a row


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn plot.

    Attributes:
      name: name of the files, without ``.png`` and ``.pdf``.
      title: heading.
      caption: one sentence on how to read the plot.
      png: the plot as pixels, for the report.
      alt: what the plot shows, for readers who cannot see it.
      pdf: the plot as vectors, for print; empty if it was not drawn by this evaluation.
    """

    name: str
    title: str
    caption: str
    png: bytes
    alt: str = ""
    pdf: bytes = b""

    @property
    def width(self) -> int:
        """Width on screen in CSS pixels, 96 per inch."""
        return round(int.from_bytes(self.png[16:20], "big") * 96 / PIXELS_PER_INCH)

    @property
    def pixels(self) -> np.ndarray:
        """The plot as RGB, uint8 ``[H, W, 3]``."""
        from PIL import Image

        with Image.open(io.BytesIO(self.png)) as image:
            return np.asarray(image.convert("RGB"))


def styles() -> Iterator[dict[str, Any]]:
    """Yields keyword arguments of ``axes.plot``, a different style for each line."""
    cycled = zip(*map(itertools.cycle, (COLOURS, MARKERS, DASHES)), strict=False)
    for colour, marker, dash in cycled:
        yield {"color": colour, "marker": marker, "linestyle": dash, "markersize": 5}


def log_ticks(axes: Any, ticks: Iterable[int], largest: int) -> None:
    """Makes the horizontal axis logarithmic, with the ticks up to ``largest``."""
    shown = [tick for tick in ticks if tick <= largest]
    axes.set_xscale("log")
    axes.set_xticks(shown, map(str, shown))
    axes.minorticks_off()


def overlay(draw: Callable[..., None]) -> Draw:
    """Draws all runs on the same axes with ``draw(axes, data, label=run, **style)``."""

    def draw_all(figure, runs):
        axes = figure.subplots()
        for name, (data, style) in runs.items():
            draw(axes, data, label=name, **style)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False)

    return draw_all


def panel(draw: Callable[[Any, Any], None]) -> Draw:
    """Draws one run on its own axes with ``draw(axes, data)``."""

    def draw_one(figure, runs):
        ((data, _),) = runs.values()
        draw(figure.subplots(), data)

    return draw_one


def pictures(results: Mapping[str, CheckResult], runs: Iterable[str]) -> list[Picture]:
    """Draws the plots of a check.

    Args:
      results: ``{run: result}`` of the runs that the check applies to.
      runs: all runs of the report; a run has the same style in every plot.
    """
    plots: dict[str, dict[str, Plot]] = {}
    for run, result in results.items():
        for plot in result.plots:
            plots.setdefault(plot.name, {})[run] = plot
    style = dict(zip(runs, styles(), strict=False))
    return [_picture(by_run, style) for by_run in plots.values()]


def _picture(plots: Mapping[str, Plot], style: Mapping[str, Mapping[str, Any]]) -> Picture:
    from matplotlib import rc_context

    plot, *_ = plots.values()
    seen = [f"{run}: {p.seen}" if len(plots) > 1 else p.seen for run, p in plots.items() if p.seen]
    png, pdf = io.BytesIO(), io.BytesIO()
    # The name of a run may contain a $; journals want fonts of type 42.
    with rc_context({"text.parse_math": False, "pdf.fonttype": 42}):
        figure = _figure(plot, {run: (p.data, style[run]) for run, p in plots.items()})
        figure.savefig(png, format="png")
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    alt = f"{plot.title}. {'; '.join(seen)}." if seen else plot.title
    return Picture(plot.name, plot.title, plot.caption, png.getvalue(), alt, pdf.getvalue())


def _figure(plot: Plot, runs: Mapping[str, tuple[Any, Mapping[str, Any]]]) -> Any:
    """All runs on the same axes, or in panels row by row."""
    from matplotlib.figure import Figure

    width, height = plot.size
    separate = len(runs) > 1 and (plot.panels or len(runs) > MAX_OVERLAID)
    columns = min(len(runs), max(1, int(MAX_ROW // width))) if separate else 1
    rows = math.ceil(len(runs) / columns) if separate else 1
    figure = Figure((width * columns, height * rows), PIXELS_PER_INCH, layout="constrained")
    if not separate:
        plot.draw(figure, runs)
        return figure
    parts = list(figure.subfigures(rows, columns, squeeze=False).flat)[: len(runs)]
    for part, (run, drawn) in zip(parts, runs.items(), strict=True):
        part.suptitle(run)
        plot.draw(part, {run: drawn})
    if plot.shared_axes:
        for group in zip(*(part.axes for part in parts), strict=True):
            _share_limits(group)
    return figure


def _share_limits(group: Sequence[Any]) -> None:
    for axis in ("x", "y"):
        limits = [limit for axes in group for limit in getattr(axes, f"get_{axis}lim")()]
        for axes in group:
            inverted = bool(getattr(axes, f"{axis}axis_inverted")())
            ordered = sorted((min(limits), max(limits)), reverse=inverted)
            getattr(axes, f"set_{axis}lim")(*ordered)
