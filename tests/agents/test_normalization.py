"""Observations normalized inside the agent are the same thing as normalized data, and travel with the policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dipole_ray.errors import ConfigError
from tests.agents.battery import ACTION_DIM, OBSERVATION_DIM, make_agent, make_batch, tiny_config

MEAN = np.linspace(-3, 20, OBSERVATION_DIM).astype(np.float32)
STD = np.linspace(0.5, 8, OBSERVATION_DIM).astype(np.float32)


def test_training_on_raw_data_equals_training_on_normalized_data() -> None:
    inside, outside = make_agent(tiny_config(observation_normalization="dataset")), make_agent(tiny_config())
    inside.fit_observations(MEAN, STD)
    for step in range(3):
        batch = make_batch(step)
        inside.update(batch)
        columns = {name: (batch[name] - MEAN) / STD for name in ("observations", "next_observations")}
        outside.update({**batch, **columns})
    trained = {name for name in outside.state_dict() if "observation_" not in name}
    for name in trained:
        torch.testing.assert_close(inside.state_dict()[name], outside.state_dict()[name], rtol=1e-5, atol=1e-6)
    observations = make_batch(9)["observations"]
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    actions = inside.sample_actions(observations, generator=seeded[0])
    expected = outside.sample_actions((observations - MEAN) / STD, generator=seeded[1])
    torch.testing.assert_close(actions, expected, rtol=1e-4, atol=1e-5)
    assert actions.shape[1] == ACTION_DIM


def test_normalization_travels_with_state_and_policy() -> None:
    config = tiny_config(observation_normalization="dataset")
    agent, resumed, worker = make_agent(config), make_agent(config), make_agent(config)
    agent.fit_observations(MEAN, np.zeros_like(STD))  # dimensions that never move are left as they are
    resumed.load_state_dict(agent.state_dict())
    worker.policy.load_policy_state(agent.policy.policy_state())
    for other in (resumed, worker):
        assert torch.equal(other.networks.observation_mean, torch.from_numpy(MEAN))
        assert torch.equal(other.networks.observation_std, torch.ones(OBSERVATION_DIM))


def test_normalization_is_fitted_only_where_it_is_asked_for_and_before_learning() -> None:
    with pytest.raises(ConfigError, match="'none'"):
        make_agent(tiny_config()).fit_observations(MEAN, STD)
    late = make_agent(tiny_config(observation_normalization="dataset"))
    with pytest.raises(ConfigError, match="observation_statistics"):
        late.update(make_batch(0))
    late.fit_observations(MEAN, STD)
    late.update(make_batch(0))
    with pytest.raises(ConfigError, match="before the first update"):
        late.fit_observations(MEAN, STD)
