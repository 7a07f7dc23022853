"""One battery of promises that every method keeps, and the small agents it runs on."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_ray.agents import agent as agents
from dipole_ray.agents import state
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.steps import Steps
from dipole_ray.columns import Schema

OBSERVATION_DIM, ACTION_DIM, ROWS = 5, 2, 32
SCHEMA = Schema(OBSERVATION_DIM, ACTION_DIM)
DEVICE = os.environ.get("DIPOLE_TEST_DEVICE", "cpu")  # `cuda` runs the same promises on a GPU

Batch = dict[str, np.ndarray]


def tiny_config(preset: str = "paper", **changes: Any) -> AgentConfig:
    """Return a preset at a size that takes milliseconds."""
    return AgentConfig.preset(preset, **{"hidden_dims": (24, 24), "learning_rate": 1e-3, **changes})


def make_batch(seed: int, rows: int = ROWS, discount: float = 0.995) -> Batch:
    """Return a random batch in the layout of the replay."""
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(size=(rows, OBSERVATION_DIM)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(rows, ACTION_DIM)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "masks": (rng.random(rows) > 0.2).astype(np.float32),
        "next_observations": rng.normal(size=(rows, OBSERVATION_DIM)).astype(np.float32),
        "discounts": (discount ** rng.integers(1, 4, size=rows)).astype(np.float32),
    }


def make_agent(config: AgentConfig, seed: int = 0, **options: Any) -> Any:
    """Return the config's agent for the batches of `make_batch`; typed loosely, for tests that look inside."""
    return agents.make_agent(config, SCHEMA, seed=seed, **{"device": DEVICE, **options})


def in_double(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Return the agent with all of its numbers in float64, its noise too, which is drawn in float32."""
    agent.networks.double()
    agent._parameters = list(agent.networks.trained_parameters().values())
    agent.optimizer = state.make_adam(agent._parameters, agent.config.learning_rate)
    critics, targets = (list(net.parameters()) for net in (agent.networks.critic, agent.networks.target_critic))
    agent.steps = Steps(agent.config, agent.optimizer, critics, targets)
    agent._statistics = {name: value.double() for name, value in agent._statistics.items()}
    read, normal, draw = agent._read_batch, agent.policy.normal, torch.rand
    monkeypatch.setattr(agent, "_read_batch", lambda batch: {k: v.double() for k, v in read(batch).items()})
    monkeypatch.setattr(agent.policy, "normal", lambda *shape: normal(*shape).double())
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: draw(*shape, **options).double())
    return agent


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Check that two dicts of tensors are bitwise equal."""
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, different


def run_battery(config: AgentConfig) -> None:
    """Fit, act, save and resume with one method."""
    agent = make_agent(config)
    before = agent.state_dict()
    for step in range(4):
        metrics = agent.update(make_batch(step))
        assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())
        assert all(bool(torch.isfinite(value)) for value in metrics.values()), metrics
        assert {f"actor/loss_{name}" for name in config.fields} <= metrics.keys()
    _check_everything_moved(agent, before)
    _check_acting(agent)
    _check_resume(agent)


def _check_everything_moved(agent: Agent, before: dict[str, Tensor]) -> None:
    after = agent.state_dict()
    for name in agent.networks.state_dict():
        if name.startswith("observation_"):  # the normalization is a constant
            continue
        old, new = before[f"networks.{name}"], after[f"networks.{name}"]
        for member in range(len(old)):
            assert not torch.equal(old[member], new[member]), f"{name}[{member}] did not move"
    assert int(after["learner_steps"]) == 4


def _check_acting(agent: Agent) -> None:
    observations = make_batch(99)["observations"]

    def act(**options: Any) -> Tensor:
        return agent.sample_actions(observations, generator=torch.Generator().manual_seed(3), **options)

    actions = act()
    assert actions.shape == (ROWS, ACTION_DIM) and bool((actions.abs() <= 1).all())
    assert actions.dtype == torch.float32 and not actions.requires_grad
    assert torch.equal(actions, act())
    assert not torch.equal(act(num_candidates=1), act(num_candidates=16))
    other = agent.sample_actions(observations, num_candidates=1, generator=torch.Generator().manual_seed(4))
    assert torch.equal(other, act(num_candidates=1)) == agent.policy.has_mode
    assert torch.equal(act(num_candidates=1, explore=True), act(num_candidates=1)) != agent.policy.has_mode
    assert torch.equal(act(num_candidates=4, explore=True), act(num_candidates=4))
    if agent.config.is_guided:
        assert not torch.equal(act(omega=0.0), act(omega=2.0))
    if agent.policy.has_bc:
        assert act(policy="bc", num_candidates=1).shape == (ROWS, ACTION_DIM)
    actor = make_agent(agent.config, seed=7)
    actor.policy.load_policy_state(agent.policy.policy_state())
    assert torch.equal(actor.sample_actions(observations, generator=torch.Generator().manual_seed(3)), actions)


def _check_resume(agent: Agent) -> None:
    resumed = make_agent(agent.config, seed=8)
    resumed.load_state_dict(agent.state_dict())
    for step in range(10, 14):
        assert_same(agent.update(make_batch(step)), resumed.update(make_batch(step)))
    assert_same(agent.state_dict(), resumed.state_dict())
    observations = make_batch(99)["observations"]
    assert torch.equal(agent.sample_actions(observations), resumed.sample_actions(observations))
