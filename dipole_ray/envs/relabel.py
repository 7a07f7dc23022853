"""Rewards and masks of one OGBench task for rows that were collected without one."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np

from dipole_ray.envs.make import make_env
from dipole_ray.envs.registry import VISUAL, family
from dipole_ray.errors import ConfigError, DatasetError


def ogbench_relabel(env_id: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rewards and masks, float32 (rows,) each, of the single task `env_id` on the rows of an OGBench file.

    The rule is `ogbench.relabel_utils.relabel_dataset` itself: r(s_t) is -1 until the goal and 0 at it in mazes, and
    minus the number of unsolved sub-tasks in manipulation; the mask is 0 exactly where s_t solves the task. It takes
    `qpos` (rows, joint positions) and, for scene and puzzle, `button_states` (rows, buttons). Of a task that is seen as
    images the task of the same name that is not is asked, so that nothing is drawn.

    Raises:
        ConfigError: If `env_id` is not an OGBench single task.
        DatasetError: If a column is missing or is not of this environment.
    """
    if family(env_id) != "ogbench":
        found = f"'{env_id}' is no OGBench single task: only those label rows by their joint positions"
        raise ConfigError(f"{found}; name one, or save the rows with rewards of their own")
    from ogbench.relabel_utils import relabel_dataset

    env_id = env_id.removeprefix(VISUAL)

    with closing(make_env(env_id)) as env:
        env.reset(seed=0)
        rows = _columns(env_id, arrays, env.unwrapped)
        relabel_dataset(env_id, env, rows)
        return rows["rewards"], rows["masks"]


def _columns(env_id: str, arrays: Mapping[str, np.ndarray], simulation: Any) -> dict[str, np.ndarray]:
    """Return the columns the task is judged by, checked against the simulation's sizes."""
    widths = {"qpos": int(simulation.model.nq)}
    if env_id.startswith(("scene", "puzzle")):
        widths["button_states"] = int(simulation._num_buttons)
    columns = {}
    for name, width in widths.items():
        place = f"cannot label rows for '{env_id}': column '{name}'"
        if name not in arrays:
            remedy = "use OGBench's own file, or one that 'dipole data collect' wrote"
            raise DatasetError(f"{place} is missing (found {sorted(arrays)}); {remedy}")
        columns[name] = column = np.asarray(arrays[name])
        if column.ndim != 2 or column.shape[1] != width:
            why = "the file was made in another environment"
            raise DatasetError(f"{place} has shape {column.shape}, expected (rows, {width}); {why}")
    return columns
