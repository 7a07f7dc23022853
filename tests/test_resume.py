"""A resume with other settings is refused or named, never silent."""

from __future__ import annotations

from typing import Any

import pytest

from dipole_ray.errors import ConfigError
from dipole_ray.provenance import package_versions
from dipole_ray.resume import config_differences, guard_resume, version_differences, warn_of

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


def test_differences_cover_removed_keys() -> None:
    (difference,) = config_differences({"a": 1, "b": 2}, {"a": 1})
    assert str(difference) == "b: 2 -> (absent)"
