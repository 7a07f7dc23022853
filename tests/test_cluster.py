"""Ray is joined or started within a bounded time, or a sentence says why not."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from dipole_ray import DIPOLE, DIPOLEConfig, cluster
from dipole_ray.errors import ConfigError, ResourcesUnavailable
from tests.cli.commands import dipole_here, write_config
from tests.cli.test_doctor import ray_control_service

pytestmark = pytest.mark.usefixtures("no_ray")

START = """
import ray
from dipole_ray.cluster import start_ray
from dipole_ray.cores import usable_cores
start_ray()
assert ray.cluster_resources()["CPU"] == usable_cores(), ray.cluster_resources()
assert ray.get(ray.remote(lambda: 42).remote(), timeout=60) == 42
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a port that takes connections and says nothing, as a stopped head does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_dead_cluster_is_said_in_bounded_time(silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself waits for more than 500 s; the same from the command line, before a run folder is made."""
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    for address, said in ((silent, "timed out"), ("127.0.0.1:9", "refused"), ("no-such-host.invalid:6379", "known")):
        start = time.monotonic()
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ResourcesUnavailable, match=f"{address} does not answer .*{said}.*unset RAY_ADDRESS"):
            cluster.start_ray()
        assert time.monotonic() - start < 10, address
        with pytest.raises(ResourcesUnavailable, match=f"{address} does not answer"):
            tune.Tuner(DIPOLE, param_space=DIPOLEConfig().environment("Pendulum-v1"))
    write_config(tmp_path / "small.yaml", training={"offline_learner_steps": 0})
    done = dipole_here("train", "small.yaml", "--address", "127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 2 and "127.0.0.1:9 does not answer" in done.stderr, done.stderr
    assert not list(tmp_path.glob("runs/*"))


def test_a_living_cluster_is_found_also_without_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("disabled", "token"):
        with ray_control_service(mode, tmp_path / mode) as address:
            monkeypatch.setenv("RAY_ADDRESS", address)
            assert cluster.cluster_address() == address


def test_an_address_that_cannot_be_joined_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, said in (("ray://head:10001", "ray job submit"), ("http://head", "write HOST:PORT")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=said):
            cluster.start_ray()


def test_a_cluster_that_died_without_a_word_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`ray start` notes its address in a file, which a machine that lost its power keeps."""
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    caplog.set_level("WARNING", "dipole_ray")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    assert cluster.cluster_address() == ""
    assert "127.0.0.1:9 does not answer" in caplog.text and "instead" in caplog.text
    DIPOLEConfig().environment("Pendulum-v1").to_dict()  # what a Tuner asks for before Tune joins what is noted there
    assert os.environ["RAY_ADDRESS"] == "local"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ResourcesUnavailable, match=r"127\.0\.0\.1:9 does not answer"):
        cluster.cluster_address()


@pytest.mark.slow
def test_ray_starts_with_a_long_folder_and_without_a_home(tmp_path: Path) -> None:
    """Its sockets' names are too long there, and it has no place for its token; it gets both from us.

    Nor do its processes work where this one does, from which a relative folder begins.
    """
    long = tmp_path / ("long" * 20)
    long.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TMPDIR"))}
    env = {**kept, "TMPDIR": long.name, "HOME": "/dev/null/nobody", "PYTHONPATH": str(Path.cwd())}
    command: Any = {"args": [sys.executable, "-c", START], "cwd": tmp_path, "env": env, "timeout": 170}
    done = subprocess.run(**command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{long}/ray is too long for the names of Ray's sockets" in done.stderr
    assert "Failed to start the dashboard" not in done.stderr, "Ray waits a minute for it"
