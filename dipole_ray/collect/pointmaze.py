"""The `navigate` data of OGBench's point mazes: one goal after another, with a noisy hand on the wheel."""

from typing import Any

import numpy as np

from dipole_ray.collect.episode import OgbenchCollector
from dipole_ray.envs.standard import Info

ACTION_NOISE = 0.5  # standard deviation of the Gaussian noise on each action, as in OGBench's own point maze data

Cell = tuple[int, int]


class PointmazeCollector(OgbenchCollector):
    """Walks towards the maze oracle's next cell and takes a new goal whenever one is reached.

    Starts are drawn from all free cells and goals from those that are not mere corridor, as in OGBench's own data.
    The action is the unit vector towards the centre of the next cell, plus noise, clipped to [-1, 1].
    """

    def __init__(self, env_id: str, **kwargs: Any) -> None:
        """Open `env_id` with arguments of its own."""
        super().__init__(env_id, **kwargs)
        walls = self._simulation.maze_map
        self._cells: list[Cell] = [(int(i), int(j)) for i, j in np.argwhere(walls == 0)]
        self._vertices = [cell for cell in self._cells if not _is_corridor(walls, cell)]
        self._next_cell: dict[tuple[Cell, Cell], np.ndarray] = {}

    def _begin(self, rng: np.random.Generator, seed: int) -> tuple[np.ndarray, Info]:
        task = {"init_ij": _draw(rng, self._cells), "goal_ij": _draw(rng, self._vertices)}
        return self._env.reset(seed=seed, options={"task_info": task})

    def _action(self, rng: np.random.Generator, observation: np.ndarray, info: Info) -> np.ndarray:
        position = self._simulation.get_xy()
        offset = self._subgoal(position, self._simulation.cur_goal_xy) - position
        direction = offset / (np.linalg.norm(offset) + 1e-6)
        action: np.ndarray = np.clip(direction + rng.normal(0.0, ACTION_NOISE, 2), -1.0, 1.0)
        return action.astype(np.float32)

    def _go_on(self, rng: np.random.Generator, observation: np.ndarray, info: Info) -> Info:
        if info["success"]:
            # As the maze itself does at a reset, which would also move the agent.
            goal_xy = self._simulation.ij_to_xy(_draw(rng, self._vertices))
            self._simulation.set_goal(goal_xy=self._simulation.add_noise(goal_xy))
        return info

    def _subgoal(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return the centre of the next cell on the way; the oracle's search is done once per pair of cells."""
        key = (self._simulation.xy_to_ij(position), self._simulation.xy_to_ij(goal))
        if key not in self._next_cell:
            self._next_cell[key] = self._simulation.get_oracle_subgoal(position, goal)[0]
        return self._next_cell[key]


def _draw(rng: np.random.Generator, cells: list[Cell]) -> Cell:
    return cells[int(rng.integers(len(cells)))]


def _is_corridor(walls: np.ndarray, cell: Cell) -> bool:
    """Whether `cell` only leads straight on: open on two opposite sides, walled on the other two."""
    i, j = cell
    vertical = (walls[i - 1, j], walls[i + 1, j])
    horizontal = (walls[i, j - 1], walls[i, j + 1])
    return (vertical, horizontal) in {((0, 0), (1, 1)), ((1, 1), (0, 0))}
