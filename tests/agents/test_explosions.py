"""Settings and rewards that blow up: bounded weights take most of it, and what they do not is never applied."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dipole_ray.agents.agent import MAX_CONSECUTIVE_SKIPS
from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.errors import CheckpointError, NonFiniteError
from tests.agents.battery import (
    SCHEMA,
    assert_same,
    make_agent,
    make_batch,
    tiny_config,
)

COUNTERS_AND_NOISE = {"learner_steps", "skipped_updates", "consecutive_skips", "generator"}

HARMLESS: list[dict[str, Any]] = [
    {"beta": 1e4},
    {"beta": 1e4, "advantage_normalization": "running_std"},
    {"preset": "exp", "beta": 1e4},
    {"reward_scale": 1e6},
    {"reward_scale": 1e6, "beta": 1e4},
]
EXPLOSIVE: list[dict[str, Any]] = [
    {"learning_rate": 10.0},
    {"learning_rate": 10.0, "preset": "exp"},
    {"learning_rate": 10.0, "reward_scale": 1e6, "beta": 1e4},
    {"preset": "exp", "beta": 1e4, "exp_weight_max": math.inf},
    {"reward_scale": 1e25},
    {"reward_scale": 1e25, "advantage_normalization": "running_std"},
]


def named(settings: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in settings.items())


@pytest.mark.parametrize("settings", HARMLESS, ids=named)
def test_steep_and_scaled_advantages_are_harmless_because_the_weights_are_bounded(settings: dict[str, Any]) -> None:
    """beta = 1e4 only makes the weights a step function, and rewards times 1e6 only the critics' loss large."""
    agent = make_agent(tiny_config(**settings))
    before = agent.policy.policy_state()
    for step in range(40):
        metrics = agent.update(make_batch(step))
        assert all(bool(torch.isfinite(value)) for value in metrics.values()), metrics
    assert agent.skipped_updates == 0
    fields = [name for name in before if name.startswith("fields.")]
    assert fields and not any(torch.equal(before[name], agent.policy.policy_state()[name]) for name in fields)


@pytest.mark.parametrize("settings", EXPLOSIVE, ids=named)
def test_an_explosion_changes_no_tensor_and_ends_after_ten_updates_with_the_batch_saved(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(**settings)
    agent = DipoleAgent(config, SCHEMA, seed=0, failure_directory=tmp_path / "failures")
    error: NonFiniteError | None = None
    step = 0
    while error is None:
        assert step < 100, "nothing exploded"
        before, batch = agent.state_dict(), make_batch(step)
        try:
            agent.update(batch)
        except NonFiniteError as raised:
            error = raised
        after = agent.state_dict()
        if agent.consecutive_skips:
            unchanged = before.keys() - COUNTERS_AND_NOISE
            assert_same({name: before[name] for name in unchanged}, {name: after[name] for name in unchanged})
        assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values()), "a non-finite step was applied"
        step += 1
    assert agent.consecutive_skips == MAX_CONSECUTIVE_SKIPS == 10
    path = tmp_path / "failures" / f"nonfinite-batch-{step}.safetensors"
    assert str(path) in str(error) and "agent.learning_rate" in str(error)
    saved = load_file(path)
    for name, column in batch.items():
        np.testing.assert_array_equal(saved[name].numpy(), column)


def test_a_batch_that_cannot_be_saved_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "failures").write_text("in the way")
    config = tiny_config(reward_scale=1e25)
    agent = DipoleAgent(config, SCHEMA, seed=0, failure_directory=tmp_path / "failures")
    with pytest.raises(NonFiniteError, match=r"10 updates in a row.*could not be saved in .*failures"):
        for step in range(10):
            agent.update(make_batch(step))


def test_a_state_that_is_not_finite_or_of_another_type_is_refused_and_changes_nothing() -> None:
    """No agent of ours has one: whoever wrote it, training on it could only fail."""
    agent, other = make_agent(tiny_config()), make_agent(tiny_config(), 1).state_dict()
    before = agent.state_dict()
    for name in ("networks.value.biases.0", "optimizer.exp_avg_sq.value.biases.0"):
        spoilt = {**other, name: torch.full_like(other[name], math.nan)}
        with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
            agent.load_state_dict(spoilt)
    for name, dtype in (("networks.value.biases.0", torch.float64), ("learner_steps", torch.float32)):
        with pytest.raises(CheckpointError, match=f"{name} holds {dtype}, expected"):
            agent.load_state_dict({**other, name: other[name].to(dtype)})
    policy = agent.policy.policy_state()
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        agent.policy.load_policy_state({name: tensor * math.inf for name, tensor in policy.items()})
    assert_same(before, agent.state_dict())
