"""One Ray and one small Pendulum dataset for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from dipole_ray.envs.collect import collect


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray with four CPU slots, whatever the machine has; RLlib's folders are temporary ones."""
    results = str(tmp_path_factory.mktemp("ray_results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", results)
        patch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", results, raising=False)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="package")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with 1000 transitions of Pendulum."""
    return collect("Pendulum-v1", 1000, 0, tmp_path_factory.mktemp("pendulum") / "data", progress=False)[0]
