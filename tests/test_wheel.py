"""What `pip install .` installs works in an empty folder, without the checkout beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.cli.commands import environment

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("dipole_ray", "tune_configs", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
SMALLER = (
    "data.collect_transitions=2000",
    "training.offline_learner_steps=100",
    "training.online_env_steps=0",
    "evaluation.episodes=2",
    "evaluation.every_learner_steps=0",
    "env.max_episode_steps=30",
    "tracking.mlflow=false",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel in it; every other package is this one's."""
    place = tmp_path_factory.mktemp("wheel")
    clean = variables(place)
    source = place / "source"
    source.mkdir()
    for name in SHIPPED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", place, source], check=True, env=clean)
    subprocess.run([sys.executable, "-m", "venv", place / "env"], check=True, env=clean)
    (wheel,) = place.glob("dipole_ray-*.whl")
    subprocess.run([*pip, "--python", place / "env", "install", "--no-deps", wheel], check=True, env=clean)
    (packages,) = (place / "env" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    shutil.rmtree(source)
    return place / "env" / "bin"


def variables(home: Path) -> dict[str, str]:
    """Return an environment in which no other copy of the package is found."""
    return {name: value for name, value in environment(home).items() if name != "PYTHONPATH"}


def dipole(programs: Path, folder: Path, *words: str) -> str:
    """Run the installed `dipole` in a folder and return what it printed."""
    done = subprocess.run(
        [programs / "dipole", *words], cwd=folder, env=variables(folder), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_an_installed_wheel_trains_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    shown = dipole(installed, tmp_path, "train", "quickstart", *SMALLER)
    (run,) = (tmp_path / "runs").iterdir()
    assert f"dipole evaluate runs/{run.name}" in shown
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == "000000100"
    where = subprocess.run(
        [installed / "python", "-c", "import dipole_ray; print(dipole_ray.__file__)"],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(installed.parent) in where.stdout, "another copy of the package was tried"


@pytest.mark.slow
def test_an_installed_wheel_knows_sweeps_and_suites(installed: Path, tmp_path: Path) -> None:
    suites = dipole(installed, tmp_path, "bench", "list")
    assert "smoke" in suites and "paper_ogbench" in suites
    assert "small_pointmaze" in suites and "ogbench_names" not in dipole(installed, tmp_path, "--help")
    assert "sweep" in dipole(installed, tmp_path, "sweep", "--help")
