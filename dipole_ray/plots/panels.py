"""Pictures of many small panels: lines with bands and levels over a number, or estimates with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes

from dipole_ray.errors import DatasetError
from dipole_ray.plots import style

_FEW_POINTS = 12  # lines of at most so many points have markers


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A curve with a band, or a level where it has a single point and no x."""

    label: str  # name in the legend; equal names are one entry
    colour: str
    x: Sequence[float]  # empty for a level across the panel
    y: Sequence[float]
    low: Sequence[float] = ()  # lower end of the band; empty for none
    high: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One set of axes."""

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line] = ()
    ylim: tuple[float, float] | None = None  # None = by the data
    ticks: Sequence[float] = ()  # places on x that are named; empty = automatic
    log: tuple[bool, bool] = (False, False)  # whether x and y are logarithmic
    online_from: float | None = None  # where the online phase begins, shaded


class Estimate(NamedTuple):
    """A method's estimate of a statistic, and the ends of its interval."""

    label: str
    value: float
    low: float
    high: float
    colour: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One statistic."""

    title: str
    xlabel: str
    estimates: Sequence[Estimate]  # rows; methods that are missing here leave a gap
    reference: float | None = None  # a value to compare with, such as 0.5 of a probability
    limits: tuple[float, float] | None = None  # None = by the data


def draw_panels(panels: Sequence[Panel], path: Path, *, columns: int, title: str = "") -> Path:
    """Draw the panels, `columns` in a row, save them as PNG, and return `path`; DatasetError where there is no line."""
    if not any(panel.lines for panel in panels):
        raise DatasetError(f"{path.name}: nothing to draw, no run has an evaluation for it")
    rows = math.ceil(len(panels) / columns)
    size = 3.3 * columns + 0.4, 2.4 * rows + 0.9
    with style.picture(path, size, (rows, columns), title=title) as (figure, grid):
        for axes, panel in zip_longest(grid.flat, panels):
            if panel is None:
                axes.set_visible(False)
            else:
                _draw_panel(axes, panel)
        longest = max(len(line.label) for panel in panels for line in panel.lines)
        widest_inches = 0.65 + 0.075 * longest  # line, gap, and letters of 8.5 points
        fitting = max(1, min(max(3, 2 * columns + 1), int(size[0] / widest_inches)))
        style.legend_below(figure, columns=fitting, handlelength=2.6)
    return path


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        _draw_line(axes, line)
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
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
        style.count_along_x(axes)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    if panel.online_from is not None:
        right = axes.get_xlim()[1]
        style.shade_phase(axes, panel.online_from, right)
        axes.set_xlim(right=right)


def _draw_line(axes: Axes, line: Line) -> None:
    """Draw a curve on its band, or a dotted level."""
    look: dict[str, Any] = {"color": line.colour, "label": line.label}
    if not len(line.x):
        axes.axhline(line.y[0], linestyle=(0, (1, 1.5)), linewidth=1.3, zorder=1.5, **look)
        return
    if len(line.low):
        axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.13, linewidth=0)
    look["linestyle"] = (0, (4, 2.5)) if line.dashed else "-"
    marker = "o" if len(line.x) <= _FEW_POINTS else None
    axes.plot(line.x, line.y, marker=marker, markersize=3.8, zorder=3, **look)


def draw_intervals(columns: Sequence[Column], path: Path, *, title: str = "") -> Path:
    """Draw the columns side by side over the same rows, in the order of first appearance, and return `path`."""
    labels = list(dict.fromkeys(item.label for column in columns for item in column.estimates))
    size = 2.6 * len(columns) + 1.3, 0.3 * len(labels) + 1.3
    with style.picture(path, size, (1, len(columns)), title=title, sharey=True) as (_, grid):
        for axes, column in zip(grid[0], columns, strict=True):
            _draw_column(axes, column, labels)
        grid[0, 0].set_yticks(range(len(labels)), labels)
        grid[0, 0].set_ylim(len(labels) - 0.4, -0.6)
    return path


def _draw_column(axes: Axes, column: Column, labels: Sequence[str]) -> None:
    for item in column.estimates:
        row = labels.index(item.label)
        axes.barh(row, item.high - item.low, left=item.low, height=0.55, color=item.colour, alpha=0.35, linewidth=0)
        axes.plot([item.value, item.value], [row - 0.275, row + 0.275], color=item.colour, linewidth=2.2)
    if column.reference is not None:
        axes.axvline(column.reference, color=style.GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    if column.limits is not None:
        axes.set_xlim(*column.limits)
    axes.set(title=column.title, xlabel=column.xlabel)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
