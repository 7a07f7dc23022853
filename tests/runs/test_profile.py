"""`dipole train --profile` writes a trace with the phases of the run and torch's operations on one clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dipole_ray.cli import main
from dipole_ray.collect import collect
from dipole_ray.runs import profile

PHASES = {"collect", "insert", "sample", "update", "publish", "evaluate", "save"}


@pytest.fixture(scope="module")
def folder(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run's config."""
    folder = tmp_path_factory.mktemp("profile")
    data = collect("Pendulum-v1", 1000, 0, folder / "data", progress=False)[0]
    small = {"preset": "small", "hidden_dims": [16, 16], "batch_size": 16, "denoise_steps": 2, "num_candidates": 2}
    training = {"offline_learner_steps": 40, "online_env_steps": 40, "learner_steps_per_iteration": 20}
    training |= {"env_steps_per_iteration": 20, "updates_per_env_step": 0.5, "learner_steps_per_call": 10}
    config = {"env": {"id": "Pendulum-v1"}, "data": {"path": str(data)}, "agent": small, "training": training}
    config |= {"rollout": {"num_workers": 0, "envs_per_worker": 1, "fragment_steps": 10}, "folder": str(folder)}
    config |= {"evaluation": {"episodes": 1, "omegas": [0.0], "candidates": [1]}, "tracking": {"mlflow": False}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize("pauses", [False, True], ids=["", "the process pauses as the clocks are compared"])
def test_a_trace_has_every_phase_and_torchs_operations_within_the_updates(
    folder: Path, pauses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pauses:
        monkeypatch.setattr(profile, "time", SimpleNamespace(time_ns=_slow_at_first(time.time_ns)))
    trace = folder / "trace.json"
    assert main(["train", str(folder / "run.yaml"), "--profile", str(trace)]) == 0
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("ph") == "X"]
    own = [event for event in events if event.get("cat") == "dipole"]
    assert {event["name"] for event in own} == PHASES
    assert all(event["dur"] >= 0 for event in own)
    updates = [(event["ts"], event["ts"] + event["dur"]) for event in own if event["name"] == "update"]
    weights = [event["ts"] for event in events if event["name"] == "aten::sigmoid"]
    assert len(weights) >= 10, "of the first seconds, which hold the first call at least"
    assert all(any(start <= weight <= end for start, end in updates) for weight in weights), "on one clock"


def _slow_at_first(time_ns: Callable[[], int]) -> Callable[[], int]:
    """A clock whose first readings return late: the scheduler gives the core away in between."""
    left = iter([0.05] * 3)

    def read() -> int:
        now = time_ns()
        time.sleep(next(left, 0.0))
        return now

    return read


def test_a_trace_without_a_folder_is_refused_before_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(folder / "run.yaml"), "--profile", str(folder / "no" / "trace.json")]) == 2
    assert "the folder does not exist; make it first" in capsys.readouterr().err
