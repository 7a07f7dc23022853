"""One Ray for each file of chaos tests, the folder that breaks environments, and the record of what was measured."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from tests.chaos.point_env import FOLDER

RESULTS = "DIPOLE_CHAOS_RESULTS"
"""Names the file, if any, that every measurement is appended to as a JSON line; `benchmarks/recovery.py` reads it."""

Measured = Callable[..., None]

FIRST = ("test_soak.py", "test_everything.py", "test_learner.py", "test_replay_node.py", "test_ring.py")
"""Files that `make chaos` begins with: the three longest, one a process, and two short ones that wait behind them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which a file breaks environments (see `point_env`); workers learn of it when Ray starts."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        yield folder


@pytest.fixture(scope="module")
def cluster(faults: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray with eight CPU slots, whatever the machine has; RLlib's folders are temporary ones."""
    results = str(tmp_path_factory.mktemp("ray_results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", results)
        patch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", results, raising=False)
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for a Ray of several nodes, apart from any other; short, because sockets lie deep inside it."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "ray").mkdir()
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def measured() -> Measured:
    """Record one measurement for the table of recovery times.

    Call it as `measured("C4", "learner killed in update: training again", 6.2, "s", bar="<= 30 s")`, once for each
    repetition; repetitions share `row` and `what`.
    """

    def record(row: str, what: str, value: float, unit: str, *, bar: str) -> None:
        line = {"row": row, "what": what, "value": value, "unit": unit, "bar": bar, "time": time.time()}
        print(f"[{row}] {what}: {value:.3g} {unit} (bar: {bar})")
        if os.environ.get(RESULTS):
            with Path(os.environ[RESULTS]).open("a") as stream:
                stream.write(json.dumps(line) + "\n")

    return record
