"""What is written down of a run: from its metrics, and from where it ran."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from dipole_ray.bench.config import MethodConfig, TaskConfig
from dipole_ray.bench.result import read_result, result_of
from dipole_ray.bench.suite import from_mapping
from dipole_ray.cores import usable_cores
from dipole_ray.files.durable import write_json
from dipole_ray.files.provenance import package_versions
from dipole_ray.runs.config import RunConfig
from tests.bench.results import key_of, result, scores_of
from tests.bench.small import suite_mapping

CELLS = [(omega, count) for omega in (0.0, 1.0) for count in (1, 2)]


def config(offline: int, online: int) -> RunConfig:
    base = {"training": {"offline_learner_steps": offline, "online_env_steps": online}}
    return from_mapping(suite_mapping(base=base)).job("pendulum", "dipole", 0).config


def evaluated(learner_steps: int, env_steps: int = 0) -> dict[str, float]:
    scores = {f"eval/return/{key_of(*cell)}": -100.0 for cell in CELLS}
    return {"learner_steps": learner_steps, "env_steps": env_steps, **scores}


def updated(learner_steps: int, env_steps: int = 0) -> dict[str, float]:
    return {"learner_steps": learner_steps, "env_steps": env_steps, "time/iteration_s": 1.0}


OFFLINE = [updated(20), updated(40), updated(60)]


@pytest.mark.parametrize(
    ("offline", "online", "lines", "phase"),
    [
        (60, 240, [], "offline"),
        (60, 240, OFFLINE[:2], "offline"),
        (60, 240, OFFLINE, "offline"),  # no action in the evaluation that ends the phase was finite
        (60, 240, [*OFFLINE, evaluated(60)], "online"),  # the first online iteration was not finished
        (60, 240, [*OFFLINE, evaluated(60), updated(90, 60)], "online"),
        (60, 0, [*OFFLINE, evaluated(60)], "offline"),
        (0, 240, [], "online"),
    ],
)
def test_the_phase_in_which_a_run_diverged_is_written_down(
    tmp_path: Path, offline: int, online: int, lines: list[dict[str, Any]], phase: str
) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = result_of(tmp_path, config(offline, online), status="diverged", error="not finite")
    assert found["phase"] == phase


@pytest.mark.parametrize(("phase", "counted"), [("online", [40.0]), ("offline", [0.0]), (None, [0.0])])
def test_what_a_run_reached_before_the_phase_in_which_it_diverged_is_its_own(
    phase: str | None, counted: list[float]
) -> None:
    """A result of an earlier version (None) names no phase, and its last line tells."""
    said = {} if phase is None else {"phase": phase}
    runs = [
        result("maze", "m", 0, {(None, 1): [0.4]}, chosen=(None, 1), points=(("offline", 100, 0),), status="diverged")
        | said
    ]
    one = scores_of(runs, tasks={"maze": TaskConfig()}, methods={"m": MethodConfig()}, evaluations=1)
    assert list(one.finals("maze", "m", key_of(None, 1), "offline").values()) == counted
    assert list(one.finals("maze", "m", key_of(None, 1), "online").values()) == [0.0]
    assert ("online" in one.phases()) == (phase == "online")


def test_a_result_names_the_machine_and_the_packages_that_made_it(tmp_path: Path) -> None:
    found = result_of(tmp_path, config(60, 0), status="finished", error=None)
    assert found["machine"].startswith(f"{platform.machine()}, {usable_cores()} cores")
    assert found["versions"] == package_versions() and "torch" in found["versions"]
    write_json(tmp_path / "result.json", found)
    assert read_result(tmp_path) == found
