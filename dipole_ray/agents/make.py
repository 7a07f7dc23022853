"""The agent or the policy that a config describes."""

from pathlib import Path

import torch

from dipole_ray.agents.agent import Agent
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.agents.fields import MakeFields, StackedFields
from dipole_ray.agents.fql import FqlAgent
from dipole_ray.agents.iql import IqlAgent
from dipole_ray.agents.policy import Policy

AGENTS: dict[str, type[Agent]] = {agent.algorithm: agent for agent in (DipoleAgent, FqlAgent, IqlAgent)}


def make_agent(
    config: AgentConfig,
    observation_dim: int,
    action_dim: int,
    seed: int,
    device: str | torch.device = "cpu",
    failure_directory: Path | None = None,
    make_fields: MakeFields = StackedFields,
) -> Agent:
    """Return the untrained agent of `config.algorithm`, its networks and all noise drawn from `seed`; see `Agent`."""
    agent = AGENTS[config.algorithm]
    return agent(config, observation_dim, action_dim, seed, device, failure_directory, make_fields)


def make_policy(
    config: AgentConfig,
    observation_dim: int,
    action_dim: int,
    seed: int,
    device: str | torch.device = "cpu",
    make_fields: MakeFields = StackedFields,
) -> Policy:
    """Return the policy that `make_agent` would train, with the same networks and noise but nothing that learns."""
    agent = AGENTS[config.algorithm]
    networks, noise_seed = agent.draw(config, observation_dim, action_dim, seed, make_fields)
    return agent.policy_class(config, networks, noise_seed, device)
