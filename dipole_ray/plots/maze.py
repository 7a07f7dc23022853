"""The maze picture: where the policies walk, one panel per omega, one row a phase."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from dipole_ray.errors import DatasetError
from dipole_ray.evaluation.report import Evaluation, Row
from dipole_ray.evaluation.trajectories import Maze, Trajectory
from dipole_ray.plots import style

_SUCCESS, _FAILURE = style.BLUE, style.VERMILLION


def draw_maze(
    maze: Maze,
    trajectories: Sequence[Trajectory],
    path: Path,
    *,
    candidates: int = 1,
    evaluation: Evaluation | None = None,
    title: str = "",
) -> Path:
    """Draw the recorded paths with one number of candidates as small multiples, save them as PNG, and return `path`.

    The figures under each panel are those of the rows in `evaluation`, over all counted episodes; without them the
    panel says how many of the paths drawn succeeded.

    Raises:
        DatasetError: If no path has that number of candidates.
    """
    shown = [one for one in trajectories if one.candidates == candidates]
    if not shown:
        found = sorted({one.candidates for one in trajectories})
        raise DatasetError(f"no recorded path has {candidates} candidates; recorded: {found or 'none'}")
    phases = [phase for phase in ("clone", "offline", "online") if any(one.phase == phase for one in shown)]
    # BC at the left, then omega rising.
    columns = sorted({(one.policy, one.omega) for one in shown}, key=lambda key: (key[0] != "bc", key[1] or 0.0))
    rows, cols = maze.walls.shape
    width = 2.15 * len(columns) + 0.35
    height = 2.15 * (rows - 1) / (cols - 1) * len(phases) + 0.2 * len(phases) + 0.72
    size, shape = (max(width, 4.5), height), (len(phases), len(columns))
    headline = " \u2013 ".join(filter(None, (title, style.candidates_text(candidates))))
    with style.picture(path, size, shape, title=headline, sharex=True, sharey=True) as (figure, grid):
        for (phase, (policy, omega)), axes in zip(product(phases, columns), grid.flat, strict=True):
            here = [one for one in shown if (one.phase, one.policy, one.omega) == (phase, policy, omega)]
            _draw_floor(axes, maze)
            _draw_paths(axes, here)
            _draw_ends(axes, maze)
            axes.set_xlabel(_score(here, (evaluation or {}).get(phase, ())), fontsize=8, labelpad=3)
        for axes, phase in zip(grid[:, 0], phases, strict=True):
            axes.set_ylabel(phase, fontsize=10.5, fontweight="bold", labelpad=6)
        for axes, (policy, omega) in zip(grid[0], columns, strict=True):
            name = "BC" if policy == "bc" else "policy" if omega is None else f"\u03c9 = {omega:g}"
            axes.set_title(name, loc="center", fontsize=11)
        edge: dict[str, Any] = {"linestyle": "", "markeredgecolor": style.INK}
        marks = [
            Line2D([], [], marker="o", markerfacecolor="white", label="start", **edge),
            Line2D([], [], marker="*", color=style.ORANGE, markersize=9, label="goal", **edge),
            Line2D([], [], color=_SUCCESS, label="reaches the goal"),
            Line2D([], [], color=_FAILURE, marker="o", markersize=3.5, label="runs out of time"),
        ]
        style.legend_below(figure, marks, handletextpad=0.5)
    return path


def _draw_floor(axes: Axes, maze: Maze) -> None:
    rows, cols = maze.walls.shape
    left, bottom = -maze.offset_x, -maze.offset_y
    half = maze.unit / 2
    extent = (left - half, left + (cols - 0.5) * maze.unit, bottom - half, bottom + (rows - 0.5) * maze.unit)
    colours = mpl.colors.ListedColormap([style.FLOOR, style.WALL])
    axes.imshow(maze.walls, cmap=colours, vmin=0, vmax=1, extent=extent, origin="lower", interpolation="nearest")
    # Half of the outer wall is enough to see that it is one.
    right, top = left + (cols - 1) * maze.unit, bottom + (rows - 1) * maze.unit
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _draw_paths(axes: Axes, trajectories: Sequence[Trajectory]) -> None:
    """Draw failures below successes, and mark where each failure ended."""
    look: dict[str, Any] = {"linewidths": 0.75, "alpha": 0.4, "capstyle": "round", "joinstyle": "round"}
    for success, colour in ((False, _FAILURE), (True, _SUCCESS)):
        paths = [one.positions for one in trajectories if one.success is success]
        if paths:
            axes.add_collection(LineCollection(paths, colors=colour, **look))
        if paths and not success:
            ends = np.stack([positions[-1] for positions in paths])
            axes.scatter(ends[:, 0], ends[:, 1], s=9, color=colour, linewidths=0, zorder=3)


def _draw_ends(axes: Axes, maze: Maze) -> None:
    axes.scatter(*maze.start, s=46, facecolor="white", edgecolor=style.INK, linewidth=1.3, zorder=4)
    axes.add_patch(Circle(maze.goal, maze.goal_radius, facecolor="none", edgecolor=style.INK, linewidth=0.9, zorder=4))
    axes.scatter(*maze.goal, marker="*", s=70, color=style.ORANGE, edgecolor=style.INK, linewidth=0.7, zorder=5)


def _score(here: Sequence[Trajectory], rows: Sequence[Row]) -> str:
    """Return the line under a panel, over all counted episodes where their row is known."""
    if not here:
        return "not evaluated"
    key = (here[0].omega, here[0].candidates)
    for row in rows:
        if (row["omega"], row["candidates"]) == key and row["success"] is not None:
            won = round(row["success"] * row["episodes"])
            return f"success {won}/{row['episodes']} \u00b7 {row['length']:.0f} steps"
    return f"success {sum(one.success for one in here)}/{len(here)} of the paths drawn"
