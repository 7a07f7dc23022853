"""Parallel coordinates of a sweep: one line a trial, through its settings, its best cell and its score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from dipole_ray.errors import DatasetError
from dipole_ray.plots import style

_LOG_FROM = 20.0
"""Ratio of largest to smallest above which positive numbers are drawn on a logarithmic scale."""


class Line(NamedTuple):
    """One trial."""

    settings: Mapping[str, Any]
    """Numbers or words by name."""
    score: float
    status: str
    """Trials that are not `done` are dashed."""


def draw_parallel(
    lines: Sequence[Line], path: Path, *, label: str, mode: Literal["max", "min"] = "max", title: str = ""
) -> Path:
    """Draw the trials, save them as PNG, and return its path; the better the score, the stronger the colour.

    Args:
        lines: The trials, all with the same settings.
        path: The PNG to write.
        label: Name of the score's measure.
        mode: Which end of the measure is good.
        title: Headline.

    Raises:
        DatasetError: There is no trial.
    """
    if not lines:
        raise DatasetError("the sweep has no trial with a result; there is no line to draw")
    names, scores = list(lines[0].settings), np.array([line.score for line in lines])
    columns = [_Axis([line.settings[name] for line in lines]) for name in names] + [_Axis(scores.tolist())]
    shades = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    shades = shades if mode == "max" else 1.0 - shades
    heights = np.stack([column.heights for column in columns])
    with style.picture(path, (1.35 * len(columns) + 1.0, 3.6), title=title) as (_, grid):
        axes = grid[0, 0]
        for index in np.argsort(shades):  # the best on top
            shade = float(shades[index])
            dashes = "-" if lines[index].status == "done" else (0, (3, 2))
            look = {"linestyle": dashes, "linewidth": 1.0 + 1.6 * shade, "alpha": 0.85, "clip_on": False}
            colour = mpl.colormaps["cividis_r"](0.15 + 0.85 * shade)
            axes.plot(range(len(columns)), heights[:, index], color=colour, **look)
        for position, column in enumerate(columns):
            axes.axvline(position, color=style.GREY, linewidth=0.9, zorder=0)
            for height, text in column.ticks:
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
                axes.text(position + 0.05, height, text, fontsize=7.5, va="center", color=style.INK, bbox=box)
        axes.set_xticks(range(len(columns)), [name.rpartition(".")[2] for name in names] + [label])
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(columns) - 0.6)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
    return path


class _Axis:
    """A vertical scale: where each value stands on it, in [0, 1], and what is written beside it."""

    def __init__(self, values: Sequence[Any]) -> None:
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if not numeric:
            words = sorted({str(value) for value in values})
            places = np.linspace(0, 1, len(words)) if len(words) > 1 else np.array([0.5])
            self.heights: NDArray[np.float64] = np.array([places[words.index(str(value))] for value in values])
            self.ticks = list(zip(places.tolist(), words, strict=True))
            return
        numbers = np.array(values, np.float64)
        low, high = float(numbers.min()), float(numbers.max())
        # 0.5 is the middle of the axis, for a setting that all trials share.
        scale = np.log if low > 0 and high / low > _LOG_FROM else np.asarray
        span = float(scale(high) - scale(low))
        self.heights = (scale(numbers) - scale(low)) / span if span else np.full(len(numbers), 0.5)
        distinct = sorted(set(numbers.tolist()))
        shown = distinct if len(distinct) <= 6 else [low, high]
        self.ticks = [(float((scale(value) - scale(low)) / span) if span else 0.5, f"{value:.4g}") for value in shown]
