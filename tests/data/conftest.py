"""Servers on this machine, and the files they serve."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.data.downloading import NAME
from tests.data.file_server import FileServer, file_server
from tests.synthetic import ogbench_arrays, write_ogbench


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture
def mirror() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an OGBench file of some 240 kB."""
    arrays = ogbench_arrays(np.random.default_rng(0), [2000] * 4, 2, 2)
    return write_ogbench(tmp_path_factory.mktemp("npz") / NAME, arrays).read_bytes()


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an OGBench file of some 3 kB."""
    arrays = ogbench_arrays(np.random.default_rng(2), [20], 2, 2)
    return write_ogbench(tmp_path_factory.mktemp("npz") / NAME, arrays).read_bytes()


@pytest.fixture(scope="session")
def other_npz(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return another file of the same length."""
    arrays = ogbench_arrays(np.random.default_rng(1), [2000] * 4, 2, 2)
    return write_ogbench(tmp_path_factory.mktemp("npz") / NAME, arrays).read_bytes()
