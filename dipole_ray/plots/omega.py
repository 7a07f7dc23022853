"""The trade-off picture: what omega and the number of candidates do to success, return and length."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dipole_ray.errors import DatasetError
from dipole_ray.evaluation.report import BC, Evaluation, Row, is_chosen, phases_of
from dipole_ray.plots import style

_LABELS = {"success": "success rate", "return": "return", "length": "episode length (steps)"}


def draw_omega(evaluation: Evaluation, path: Path, *, chosen: tuple[float, int] | None = None, title: str = "") -> Path:
    """Draw the measures over omega, one row of panels per number of candidates, save them as PNG, and return `path`.

    BC rows become horizontal lines; what was `chosen` before the run, omega and candidates, is ringed.

    Raises:
        DatasetError: If no row has an omega.
    """
    rows = [row for phase in phases_of(evaluation) for row in evaluation[phase]]
    if all(row["omega"] is None for row in rows):
        raise DatasetError("the evaluation holds no row with an omega; there is no curve to draw")
    measures = [name for name in _LABELS if _is_worth_drawing(rows, name)]
    counts = sorted({row["candidates"] for row in rows})
    size = 3.3 * len(measures) + 0.4, 2.35 * len(counts) + 0.8
    shape = len(counts), len(measures)
    ring: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": style.INK}
    with style.picture(path, size, shape, title=title, sharex=True, sharey="col") as (figure, grid):
        for (candidates, measure), axes in zip(product(counts, measures), grid.flat, strict=True):
            for phase in phases_of(evaluation):
                here = [row for row in evaluation[phase] if row["candidates"] == candidates]
                _draw_curve(axes, here, measure, phase)
                for row in here:
                    if is_chosen(row, chosen):
                        at = [row["omega"] or 0.0], [_with_ends(row, measure)[0]]
                        axes.plot(*at, linestyle="", markeredgewidth=1.1, label="chosen before the run", **ring)
            axes.set_ylabel(_LABELS[measure])
            if measure == "success":
                axes.set_ylim(-0.05, 1.05)
        for axes, candidates in zip(grid[:, 0], counts, strict=True):
            axes.set_title(style.candidates_text(candidates))
        for axes in grid[-1]:
            axes.set_xlabel("greediness \u03c9")
        style.legend_below(figure)
    return path


def _is_worth_drawing(rows: Sequence[Row], measure: str) -> bool:
    """Leave out what the task does not define, and a length that never varies (fixed-length episodes)."""
    values = {row[measure] for row in rows}  # type: ignore[literal-required]
    return None not in values and (measure != "length" or len(values) > 1)


def _draw_curve(axes: Axes, rows: Sequence[Row], measure: str, phase: str) -> None:
    """Draw a phase's curve on its interval, and BC, which knows no omega, as a level with its own."""
    colour = style.PHASE_COLOURS.get(phase, style.GREEN)
    curve = sorted((row for row in rows if row["omega"] is not None), key=lambda row: row["omega"] or 0.0)
    if not curve:
        return
    omegas = [row["omega"] or 0.0 for row in curve]
    middle, low, high = np.transpose([_with_ends(row, measure) for row in curve])
    axes.fill_between(omegas, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(omegas, middle, color=colour, marker="o", markersize=4.5, label=f"{curve[0]['method']}, {phase}")
    axes.set_xticks(omegas, [f"{omega:g}" for omega in omegas])
    # Where both phases lie at one level, their dashes alternate.
    dashes = (4 * (phase == "online"), (4, 4))
    for level, lowest, highest in (_with_ends(row, measure) for row in rows if row["method"] == BC):
        axes.axhspan(lowest, highest, color=colour, alpha=0.07, lw=0)
        axes.axhline(level, color=colour, linestyle=dashes, linewidth=1.2, zorder=1.5, label=f"BC, {phase}")


def _with_ends(row: Row, measure: str) -> tuple[float, float, float]:
    """Return a mean and the ends of its interval, which are the mean itself where there is no interval."""
    value, *ends = (row[key] for key in (measure, f"{measure}_low", f"{measure}_high"))  # type: ignore[literal-required]
    low, high = (value if end is None else end for end in ends)
    return value, low, high
