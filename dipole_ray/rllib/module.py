"""The RLModule: a thin shell that lets RLlib carry, save and publish the agent's networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule

from dipole_ray import settings
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.make import make_agent


class DIPOLERLModule(TorchRLModule):
    """Holds the agent; `forward_inference` and `forward_exploration` act with its policy.

    `model_config` carries `agent` (the agent's settings) and `seed`, put there by `DIPOLEConfig`.
    """

    agent: Agent

    def setup(self) -> None:
        """Build the agent on the CPU; the learner moves it to its own device."""
        self.build_agent("cpu")

    def build_agent(self, device: str | torch.device) -> None:
        """Build a fresh agent on `device`, from the same seed on every device and process."""
        config = settings.from_mapping(AgentConfig, self.model_config["agent"], "agent")
        observation_dim = int(np.prod(self.observation_space.shape))
        action_dim = int(np.prod(self.action_space.shape))
        self.agent = make_agent(config, observation_dim, action_dim, seed=self.model_config["seed"], device=device)
        self.networks = self.agent.networks

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the policy's actions for a batch of observations (B, O)."""
        return {Columns.ACTIONS: self.agent.sample_actions(batch[Columns.OBS])}

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return actions as the rollouts take them: drawn, also where the policy has a mode."""
        return {Columns.ACTIONS: self.agent.sample_actions(batch[Columns.OBS], explore=True)}
