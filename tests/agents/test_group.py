"""With `advantage: group` a row brings its advantage, and nothing of critics is built, trained, published or asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dipole_ray.agents import losses
from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import Agent, make_policy
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import EvalConfig, cells_of
from tests.agents.battery import ROWS, SCHEMA, assert_same, make_agent, make_batch, tiny_config
from tests.agents.test_captured import UPDATES, assert_close, joined

GROUP: dict[str, Any] = {"advantage": "group", "num_candidates": 1}


def of_critics(names: Any) -> list[str]:
    return [name for name in names if "critic" in name or "value." in name]


@pytest.mark.parametrize("scheme", ["dipole", "exp", "cfgrl", "bc"])
def test_no_critic_no_value_and_no_target_is_built_or_trained(scheme: str) -> None:
    """They are the larger part of an agent of MLPs: counted, they are gone from state, optimizer and policy."""
    with_critics = make_agent(tiny_config(weight_scheme=scheme))
    agent = make_agent(tiny_config(weight_scheme=scheme, **GROUP))
    kept, all_of_them = agent.state_dict(), with_critics.state_dict()
    assert not of_critics(kept) and not of_critics(agent.policy.policy_state())
    assert kept.keys() == all_of_them.keys() - set(of_critics(all_of_them))
    fields = sum(parameter.numel() for parameter in agent.networks.fields.parameters())
    assert sum(parameter.numel() for parameter in agent.networks.parameters()) == fields
    metrics = agent.update(make_batch(0))
    assert {name.partition("/")[0] for name in metrics} == {"actor", "system"}
    after = agent.state_dict()
    resumed = make_agent(agent.config, seed=8)
    resumed.load_state_dict(after)
    assert_same(agent.update(make_batch(1)), resumed.update(make_batch(1)))
    assert_same(agent.state_dict(), resumed.state_dict())
    actor = make_policy(agent.config, SCHEMA, seed=5)
    actor.load_policy_state(agent.policy.policy_state())
    assert actor.sample_actions(make_batch(2)["observations"]).shape == (ROWS, SCHEMA.action_dim)


def test_the_weights_are_those_of_the_rows_own_advantage() -> None:
    """Where a group has no spread its rows have advantage 0: both weights are 1/2, and the rows stay in the batch."""
    agent = make_agent(tiny_config(beta=2.0, **GROUP))
    batch = {**make_batch(0), "rewards": np.linspace(-1.5, 1.5, ROWS).astype(np.float32)}
    batch["rewards"][:8] = 0.0
    tensors, before = agent._read_batch(batch), agent.generator.get_state()
    weights = agent._field_weights(tensors["rewards"], tensors["is_offline"])
    assert torch.equal(weights[:, :8], torch.full((2, 8), 0.5))
    assert torch.equal(weights[0], torch.sigmoid(2.0 * tensors["rewards"]))
    found = agent._losses(tensors, False)[0]["actor"]
    agent.generator.set_state(before)
    x, t, target = agent._path(tensors["actions"])
    velocities = agent.networks.fields(tensors["observations"], x, t)
    assert torch.equal(found, losses.flow_matching_losses(velocities, target, weights).sum())


def test_fast_ways_end_where_the_readable_one_does() -> None:
    """Compiled and captured steps have no targets that would follow."""
    config = tiny_config(**GROUP)
    agents: list[Agent] = [make_agent(config) for _ in range(3)]
    assert agents[1].compile()
    batches = [make_batch(seed) for seed in range(UPDATES)]
    for batch in batches:
        agents[0].update(batch)
        agents[1].update(batch)
    CapturedUpdates([agents[2]], ROWS, UPDATES, fused=False).update_on([joined(batches)])
    for other in agents[1:]:
        assert_close(agents[0], other)


def test_adapters_learn_by_the_rows_advantage_alone() -> None:
    agent = make_agent(tiny_config(adapters=AdapterConfig(rank=2), **GROUP))
    agent.clone(True)
    agent.update(make_batch(0))
    agent.clone(False)
    before = agent.state_dict()
    agent.update(make_batch(1))
    moved = {name for name, tensor in agent.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("positive" in name for name in moved) and any("negative" in name for name in moved)
    assert not of_critics(moved)


OF_CRITICS = {
    "bootstrap": "value",
    "expectile": 0.7,
    "num_critics": 4,
    "advantage_normalization": "batch_std",
    "advantage_aggregation": "mean",
    "num_candidates": 16,
    "n_step": 3,
    "reward_scale": 2.0,
    "tau": 0.01,
}


@pytest.mark.parametrize(("setting", "value"), OF_CRITICS.items())
def test_settings_of_critics_are_refused_with_the_remedy(setting: str, value: Any) -> None:
    remedy = r"agent\.(advantage=critic|learned_score=true)"
    with pytest.raises(ConfigError, match=rf"agent\.{setting}: found {value}, but .*{remedy}"):
        tiny_config(**{**GROUP, setting: value})


def test_nothing_chooses_among_candidates() -> None:
    agent = make_agent(tiny_config(**GROUP))
    with pytest.raises(ConfigError, match=r"num_candidates: found 4, but .* no critics"):
        agent.sample_actions(make_batch(0)["observations"], num_candidates=4)
    assert {cell.candidates for cell in cells_of(EvalConfig(candidates=(1, 16)), agent.config)} == {1}
