"""Pictures of many small panels with one legend: lines with bands, and levels, over a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dipole_ray.errors import DatasetError
from dipole_ray.plots import style

_FEW_POINTS = 12
"""Lines of at most so many points have markers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A curve with a band, or a level where it has a single point and no x."""

    label: str
    """Name in the legend; equal names are one entry."""
    colour: str
    """Its colour."""
    x: Sequence[float]
    """Where; empty for a level across the panel."""
    y: Sequence[float]
    """Middle."""
    low: Sequence[float] = ()
    """Lower end of the band; empty for none."""
    high: Sequence[float] = ()
    """Upper end of the band."""
    dashed: bool = False
    """Whether it is dashed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One set of axes."""

    title: str
    """Above it."""
    xlabel: str
    """Below it."""
    ylabel: str
    """Beside it."""
    lines: Sequence[Line] = field(default_factory=tuple)
    """What is drawn."""
    ylim: tuple[float, float] | None = None
    """Range of y; None = by the data."""
    ticks: Sequence[float] = ()
    """Places on x that are named; empty = automatic."""
    log: tuple[bool, bool] = (False, False)
    """Whether x and y are logarithmic."""
    online_from: float | None = None
    """Where the online phase begins, shaded."""


def draw_panels(panels: Sequence[Panel], path: Path, *, columns: int, title: str = "") -> Path:
    """Draw the panels row by row and save them as PNG.

    Args:
        panels: What to draw.
        path: The PNG to write.
        columns: Panels in a row.
        title: Headline.

    Returns:
        `path`.

    Raises:
        DatasetError: There is nothing to draw.
    """
    if not any(panel.lines for panel in panels):
        raise DatasetError(f"{path.name}: nothing to draw, no run has an evaluation for it")
    rows = math.ceil(len(panels) / columns)
    with style.look():
        figure = style.new_figure(3.3 * columns + 0.4, 2.4 * rows + 0.9)
        grid = figure.subplots(rows, columns, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index < len(panels):
                _draw_panel(axes, panels[index])
            else:
                axes.set_visible(False)
        _legend(figure, columns)
        if title:
            figure.suptitle(title, fontsize=10.5, fontweight="bold")
        return style.save(figure, path)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        _draw_line(axes, line)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    if panel.ylim is not None:
        axes.set_ylim(*panel.ylim)
    if panel.log[0]:
        axes.set_xscale("log")
    if panel.log[1]:
        axes.set_yscale("log")
    if panel.ticks:
        axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    elif not panel.log[0]:
        style.thousands(axes)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    if panel.online_from is not None:
        right = axes.get_xlim()[1]
        axes.axvspan(panel.online_from, right, color=style.SKY, alpha=0.10, linewidth=0, zorder=0)
        axes.axvline(panel.online_from, color=style.GREY, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.set_xlim(right=right)


def _draw_line(axes: Axes, line: Line) -> None:
    dashes = (0, (4, 2.5)) if line.dashed else "-"
    if not len(line.x):
        axes.axhline(line.y[0], color=line.colour, linestyle=(0, (1, 1.5)), linewidth=1.3, label=line.label, zorder=1.5)
        return
    if len(line.low):
        axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.13, linewidth=0)
    marker = "o" if len(line.x) <= _FEW_POINTS else None
    axes.plot(
        line.x, line.y, color=line.colour, linestyle=dashes, marker=marker, markersize=3.8, label=line.label, zorder=3
    )


def _legend(figure: Figure, columns: int) -> None:
    """Put one legend below all panels, with every label once."""
    drawn = (handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0])
    handles = {str(handle.get_label()): handle for handle in drawn}
    if handles:
        widest_inches = 0.65 + 0.075 * max(map(len, handles))  # line, gap, and letters of 8.5 points
        most = max(1, min(max(3, 2 * columns + 1), int(figure.get_figwidth() / widest_inches)))
        figure.legend(
            handles=list(handles.values()),
            loc="outside lower center",
            ncols=min(len(handles), most),
            fontsize=8.5,
            handlelength=2.6,
        )
