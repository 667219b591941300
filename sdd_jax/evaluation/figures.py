"""How plots look, and where the drawing of one run becomes that of several."""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sdd_jax.evaluation.findings import Draw, Plot

# Okabe and Ito's: distinct to colour-blind eyes. Each goes with a marker and a dash, for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")


def styles() -> Iterator[dict[str, Any]]:
    """Keyword arguments of ``axes.plot`` for one line after another."""
    cycled = zip(*map(itertools.cycle, (COLOURS, MARKERS, DASHES)), strict=False)
    for colour, marker, dash in cycled:
        yield {"color": colour, "marker": marker, "linestyle": dash, "markersize": 5}


def log_ticks(axes: Any, ticks: Iterable[int], largest: int) -> None:
    """A logarithmic horizontal axis with these ticks, up to ``largest``."""
    ticks = [tick for tick in ticks if tick <= largest]
    axes.set_xscale("log")
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()


def overlay(draw: Callable[..., None]) -> Draw:
    """``draw(axes, data, label=, **style)`` of one run, to all runs on the same axes."""

    def draw_all(figure, runs):
        axes = figure.subplots()
        for name, (data, style) in runs.items():
            draw(axes, data, label=name, **style)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False)

    return draw_all


def panels(draw: Callable[[Any, Any], None]) -> Draw:
    """``draw(axes, data)`` of one run, to one panel a run, side by side with the same axes."""

    def draw_all(figure, runs):
        row = figure.subplots(1, len(runs), squeeze=False, sharex=True, sharey=True)[0]
        for axes, (name, (data, _)) in zip(row, runs.items(), strict=True):
            draw(axes, data)
            axes.label_outer()
            if len(runs) > 1:
                axes.set_title(name)

    return draw_all


def save(plot: Plot, data: Mapping[str, Any], runs: Iterable[str], path: pathlib.Path) -> None:
    """Draws a plot into a PNG file.

    Args:
      plot: what to draw.
      data: ``{run: data}`` of the runs that have it.
      runs: all runs; a run looks the same in every plot.
      path: of the file.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    series = {
        run: (data[run], style) for run, style in zip(runs, styles(), strict=False) if run in data
    }
    shape = (plot.width(len(series)), plot.size[1])
    with rc_context({"text.parse_math": False}):  # a run's name may hold a $
        figure = Figure(figsize=shape, dpi=150, layout="constrained")
        plot.draw(figure, series)
        figure.savefig(path)
