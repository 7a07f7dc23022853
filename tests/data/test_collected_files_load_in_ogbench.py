from pathlib import Path

import numpy as np
import ogbench
import pytest

from dipole_ray.collect import collect
from dipole_ray.envs.relabel import ogbench_relabel


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting.*")
@pytest.mark.parametrize(
    ("name", "task_id"),
    [
        ("pointmaze-medium-navigate-v0", "pointmaze-medium-navigate-singletask-task1-v0"),
        ("cube-single-play-v0", "cube-single-play-singletask-v0"),
        ("scene-noisy-v0", "scene-noisy-singletask-v0"),
        ("puzzle-3x3-noisy-v0", "puzzle-3x3-noisy-singletask-task1-v0"),
    ],
)
def test_ogbench_loads_collected_files_and_labels_them_as_we_do(name: str, task_id: str, tmp_path: Path) -> None:
    files = collect(name, 150, 0, tmp_path, num_workers=1, progress=False)
    _, train, validation = ogbench.make_env_and_datasets(task_id, dataset_path=str(files[0]), add_info=True)
    assert len(train["rewards"]) == 150 and len(validation["rewards"]) == 15
    rewards, masks = ogbench_relabel(task_id, train)
    assert np.array_equal(rewards, train["rewards"]) and np.array_equal(masks, train["masks"])
    # Each transition leads to the next row, and the trajectory's own steps made it.
    assert np.array_equal(train["next_observations"][:-1], train["observations"][1:])
    assert np.abs(np.diff(train["observations"], axis=0)).max() > 0
    plain, _ = ogbench.make_env_and_datasets(name, dataset_path=str(files[0]), dataset_only=True)
    assert np.array_equal(plain["observations"], train["observations"])
