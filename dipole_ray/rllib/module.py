"""The RLModule: a thin shell that lets RLlib carry, save and publish the networks."""

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule

from dipole_ray.agents.agent import make_policy
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.policy import Policy
from dipole_ray.agents.state import check_matches, copy_into
from dipole_ray.envs.spaces import schema_of


class DIPOLERLModule(TorchRLModule):
    """Holds a policy and acts with it (`learner.py` holds what learns); `model_config` comes from `DIPOLEConfig`."""

    policy: Policy

    def setup(self) -> None:
        """Build the policy that the learner of the same seed begins with."""
        config: AgentConfig = self.model_config["agent"]
        schema = schema_of(self.observation_space, self.action_space)
        self.policy = make_policy(config, schema, seed=self.model_config["seed"])
        self.networks = self.policy.networks

    def set_state(self, state: dict[str, Any]) -> None:
        """Act with the networks of a `DIPOLELearner.module_state`, where those that only learn are left."""
        given = {name.removeprefix("networks."): torch.tensor(array) for name, array in state.items()}
        given = dict(self.networks.follow(given))
        own = self.networks.state_dict()
        check_matches(own, {name: tensor for name, tensor in given.items() if name in own}, "module state")
        copy_into(own, given)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the policy's actions for a batch of observations (B, O)."""
        return {Columns.ACTIONS: self.policy.sample_actions(batch[Columns.OBS])}

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return actions as the rollouts take them: drawn, also where the policy has a mode."""
        return {Columns.ACTIONS: self.policy.sample_actions(batch[Columns.OBS], explore=True)}
