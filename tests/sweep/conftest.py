"""One small Pendulum dataset for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipole_ray.collect import collect


@pytest.fixture(scope="package")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with 1000 transitions of Pendulum."""
    return collect("Pendulum-v1", 1000, 0, tmp_path_factory.mktemp("pendulum") / "data", progress=False)[0]
