"""The pictures of a sweep: a measure over one setting and omega, and every trial through its settings to its score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dipole_ray.plots import style

Numbers = NDArray[np.float64]
Mode = Literal["max", "min"]

_MOST_ROWS = 12
_COLOURS = "cividis"  # even to the eye, also where it does not tell red from green


class Point(NamedTuple):
    """The measure's value in one cell of one trial."""

    setting: Any  # the trial's value of the setting, a number or a word
    omega: float
    candidates: int
    value: float


class Line(NamedTuple):
    """One trial."""

    settings: Mapping[str, Any]  # numbers or words by name
    score: float
    status: str  # trials that are not `done` are dashed


def draw_surface(
    points: Sequence[Point], path: Path, *, setting: str, label: str, mode: Mode = "max", title: str = ""
) -> Path:
    """Draw the mean over all trials with a value of the setting, one panel a number of candidates, and return `path`.

    The best place is framed. `setting` and `label` name the setting and the measure, of which `mode` is the good end.
    """
    names, omegas, counts, tables = surface_of(points)
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


def surface_of(points: Sequence[Point]) -> tuple[list[str], list[float], list[int], Numbers]:
    """Return rows' names, omegas, numbers of candidates, and means (candidates, rows, omegas), NaN where no trial was.

    Values of a setting that was drawn from a range share rows, equally many each.
    """
    settings = [point.setting if _is_number(point.setting) else str(point.setting) for point in points]
    values = sorted(set(settings), key=lambda value: (isinstance(value, str), value))
    if len(values) <= _MOST_ROWS or isinstance(values[-1], str):
        parts = [[value] for value in values]
        names = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    else:
        parts = [part.tolist() for part in np.array_split(np.array(values, np.float64), 8)]
        names = [f"{part[0]:.3g}\u2013{part[-1]:.3g}" for part in parts]
    row_of = {value: row for row, part in enumerate(parts) for value in part}
    frame = pd.DataFrame(points).assign(row=[row_of[value] for value in settings])
    omegas, counts = sorted(set(frame["omega"])), sorted(set(frame["candidates"]))
    means = frame.pivot_table("value", ["candidates", "row"], "omega")
    every = pd.MultiIndex.from_product([counts, range(len(names))])
    tables = means.reindex(index=every, columns=omegas).to_numpy(np.float64)
    return names, omegas, counts, tables.reshape(len(counts), len(names), len(omegas))


def _label_cells(axes: Axes, table: Numbers, low: float, high: float) -> None:
    """Write every number into its place, light on dark and dark on light."""
    form = "{:.2f}" if max(abs(low), abs(high)) < 10 else "{:.0f}"
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = style.INK if value > (low + high) / 2 else "white"
            axes.text(column, row, form.format(value), ha="center", va="center", fontsize=7.5, color=colour)


def draw_parallel(lines: Sequence[Line], path: Path, *, label: str, mode: Mode = "max", title: str = "") -> Path:
    """Draw trials with the same settings as parallel coordinates, and return `path`; `label` names the score.

    The better the score by `mode`, the stronger the colour.
    """
    names, scores = list(lines[0].settings), np.array([line.score for line in lines])
    columns = [_scale([line.settings[name] for line in lines]) for name in names] + [_scale(scores.tolist())]
    shades = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    shades = shades if mode == "max" else 1.0 - shades
    with style.picture(path, (1.35 * len(columns) + 1.0, 3.6), title=title) as (_, grid):
        axes = grid[0, 0]
        for index in np.argsort(shades):  # the best on top
            shade = float(shades[index])
            dashes = "-" if lines[index].status == "done" else (0, (3, 2))
            look = {"linestyle": dashes, "linewidth": 1.0 + 1.6 * shade, "alpha": 0.85, "clip_on": False}
            colour = mpl.colormaps["cividis_r"](0.15 + 0.85 * shade)
            axes.plot(range(len(columns)), [heights[index] for heights, _ in columns], color=colour, **look)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
        for position, (_, ticks) in enumerate(columns):
            axes.axvline(position, color=style.GREY, linewidth=0.9, zorder=0)
            for height, text in ticks:
                axes.text(position + 0.05, height, text, fontsize=7.5, va="center", color=style.INK, bbox=box)
        axes.set_xticks(range(len(columns)), [name.rpartition(".")[2] for name in names] + [label])
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(columns) - 0.6)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
    return path


def _scale(values: Sequence[Any]) -> tuple[Numbers, list[tuple[float, str]]]:
    """Return where each value stands on a vertical axis, in [0, 1], and what is written beside it."""
    if not all(map(_is_number, values)):
        words = sorted(set(map(str, values)))
        places = np.linspace(0, 1, len(words)) if len(words) > 1 else np.array([0.5])
        return np.array([places[words.index(str(value))] for value in values]), list(zip(places, words, strict=True))
    scale = np.log if style.is_wide(values) else np.asarray
    low, high = scale(min(values)), scale(max(values))

    def places_of(numbers: Sequence[float]) -> Numbers:
        # 0.5 is the middle of the axis, for a setting that all trials share.
        return (scale(numbers) - low) / (high - low) if high > low else np.full(len(numbers), 0.5)

    distinct = sorted(set(values))
    shown = distinct if len(distinct) <= 6 else [distinct[0], distinct[-1]]
    return places_of(values), [(place, f"{value:.4g}") for place, value in zip(places_of(shown), shown, strict=True)]


def _is_number(value: Any) -> bool:
    """Return whether a setting's value is a number: True is a word, and must not fall together with 1."""
    return isinstance(value, int | float) and not isinstance(value, bool)
