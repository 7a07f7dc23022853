"""The picture of a sweep: a measure over one setting of the training and omega, one panel per number of candidates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dipole_ray.errors import DatasetError
from dipole_ray.plots import style

_MOST_ROWS = 12
_COLOURS = "cividis"  # even to the eye, also where it does not tell red from green


class Point(NamedTuple):
    """The measure's value in one cell of one trial."""

    setting: Any
    """The trial's value of the setting, a number or a word."""
    omega: float
    candidates: int
    value: float


def draw_surface(
    points: Sequence[Point],
    path: Path,
    *,
    setting: str,
    label: str,
    mode: Literal["max", "min"] = "max",
    title: str = "",
) -> Path:
    """Draw the mean over all trials with a value of the setting, save it as PNG, and return its path.

    The best place is framed.

    Args:
        points: Cells of all trials.
        path: The PNG to write.
        setting: Name of the setting.
        label: Name of the measure.
        mode: Which end of the measure is good.
        title: Headline.

    Raises:
        DatasetError: There is nothing to draw.
    """
    if not points:
        raise DatasetError("the sweep has no cell with an omega; there is no surface to draw")
    names, row_of = _rows(points)
    omegas = sorted({point.omega for point in points})
    counts = sorted({point.candidates for point in points})
    by_count = [[point for point in points if point.candidates == count] for count in counts]
    tables = np.stack([_means(part, row_of, omegas, len(names)) for part in by_count])
    low, high = np.nanmin(tables), np.nanmax(tables)
    best, row, column = np.unravel_index((np.nanargmax if mode == "max" else np.nanargmin)(tables), tables.shape)
    width, height = (0.62 * len(omegas) + 0.5) * len(counts) + 1.7, 0.42 * len(names) + 1.5
    with style.picture(path, (max(width, 4.0), height), (1, len(counts)), title=title, sharey=True) as (figure, grid):
        for axes, count, table in zip(grid[0], counts, tables, strict=True):
            image = axes.imshow(table, cmap=_COLOURS, vmin=low, vmax=high, aspect="auto", origin="lower")
            _label_cells(axes, table, low, high)
            axes.set_xticks(range(len(omegas)), [f"{omega:g}" for omega in omegas])
            axes.set_yticks(range(len(names)), names)
            axes.grid(visible=False)
            axes.set_xlabel("greediness \u03c9")
            axes.set_title(style.candidates_text(count))
        frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=style.VERMILLION, linewidth=2.2)
        grid[0, best].add_patch(frame)
        grid[0, 0].set_ylabel(setting)
        figure.colorbar(image, ax=list(grid[0]), label=label, shrink=0.9)
    return path


def _rows(points: Sequence[Point]) -> tuple[list[str], dict[Any, int]]:
    """Return the rows' names and the row of each value; values drawn from a range share rows, equally many each."""
    values = sorted({_value(point) for point in points}, key=lambda value: (isinstance(value, str), value))
    if len(values) <= _MOST_ROWS or isinstance(values[-1], str):
        names = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        return names, {value: row for row, value in enumerate(values)}
    parts = [part.tolist() for part in np.array_split(np.array(values, np.float64), 8)]
    names = [f"{part[0]:.3g}\u2013{part[-1]:.3g}" for part in parts]
    return names, {value: row for row, part in enumerate(parts) for value in part}


def _means(points: Sequence[Point], row_of: dict[Any, int], omegas: list[float], rows: int) -> NDArray[np.float64]:
    """Return the mean of every place, (rows, omegas), NaN where no trial was."""
    places = [(row_of[_value(point)], point.omega, point.value) for point in points]
    means = pd.DataFrame(places, columns=["row", "omega", "value"]).pivot_table("value", "row", "omega")
    return np.asarray(means.reindex(index=range(rows), columns=omegas), np.float64)


def _label_cells(axes: Axes, table: NDArray[np.float64], low: float, high: float) -> None:
    """Write every number into its place, light on dark and dark on light."""
    form = "{:.2f}" if max(abs(low), abs(high)) < 10 else "{:.0f}"
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = style.INK if value > (low + high) / 2 else "white"
            axes.text(column, row, form.format(value), ha="center", va="center", fontsize=7.5, color=colour)


def _value(point: Point) -> Any:
    """Return a setting's value, a number or else its text: True is a word, and must not fall together with 1."""
    is_number = isinstance(point.setting, int | float) and not isinstance(point.setting, bool)
    return point.setting if is_number else str(point.setting)
