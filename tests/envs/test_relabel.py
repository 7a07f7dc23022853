from typing import Any

import numpy as np
import pytest

from dipole_ray.envs.make import make_env
from dipole_ray.envs.relabel import ogbench_relabel
from dipole_ray.errors import ConfigError, DatasetError
from tests.envs.families import ANTMAZE, PENDULUM, SCENE


def test_ant_rows_are_labelled_as_ogbench_labels_them() -> None:
    from ogbench.relabel_utils import relabel_dataset

    env = make_env(ANTMAZE)
    env.reset(seed=0)
    maze: Any = env.unwrapped
    rng = np.random.default_rng(0)
    qpos = rng.normal(size=(200, 15)).astype(np.float32)
    qpos[:, :2] += maze.cur_goal_xy
    expected = {"qpos": qpos.copy()}
    relabel_dataset(ANTMAZE, env, expected)
    rewards, masks = ogbench_relabel(ANTMAZE, {"qpos": qpos})
    assert np.array_equal(rewards, expected["rewards"]) and np.array_equal(masks, expected["masks"])
    assert rewards.dtype == masks.dtype == np.float32
    assert 0 < (masks == 0).sum() < 200 and np.array_equal(rewards == 0, masks == 0)


def test_rows_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(DatasetError, match="'qpos' is missing"):
        ogbench_relabel(ANTMAZE, {"observations": np.zeros((3, 29))})
    with pytest.raises(DatasetError, match=r"shape \(3, 14\), expected \(rows, 15\)"):
        ogbench_relabel(ANTMAZE, {"qpos": np.zeros((3, 14))})
    with pytest.raises(DatasetError, match="'button_states' is missing"):
        ogbench_relabel(SCENE, {"qpos": np.zeros((3, 25))})
    with pytest.raises(ConfigError, match="no OGBench single task"):
        ogbench_relabel(PENDULUM, {"qpos": np.zeros((3, 2))})
