"""A resume with other settings is refused or named, never silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.agents.config import AgentConfig
from dipole_ray.columns import Schema
from dipole_ray.data.schema import close_trajectory
from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.checkpoint import STATE_FILE, Checkpoint, write_checkpoint
from dipole_ray.files.provenance import package_versions
from dipole_ray.files.resume import config_differences, guard_resume, version_differences, warn_of
from dipole_ray.replay.replay import Replay
from dipole_ray.runs.config import FIXED, saved_config
from dipole_ray.settings import to_mapping

SAVED: dict[str, Any] = {
    "env": {"id": "a", "wrappers": {}},
    "agent": {"beta": 1.0, "hidden_dims": [64, 64]},
    "seed": 0,
}


def test_an_unchanged_config_passes_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    warn_of(
        guard_resume(SAVED, {**SAVED}, fixed={"env", "agent.hidden_dims"}) + version_differences(package_versions())
    )
    assert not caplog.records


def test_allowed_changes_are_named_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    current = {**SAVED, "agent": {"beta": 5.0, "hidden_dims": [64, 64], "new": True}, "seed": 1}
    differences = guard_resume(SAVED, current, fixed={"env", "agent.hidden_dims"})
    assert [item.key for item in differences] == ["agent.beta", "agent.new", "seed"]
    warn_of(differences)
    (message,) = caplog.messages
    assert "agent.beta: 1.0 -> 5.0; agent.new: (absent) -> True; seed: 0 -> 1" in message


def test_every_package_of_another_version_is_named() -> None:
    installed = package_versions()
    saved = {**installed, "torch": "2.0.1", "a_package_of_then": "1.0"}
    del saved["numpy"]
    assert [str(item) for item in version_differences(saved)] == [
        "version of a_package_of_then: 1.0 -> (absent)",
        f"version of numpy: (absent) -> {installed['numpy']}",
        f"version of torch: 2.0.1 -> {installed['torch']}",
    ]


def test_every_impossible_change_is_named_in_one_error() -> None:
    current = {**SAVED, "env": {"id": "b", "wrappers": {"x": 1}}, "agent": {"beta": 5.0, "hidden_dims": [8]}}
    with pytest.raises(ConfigError) as caught:
        guard_resume(SAVED, current, fixed={"env", "agent.hidden_dims"})
    for part in ("env.id: a -> b", "env.wrappers.x: (absent) -> 1", "agent.hidden_dims: [64, 64] -> [8]", "new run"):
        assert part in str(caught.value)
    assert "beta" not in str(caught.value)


def test_a_fixed_key_does_not_cover_its_namesakes() -> None:
    assert [item.key for item in guard_resume({"envs": 1}, {"envs": 2}, fixed={"env"})] == ["envs"]


def checkpoint_of(run: Any) -> Checkpoint:
    return Checkpoint(path=Path("somewhere"), learner_steps=1, tensors={}, metadata={"run": run}, versions={})


def test_a_run_from_before_an_algorithm_could_be_chosen_goes_on_as_dipole_alone() -> None:
    agent = to_mapping(AgentConfig.preset("small"))
    old = {key: value for key, value in agent.items() if key not in ("algorithm", "alpha", "normalize_q_loss")}
    saved = saved_config(checkpoint_of({"agent": old, "seed": 0}))
    assert guard_resume(saved, {"agent": agent, "seed": 0}, FIXED) == []
    other = to_mapping(AgentConfig.preset("small", algorithm="iql"))
    with pytest.raises(ConfigError, match=r"agent\.algorithm: dipole -> iql"):
        guard_resume(saved, {"agent": other, "seed": 0}, FIXED)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        saved_config(checkpoint_of("no settings"))


def test_a_run_whose_candidates_were_chosen_by_the_target_critics_says_that_others_do() -> None:
    agent = to_mapping(AgentConfig.preset("paper", target_candidates=4))
    old = {key: value for key, value in agent.items() if key != "target_choice"}
    saved = saved_config(checkpoint_of({"agent": old}))
    (difference,) = guard_resume(saved, {"agent": agent}, FIXED)
    assert str(difference) == "agent.target_choice: target -> online"
    with_one = {**old, "target_candidates": 1}
    assert guard_resume(saved_config(checkpoint_of({"agent": with_one})), {"agent": {**agent, **with_one}}, FIXED) == []


def test_differences_cover_removed_keys() -> None:
    (difference,) = config_differences({"a": 1, "b": 2}, {"a": 1})
    assert str(difference) == "b: 2 -> (absent)"


def test_replay_of_a_million_rows_costs_a_checkpoint_kilobytes(tmp_path: Path) -> None:
    """R3: names, counts and checksums are saved, not rows; and the rows they name are there after a restart."""
    capacity, piece = 1_000_000, 1000
    schema = Schema(2, 1)
    zeros, ones = np.zeros((piece, 2), np.float32), np.ones(piece - 1, np.float32)
    rows = close_trajectory(zeros, zeros[1:, :1], ones, ones)
    with Replay(schema=schema, online=tmp_path / "online.arrow", capacity=capacity) as replay:
        for index in range(capacity // piece):
            rows["observations"][:, 0] = index
            replay.insert(rows, worker=index % 8, incarnation=0, sequence=index)
        state = replay.state()
        expected = replay.sample(256)
    assert len(json.dumps(state, indent=1)) < 64 * 1024
    path = write_checkpoint(tmp_path / "checkpoints", 1, {}, {"replay": state})
    assert sum(file.stat().st_size for file in path.iterdir()) == (path / STATE_FILE).stat().st_size < 64 * 1024
    with Replay(schema=schema, online=tmp_path / "online.arrow", capacity=capacity) as replay:
        assert replay.load_state(json.loads((path / STATE_FILE).read_text())["metadata"]["replay"]) == 0
        assert replay.num_online == capacity - capacity // piece
        for name, values in replay.sample(256).items():
            assert np.array_equal(values, expected[name])
