"""Estimates with their intervals, one row a method, several statistics side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes

from dipole_ray.errors import DatasetError
from dipole_ray.plots import style


class Estimate(NamedTuple):
    """One row of a column: the estimate of a method, and the ends of its interval."""

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
    estimates: Sequence[Estimate]
    """Rows; methods that are missing here leave a gap."""
    reference: float | None = None
    """A value to compare with, such as 0.5 of a probability."""
    limits: tuple[float, float] | None = None
    """Range; None = by the data."""


def draw_intervals(columns: Sequence[Column], path: Path, *, title: str = "") -> Path:
    """Draw the columns side by side over the same rows, save them as PNG, and return its path.

    The rows come in the order of first appearance.

    Raises:
        DatasetError: There is nothing to draw.
    """
    labels = list(dict.fromkeys(item.label for column in columns for item in column.estimates))
    if not labels:
        raise DatasetError(f"{path.name}: nothing to draw, no run has a score")
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
    axes.set_title(column.title)
    axes.set_xlabel(column.xlabel)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
