"""Plots: a common style, and functions that draw several runs together."""

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sdd_jax.evaluation.results import CheckResult, Draw, Plot

# The palette of Okabe and Ito, distinct to colour-blind readers; markers and dashes are for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
PIXELS_PER_INCH = 150


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn plot.

    Attributes:
      name: name of the file, without ``.png``.
      title: heading.
      caption: one sentence on how to read the plot.
      png: content of the file.
    """

    name: str
    title: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """Width on screen in CSS pixels, 96 per inch."""
        return round(int.from_bytes(self.png[16:20], "big") * 96 / PIXELS_PER_INCH)


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


def panels(draw: Callable[[Any, Any], None]) -> Draw:
    """Draws each run in a panel of its own with ``draw(axes, data)``; the panels share their axes."""

    def draw_all(figure, runs):
        row = figure.subplots(1, len(runs), squeeze=False, sharex=True, sharey=True)[0]
        for axes, (name, (data, _)) in zip(row, runs.items(), strict=True):
            draw(axes, data)
            axes.label_outer()
            if len(runs) > 1:
                axes.set_title(name)

    return draw_all


def pictures(results: Mapping[str, CheckResult], runs: Iterable[str]) -> list[Picture]:
    """Draws the plots of a check.

    Args:
      results: ``{run: result}`` of the runs that the check applies to.
      runs: all runs of the report; a run has the same style in every plot.
    """
    plots: dict[str, tuple[Plot, dict[str, Any]]] = {}
    for run, result in results.items():
        for plot in result.plots:
            plots.setdefault(plot.name, (plot, {}))[1][run] = plot.data
    style = dict(zip(runs, styles(), strict=False))
    return [
        Picture(
            plot.name,
            plot.title,
            plot.caption,
            _png(plot, {run: (data, style[run]) for run, data in by_run.items()}),
        )
        for plot, by_run in plots.values()
    ]


def _png(plot: Plot, runs: Mapping[str, tuple[Any, Mapping[str, Any]]]) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width, height = plot.size
    file = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # the name of a run may contain a $
        figure = Figure(
            figsize=(width * (len(runs) if plot.panels else 1), height),
            dpi=PIXELS_PER_INCH,
            layout="constrained",
        )
        plot.draw(figure, runs)
        figure.savefig(file, format="png")
    return file.getvalue()
