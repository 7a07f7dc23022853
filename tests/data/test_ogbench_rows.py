"""An OGBench file becomes exactly the transitions that OGBench's own loader and relabelling give."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import ogbench
import pytest

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.data.schema import ACTION_LIMIT, Rows, concatenate
from dipole_ray.data.sources.reading import ImportReport
from dipole_ray.envs.relabel import ogbench_relabel
from dipole_ray.errors import DatasetError
from dipole_ray.replay.replay import Replay
from tests.data.reading import ogbench_schema, read_ogbench
from tests.synthetic import ogbench_arrays, write_ogbench

# environment, (observation, action, qpos, buttons) dimensions
TASKS = [
    ("pointmaze-medium-navigate-singletask-task1-v0", (2, 2, 2, 0)),
    ("cube-single-play-singletask-task2-v0", (28, 5, 21, 0)),
    ("scene-play-singletask-task2-v0", (40, 5, 25, 2)),
    ("puzzle-3x3-play-singletask-task4-v0", (55, 5, 23, 9)),
]


def solved_here_and_there(env_id: str, arrays: dict[str, np.ndarray]) -> None:
    """Put some rows of each trajectory into the goal, so that rewards and masks vary."""
    env = ogbench.make_env_and_datasets(env_id, env_only=True)
    env.reset(seed=0)
    world = env.unwrapped
    rows = slice(3, None, 7)
    if "maze" in env_id:
        arrays["qpos"][rows, :2] = world.cur_goal_xy
    else:
        if "cube" in env_id or "scene" in env_id:
            arrays["qpos"][rows, 14:17] = world._data.mocap_pos[0]
        if "button_states" in arrays:
            arrays["button_states"][rows] = world._target_button_states
        if "scene" in env_id:
            arrays["qpos"][rows, 23:25] = [world._target_drawer_pos, world._target_window_pos]
    env.close()


@pytest.mark.parametrize(("env_id", "dims"), TASKS)
def test_transitions_equal_ogbenchs_loader(tmp_path: Path, env_id: str, dims: tuple[int, int, int, int]) -> None:
    random = np.random.default_rng(0)
    arrays = ogbench_arrays(random, [30, 1, 50, 12], *dims)
    arrays["actions"][5] = 1.0
    solved_here_and_there(env_id, arrays)
    path = write_ogbench(tmp_path / "data.npz", arrays)
    write_ogbench(tmp_path / "data-val.npz", arrays)
    _, expected, _ = ogbench.make_env_and_datasets(env_id, dataset_path=str(path))
    write_dataset(tmp_path / "data", read_ogbench(path, partial(ogbench_relabel, env_id)), ogbench_schema(path), {})
    rows = concatenate(list(open_dataset(tmp_path / "data").iter_rows()))
    moving = np.flatnonzero(rows["remaining"])
    assert len(moving) == 93
    found = {name: rows[name][moving] for name in ("observations", "actions", "rewards", "masks")}
    found["next_observations"] = rows["observations"][moving + 1]
    found["terminals"] = (rows["remaining"][moving + 1] == 0).astype(np.float32)
    expected["actions"] = np.clip(expected["actions"], -ACTION_LIMIT, ACTION_LIMIT)
    assert 0 < (expected["masks"] == 0).sum() < 93
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_mask_in_mid_trajectory_stops_the_window_but_not_the_trajectory(tmp_path: Path) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), [10], 1, 1)
    arrays["observations"][:, 0] = np.arange(11)
    arrays |= {"rewards": -np.ones(11, np.float32), "masks": np.ones(11, np.float32)}
    arrays["masks"][4] = arrays["rewards"][4] = 0.0
    path = write_ogbench(tmp_path / "data.npz", arrays)
    write_dataset(tmp_path / "data", read_ogbench(path), Schema(1, 1), {})
    batch = Replay(schema=Schema(1, 1), offline=[tmp_path / "data"], n_step=3, discount=1.0).sample(500)
    order = {int(start): index for index, start in enumerate(batch["observations"][:, 0])}
    found = [
        tuple(int(batch[name].reshape(-1)[order[start]]) for name in ("next_observations", "rewards", "masks"))
        for start in range(10)
    ]
    assert found[:5] == [(3, -3, 1), (4, -3, 1), (5, -2, 0), (5, -1, 0), (5, 0, 0)]
    assert found[5:] == [(8, -3, 1), (9, -3, 1), (10, -3, 1), (10, -2, 1), (10, -1, 1)]


def read(path: Path, non_finite: str = "drop") -> tuple[Rows, ImportReport]:
    report = ImportReport()
    pieces = list(read_ogbench(path, non_finite=non_finite, report=report))  # type: ignore[arg-type]
    return concatenate(pieces), report


def test_dropping_non_finite_rows_removes_exactly_the_transitions_that_touch_them(tmp_path: Path) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), [6, 4], 1, 1)
    arrays["observations"][:, 0] = np.arange(12)
    arrays["rewards"] = np.zeros(12, np.float32)
    arrays["observations"][2] = np.nan  # transitions 1 and 2
    arrays["actions"][4] = np.inf  # transition 4
    arrays["rewards"][11] = np.nan  # a closing row's reward is nobody's
    path = write_ogbench(tmp_path / "data.npz", arrays)
    rows, report = read(path)
    assert (report.dropped_transitions, report.trajectories) == (3, 4)
    assert report.non_finite == ["row 2 (observations)", "row 4 (actions)"]
    np.testing.assert_array_equal(rows["observations"][:, 0], [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    np.testing.assert_array_equal(rows["remaining"], [1, 0, 1, 0, 1, 0, 4, 3, 2, 1, 0])
    with pytest.raises(
        DatasetError,
        match=r"3 transitions touch NaN or infinity, the first at row 2 \(observations\); .*--non-finite drop",
    ):
        read(path, "refuse")


def test_a_large_file_is_read_in_chunks_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), [700, 30, 2500, 1, 900])
    arrays["rewards"] = np.arange(len(arrays["terminals"]), dtype=np.float32)
    arrays["observations"] = np.asfortranarray(arrays["observations"])
    path = write_ogbench(tmp_path / "data.npz", arrays)
    whole, _ = read(path)
    monkeypatch.setattr("dipole_ray.data.sources.npz._CHUNK_BYTES", 1)  # 1024 rows a chunk
    chunked, report = read(path)
    assert report.rows_read == len(arrays["terminals"])
    for name, values in whole.items():
        np.testing.assert_array_equal(chunked[name], values)
