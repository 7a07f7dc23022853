"""One Ray and one small Pendulum dataset for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dipole_ray.collect import collect
from tests.local_ray import local_ray


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray with four CPU slots."""
    with local_ray(tmp_path_factory.mktemp("ray_results")):
        yield


@pytest.fixture(scope="package")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with 1000 transitions of Pendulum."""
    return collect("Pendulum-v1", 1000, 0, tmp_path_factory.mktemp("pendulum") / "data", progress=False)[0]
