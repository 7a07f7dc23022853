"""The picture of a sweep: a measure over one setting of the training and omega, one panel per number of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dipole_ray.errors import DatasetError
from dipole_ray.plots import style

_MOST_ROWS = 12
_COLOURS = "cividis"  # even to the eye, also where it does not tell red from green


class Point(NamedTuple):
    """One cell of one trial."""

    setting: Any
    """The trial's value of the setting, a number or a word."""
    omega: float
    """Greediness."""
    candidates: int
    """Actions sampled per step."""
    value: float
    """The measure."""


def draw_surface(
    points: Sequence[Point],
    path: Path,
    *,
    setting: str,
    label: str,
    mode: Literal["max", "min"] = "max",
    title: str = "",
) -> Path:
    """Draw the mean over all trials with a value of the setting, and save it as PNG; the best place is framed.

    Args:
        points: Cells of all trials.
        path: The PNG to write.
        setting: Name of the setting.
        label: Name of the measure.
        mode: Which end of the measure is good.
        title: Headline.

    Returns:
        `path`.

    Raises:
        DatasetError: There is nothing to draw.
    """
    if not points:
        raise DatasetError("the sweep has no cell with an omega; there is no surface to draw")
    names, row_of = _rows(points)
    omegas = sorted({point.omega for point in points})
    counts = sorted({point.candidates for point in points})
    tables = {
        count: _means([p for p in points if p.candidates == count], row_of, omegas, len(names)) for count in counts
    }
    low = min(np.nanmin(table) for table in tables.values())
    high = max(np.nanmax(table) for table in tables.values())
    pick = np.nanargmax if mode == "max" else np.nanargmin
    best = (max if mode == "max" else min)(counts, key=lambda count: tables[count].flat[pick(tables[count])])
    with style.look():
        width = (0.62 * len(omegas) + 0.5) * len(counts) + 1.7
        figure = style.new_figure(max(width, 4.0), 0.42 * len(names) + 1.5)
        grid = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
        for axes, count in zip(grid, counts, strict=True):
            image = axes.imshow(tables[count], cmap=_COLOURS, vmin=low, vmax=high, aspect="auto", origin="lower")
            _label_cells(axes, tables[count], low, high)
            axes.set_xticks(range(len(omegas)), [f"{omega:g}" for omega in omegas])
            axes.set_yticks(range(len(names)), names)
            axes.grid(visible=False)
            axes.set_xlabel("greediness \u03c9")
            axes.set_title(f"{count} candidate{'s' * (count != 1)}")
        row, column = np.unravel_index(pick(tables[best]), tables[best].shape)
        frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=style.VERMILLION, linewidth=2.2)
        grid[counts.index(best)].add_patch(frame)
        grid[0].set_ylabel(setting)
        figure.colorbar(image, ax=list(grid), label=label, shrink=0.9)
        if title:
            figure.suptitle(title, fontsize=10.5, fontweight="bold")
        return style.save(figure, path)


def _rows(points: Sequence[Point]) -> tuple[list[str], dict[Any, int]]:
    """Return the rows' names and the row of each value; values drawn from a range share rows, equally many each."""
    values = sorted(
        {point.setting if _is_number(point.setting) else str(point.setting) for point in points}, key=_order
    )
    if len(values) <= _MOST_ROWS or not all(_is_number(value) for value in values):
        return [_name(value) for value in values], {value: row for row, value in enumerate(values)}
    parts = [part.tolist() for part in np.array_split(np.array(values, np.float64), 8)]
    names = [f"{part[0]:.3g}\u2013{part[-1]:.3g}" for part in parts]
    return names, {value: row for row, part in enumerate(parts) for value in part}


def _means(points: Sequence[Point], row_of: dict[Any, int], omegas: list[float], rows: int) -> NDArray[np.float64]:
    """Return the mean of every place, (rows, omegas), NaN where no trial was."""
    sums, counts = np.zeros((rows, len(omegas))), np.zeros((rows, len(omegas)))
    for point in points:
        row = row_of[point.setting if _is_number(point.setting) else str(point.setting)]
        place = row, omegas.index(point.omega)
        sums[place] += point.value
        counts[place] += 1
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _label_cells(axes: Axes, table: NDArray[np.float64], low: float, high: float) -> None:
    """Write every number into its place, light on dark and dark on light."""
    form = "{:.2f}" if max(abs(low), abs(high)) < 10 else "{:.0f}"
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = style.INK if value > (low + high) / 2 else "white"
            axes.text(column, row, form.format(value), ha="center", va="center", fontsize=7.5, color=colour)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, float, str]:
    return (False, float(value), "") if _is_number(value) else (True, 0.0, str(value))


def _name(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
