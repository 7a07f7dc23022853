"""The paths of evaluation episodes through a maze, and the file that keeps them for the pictures.

`evaluation-paths.npz` holds all that the maze picture needs: drawing it again takes no environment and no policy.
Paths of different lengths are stored end to end, with one entry a path in every other column.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dipole_ray.data.sources.npz import read_headers
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import replacing

FILE_NAME = "evaluation-paths.npz"
"""Name of the file inside a run folder."""
# What is stored of a path beside its positions; numpy turns an omega of None into NaN.
_LABELS = {"phase": np.str_, "policy": np.str_, "omega": np.float64, "candidates": np.int64, "success": np.bool_}


@dataclass(frozen=True, slots=True)
class Maze:
    """The floor plan of an OGBench maze task."""

    walls: NDArray[np.bool_]  # True where a cell is a wall, shape (rows, columns); row i spans y, column j spans x
    unit: float  # side of a cell, metres, as all lengths are
    offset_x: float  # column 0 is centred at x = -offset_x
    offset_y: float  # row 0 at y = -offset_y
    start: tuple[float, float]  # centre of the cell
    goal: tuple[float, float]
    goal_radius: float  # distance to the goal that counts as success


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One recorded episode and the cell of the evaluation grid it belongs to."""

    phase: str  # when it was evaluated: `offline` or `online`
    policy: str  # this and the next two as in `cells.Cell`
    omega: float | None
    candidates: int
    success: bool
    positions: NDArray[np.float32]  # from reset to the last state, shape (T + 1, 2), metres


def maze_of(env: Any) -> Maze | None:
    """Return the floor plan of an OGBench maze, None of anything else; `env` was reset, which chooses the task."""
    bare = env.unwrapped
    task = getattr(bare, "cur_task_info", None)
    if task is None or not hasattr(bare, "maze_map"):
        return None
    # In the soccer mazes the task names the starts of the agent and of the ball.
    start, goal = task["init_xy" if "init_xy" in task else "agent_init_xy"], task["goal_xy"]
    geometry = [bare._maze_unit, bare._offset_x, bare._offset_y, *start[:2], *goal[:2], bare._goal_tol]
    return _maze(np.asarray(bare.maze_map) == 1, geometry)


def _maze(walls: NDArray[np.bool_], geometry: Iterable[Any]) -> Maze:
    """Return the maze of these walls and of the numbers that its file holds."""
    unit, offset_x, offset_y, start_x, start_y, goal_x, goal_y, radius = map(float, geometry)
    return Maze(walls, unit, offset_x, offset_y, (start_x, start_y), (goal_x, goal_y), radius)


def write_trajectories(path: Path, maze: Maze, trajectories: Sequence[Trajectory]) -> None:
    """Write the paths and their maze to one npz file, replacing an older one atomically."""
    labels: Any = {name: np.array([getattr(t, name) for t in trajectories], kind) for name, kind in _LABELS.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            walls=maze.walls,
            geometry=np.array([maze.unit, maze.offset_x, maze.offset_y, *maze.start, *maze.goal, maze.goal_radius]),
            num_positions=np.array([len(t.positions) for t in trajectories], dtype=np.int64),
            positions=np.concatenate([np.zeros((0, 2), np.float32), *(t.positions for t in trajectories)]),
            **labels,
        )


def read_trajectories(path: Path) -> tuple[Maze, list[Trajectory]]:
    """Read what `write_trajectories` wrote; DatasetError if the file is missing, damaged or not of this layout."""
    try:
        headers = read_headers(path)  # refuses a decompression bomb, and objects, before anything is read
        with np.load(path, allow_pickle=False) as stored:
            columns = {name: stored[name] for name in headers}
        maze = _maze(columns["walls"].astype(np.bool_), columns["geometry"])
        ends = np.cumsum(columns["num_positions"])
        pieces = np.split(columns["positions"], ends[:-1]) if len(ends) else []
        labels = [columns[name].astype(kind).tolist() for name, kind in _LABELS.items()]
        named: list[Any] = [dict(zip(_LABELS, values, strict=True)) for values in zip(*labels, strict=True)]
        named = [{**each, "omega": None if np.isnan(each["omega"]) else each["omega"]} for each in named]
        trajectories = [Trajectory(**each, positions=piece) for each, piece in zip(named, pieces, strict=True)]
    except (DatasetError, OSError, LookupError, ValueError, TypeError, BadZipFile, EOFError, zlib.error) as error:
        raise DatasetError(
            f"{path}: not a readable file of evaluation paths ({error}); run 'dipole evaluate' again to rewrite it"
        ) from error
    return maze, trajectories
