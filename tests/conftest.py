"""Settings every test runs under: one thread, no cluster and no tracking server from outside."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch, numpy or Ray are imported: a thread pool per test process would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Compiled once for all tests, whatever home one has.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "dipole_ray" / "compiled"))
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

# A shell's background job ignores Ctrl-C, and every command that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    *("rllib/test_remote.py", "rllib", "runs", "sweep", "evaluation"),  # they share a Ray, see `cluster`
    *("bench", "cli", "data/test_malformed_files.py", "test_", "tracking", "envs", "agents"),
)
"""Where the long tests are, longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files: with several workers, one that comes last would leave the others idle."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(here).as_posix()
        return next((i for i, start in enumerate(LONGEST) if path.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def ray_results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """RLlib's folders are among the tests' temporary ones."""
    folder = str(tmp_path_factory.mktemp("ray_results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", folder)
        patch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", folder, raising=False)
        yield


@pytest.fixture(scope="module")
def cluster(ray_results: None) -> None:
    """A local Ray with four CPU slots, which stays for the modules after."""
    from tests.local_ray import keep_ray

    keep_ray()


@pytest.fixture(scope="module")
def no_ray() -> Iterator[None]:
    """No Ray runs in this process, and what the module starts ends with it."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()
