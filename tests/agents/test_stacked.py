"""Stacked updates of many agents are each agent's own; on a GPU they come from a CUDA graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dipole_ray.agents import state
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.branches import Branches
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.stacked_loss import StackedLoss
from dipole_ray.errors import ConfigError, NonFiniteError
from tests.agents.battery import DEVICE, ROWS, Batch, assert_same, in_double, make_agent, make_batch, tiny_config
from tests.agents.test_captured import AGENTS, UPDATES, assert_close, joined, named, spoilt

OWN: list[dict[str, float]] = [
    {},
    {"beta": 7.0, "expectile": 0.7},
    {"learning_rate": 3e-4, "shift": 0.5},
]
"""What differs between three members, where their config knows it."""


def members(settings: dict[str, Any], own: list[dict[str, float]] = OWN) -> list[Agent]:
    """Return agents with seeds of their own."""
    shifts = settings["preset"] in ("paper", "small")
    each = [{name: value for name, value in one.items() if name != "shift" or shifts} for one in own]
    return [make_agent(tiny_config(**{**settings, **one}), seed=seed) for seed, one in enumerate(each)]


def batches_of(member: int, call: int) -> list[Batch]:
    """Return what a member gets in a call."""
    return [make_batch(1000 * member + UPDATES * call + k) for k in range(UPDATES)]


@pytest.mark.parametrize("settings", AGENTS, ids=named)
def test_a_hundred_stacked_updates_end_where_each_agents_own_do(settings: dict[str, Any]) -> None:
    """With settings of their own; steps are skipped by the member whose batch is not finite, and by no other."""
    alone, stacked = members(settings), CapturedUpdates(members(settings), ROWS, UPDATES)
    for call in range(10):
        batches = [batches_of(member, call) for member in range(3)]
        for k in {2: (4,), 3: range(6, UPDATES), 4: range(5)}.get(call, ()):
            batches[1][k] = spoilt(batches[1][k])
        found = stacked.update_on([joined(each) for each in batches])
        for member, agent in enumerate(alone):
            eager = [agent.update(batch, diagnostics=k == UPDATES - 1) for k, batch in enumerate(batches[member])]
            metrics = found[member]
            assert isinstance(metrics, dict) and metrics.keys() == eager[-1].keys()
            assert stacked.agents[member].consecutive_skips == agent.consecutive_skips
            for name, value in metrics.items() if agent.consecutive_skips == 0 and call != 4 else ():
                kept = eager if "/loss" in name else eager[-1:]
                mean = np.mean([float(each[name]) for each in kept])
                assert value == pytest.approx(mean, rel=1e-4, abs=1e-5, nan_ok=True), name
    assert [agent.skipped_updates for agent in stacked.agents] == [0, 10, 0]
    for agent, other in zip(alone, stacked.agents, strict=True):
        assert_close(agent, other)


@pytest.mark.parametrize("settings", AGENTS, ids=named)
def test_losses_and_gradients_are_equal_in_float64(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    alone, stacked = members(settings), members(settings)
    for agent in [*alone, *stacked]:
        in_double(agent, monkeypatch)
    flat = (
        state.flatten_each([getattr(agent, name) for agent in stacked])
        for name in ("_parameters", "_target_parameters")
    )
    loss = StackedLoss(stacked, *flat, Branches())
    batches = [agent._read_batch(make_batch(member)) for member, agent in enumerate(alone)]
    joint = {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
    totals, metrics, _ = loss(joint, True)
    gradients = torch.autograd.grad(totals.sum(), loss.trained, materialize_grads=True)
    for member, agent in enumerate(alone):
        total, expected, _ = agent._loss(batches[member], True)
        torch.testing.assert_close(totals[member], total, rtol=1e-10, atol=1e-10)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name][member], value, rtol=1e-9, atol=1e-9, msg=name)
        own = torch.autograd.grad(total, agent._parameters, materialize_grads=True)
        for left, right in zip(own, gradients, strict=True):
            torch.testing.assert_close(right[member], left, rtol=1e-9, atol=1e-10)


def test_another_batch_of_one_member_leaves_the_others_bitwise() -> None:
    """Also one that is not finite, or one that ends in an error."""
    settings, states = {"preset": "paper", "advantage_normalization": "running_std"}, []
    for change in (0, 1, 2):
        stacked = CapturedUpdates(members(settings, [{}] * 4), ROWS, UPDATES)
        batches = [batches_of(member, 0) for member in range(4)]
        if change == 1:
            batches[3] = batches_of(9, 0)
        if change == 2:
            batches[3] = [spoilt(batch) for batch in batches[3]]
        *_, last = stacked.update_on([joined(each) for each in batches])
        assert isinstance(last, NonFiniteError) == (change == 2)
        states.append([agent.state_dict() for agent in stacked.agents])
    for member in range(3):
        assert_same(states[0][member], states[1][member])
        assert_same(states[0][member], states[2][member])
    assert not torch.equal(states[0][3]["networks.critic.kernels.0"], states[1][3]["networks.critic.kernels.0"])


def test_a_stack_of_one_is_the_agent_alone() -> None:
    (agent,), stacked = (
        members({"preset": "small"}, [{}]),
        CapturedUpdates(members({"preset": "small"}, [{}]), ROWS, 10),
    )
    for call in range(10):
        stacked.update_on([joined(batches_of(0, call))])
        for batch in batches_of(0, call):
            agent.update(batch)
    assert_close(agent, stacked.agents[0])


def test_checkpoints_of_members_go_on_bitwise_in_another_stack_and_alone() -> None:
    """Making a stack changes nothing, and an update of one agent by itself, between two calls, counts."""
    agents = members({"preset": "small"})
    if DEVICE == "cpu":
        agents[0].compile()
    before = [agent.state_dict() for agent in agents]
    stacked = CapturedUpdates(agents, ROWS, UPDATES)
    for agent, kept in zip(agents, before, strict=True):
        assert_same(agent.state_dict(), kept)
    calls = [[joined(batches_of(member, call)) for member in range(3)] for call in range(3)]
    stacked.update_on(calls[0])
    agents[1].update(make_batch(77))
    stacked.update_on(calls[1])
    other = CapturedUpdates(members({"preset": "small"}), ROWS, UPDATES)
    other.update_on(calls[2])
    alone = members({"preset": "small"})
    for agent, resumed, single in zip(agents, other.agents, alone, strict=True):
        resumed.load_state_dict(agent.state_dict())
        single.load_state_dict(agent.state_dict())
    assert stacked.update_on(calls[2]) == other.update_on(calls[2])
    for member, (agent, resumed, single) in enumerate(zip(agents, other.agents, alone, strict=True)):
        assert_same(agent.state_dict(), resumed.state_dict())
        for batch in batches_of(member, 2):
            single.update(batch)
        assert_close(agent, single)
        assert_same(agent.policy.policy_state(), resumed.policy.policy_state())


def test_ten_skips_in_a_row_end_one_member_with_its_batch_saved(tmp_path: Path) -> None:
    stacked = CapturedUpdates(members({"preset": "small"}), ROWS, UPDATES)
    for member, agent in enumerate(stacked.agents):
        agent.failure_directory = tmp_path / str(member)
    stacked.update_on([joined(batches_of(member, 0)) for member in range(3)])
    kept = stacked.agents[2].state_dict()
    batches = [batches_of(member, 1) for member in range(3)]
    batches[2] = [spoilt(batch) for batch in batches[2]]
    found = stacked.update_on([joined(each) for each in batches])
    assert [type(one) for one in found] == [dict, dict, NonFiniteError]
    assert "in 10 updates in a row" in str(found[2])
    assert [path.name for path in tmp_path.glob("*/*")] == ["nonfinite-batch-20.safetensors"]
    after = stacked.agents[2].state_dict()
    moved = {"learner_steps", "skipped_updates", "consecutive_skips", "generator"}
    assert_same(*({name: each[name] for name in each.keys() - moved} for each in (kept, after)))


def test_normalized_observations_are_each_members_own() -> None:
    def fitted() -> list[Agent]:
        agents = members({"preset": "small", "observation_normalization": "dataset"})
        for member, agent in enumerate(agents):
            agent.fit_observations(np.full(5, float(member)), np.full(5, 2.0 + member))
        return agents

    alone, stacked = fitted(), CapturedUpdates(fitted(), ROWS, UPDATES)
    stacked.update_on([joined(batches_of(member, 0)) for member in range(3)])
    for member, agent in enumerate(alone):
        for batch in batches_of(member, 0):
            agent.update(batch)
        assert_close(agent, stacked.agents[member])


def test_agents_of_other_networks_or_methods_make_no_stack() -> None:
    for settings, name in (({"discount": 0.9}, "discount"), ({"preset": "exp"}, "weight_scheme")):
        agents = [make_agent(tiny_config()), make_agent(tiny_config(**settings))]
        with pytest.raises(ConfigError, match=rf"agent\.{name}.* may differ in beta"):
            CapturedUpdates(agents, ROWS, UPDATES)
    with pytest.raises(ConfigError, match="each agent one of its own"):
        CapturedUpdates(members({"preset": "small"}), ROWS, UPDATES).update_on([make_batch(0)])
