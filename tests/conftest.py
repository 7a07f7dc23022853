"""Settings every test runs under: one thread, no cluster and no tracking server from outside."""

from __future__ import annotations

import gc
import os
import signal
import sys
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

SHARE_A_RAY = ("rllib/test_remote.py", "rllib", "runs", "sweep", "evaluation")
"""Where the tests are that use `cluster`, longest first."""
LONGEST = (*SHARE_A_RAY, *("bench", "cli", "data/test_malformed_files.py", "test_", "tracking", "envs", "agents"))
"""Where the long tests are, longest first; those that share a Ray come before the others, which need none."""


def place(path: Path) -> int:
    """Return the place of a test's file among `LONGEST`."""
    name = path.relative_to(Path(__file__).parent).as_posix()
    return next((i for i, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files: with several workers, one that comes last would leave the others idle."""
    items.sort(key=lambda item: place(item.path))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import without the collector of garbage, which looks at all that torch and Ray define, again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no tests of a folder all of which the markers leave out."""
    name = collection_path.name
    return True if name in ("chaos", "browser") and f"not {name}" in config.option.markexpr else None


@pytest.fixture(scope="module", autouse=True)
def idle_ray(request: pytest.FixtureRequest) -> None:
    """End a Ray that later files do not share: doing nothing, it takes a thirtieth of a core."""
    if "ray" in sys.modules and place(request.path) >= len(SHARE_A_RAY):
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="session")
def ray_results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """RLlib's folders are among the tests' temporary ones, and no algorithm's end waits for a thread that sleeps."""
    folder = str(tmp_path_factory.mktemp("ray_results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", folder)
        patch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", folder, raising=False)
        patch.setattr("ray.tune.utils.util.UtilMonitor.start", lambda self: None)
        yield


@pytest.fixture(scope="module")
def cluster(ray_results: None) -> None:
    """A local Ray with four CPU slots, which stays for the modules after."""
    from tests.local_ray import keep_ray

    keep_ray()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing at their end, which is half of the time that a small one takes."""
    monkeypatch.setattr("dipole_ray.plots.draw_run", lambda *_, **__: [])


@pytest.fixture(scope="module")
def no_ray() -> Iterator[None]:
    """No Ray runs in this process, and what the module starts ends with it."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()
