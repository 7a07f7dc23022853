"""The agent: dichotomous flow policies on a shared value learner, and the methods beside them.

Shapes: B batch rows, N candidates, O observation dim, A action dim, E critics, F vector fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dipole_ray.agents import flow, losses
from dipole_ray.agents.agent import Losses
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.metrics import learning_metrics
from dipole_ray.agents.networks import AgentNetworks, VelocityFields
from dipole_ray.agents.value import ValueAgent, ValueNetworks

__all__ = ["AgentConfig", "DipoleAgent"]


class FlowNetworks(ValueNetworks):
    """Critics, V(s), and F vector fields."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        *,
        num_critics: int,
        num_fields: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(observation_dim, action_dim, hidden_dims, num_critics=num_critics, generator=generator)
        self.fields = VelocityFields(num_fields, observation_dim, action_dim, hidden_dims, generator)


class DipoleAgent(ValueAgent):
    """Weighted flow matching of one or two fields, combined by omega: the family of `config.weight_scheme`."""

    algorithm: ClassVar[str] = "dipole"
    networks_class: ClassVar[type[AgentNetworks]] = FlowNetworks
    networks: FlowNetworks

    def _make_networks(self, generator: torch.Generator, **sizes: int) -> AgentNetworks:
        """Return networks with one field for each name in `config.fields`."""
        return super()._make_networks(generator, num_fields=len(self.config.fields), **sizes)

    def _losses(self, batch: dict[str, Tensor], diagnostics: bool) -> Losses:
        """Return the losses of critics, value and fields, the metrics, and the new running statistics."""
        config, networks = self.config, self.networks
        q_target, q_data = self._critic_targets(batch)
        value_loss, v, residual = self._value_loss(batch["observations"], q_data)
        q = networks.critic(torch.cat((batch["observations"], batch["actions"]), dim=-1)).squeeze(-1)
        critic_loss = losses.temporal_difference_loss(q, q_target)

        # Policy fields, all on the same noise and time.
        advantage = residual.detach()
        scaled, statistics = self._normalized_advantage(advantage)
        weights = self._field_weights(scaled, batch["is_offline"])
        noise, x, t = self._path(batch["actions"])
        velocities = networks.fields(batch["observations"], x, t)
        target = flow.path_velocity(noise, batch["actions"])
        field_losses = losses.flow_matching_losses(velocities, target, weights)

        terms = {"critic": critic_loss, "value": value_loss, "actor": field_losses.sum()}
        metrics = {"critic/loss": critic_loss.detach(), "value/loss": value_loss.detach()}
        for name, loss in zip(config.fields, field_losses.detach(), strict=True):
            metrics[f"actor/loss_{name}"] = loss
        if diagnostics:
            metrics |= learning_metrics(
                *map(self.data_parallel.all_gather, (q.detach(), q_target, v.detach(), advantage, weights[0]))
            )
        return terms, metrics, statistics

    def _field_weights(self, advantage: Tensor, is_offline: Tensor) -> Tensor:
        """Return the row weights of every field, (F, B): the scheme's, and 1 on offline rows for an added BC field."""
        config = self.config
        ones = torch.ones_like(advantage)
        if config.weight_scheme == "dipole":
            scheme: tuple[Tensor, ...] = losses.dichotomous_weights(
                advantage, config.beta, config.shift, check_finite=False
            )
        elif config.weight_scheme == "exp":
            scheme = (losses.exponential_weight(advantage, config.beta, config.exp_weight_max),)
        elif config.weight_scheme == "cfgrl":
            scheme = losses.optimality_weights(advantage)
        else:
            scheme = (ones,)
        missing = len(config.fields) - len(scheme)
        return torch.stack((*scheme, *[is_offline] * missing))

    def _sample(self, observations: Tensor, noise: Tensor, omega: float, policy: str) -> Tensor:
        """Return the actions (B, N, A) that `noise` (B, N, A) flows to; evaluates only the fields that matter."""
        fields = self.networks.fields
        if policy == "bc":
            index = self.config.fields.index("bc")
            chosen = slice(index, index + 1)
        else:
            chosen = {0.0: slice(0, 1), -1.0: slice(1, 2)}.get(float(omega), slice(0, 2))
        embedded = fields.embed(observations, chosen)

        def velocity(x: Tensor, t: float) -> Tensor:
            velocities = fields.velocity(embedded, x, t, chosen)
            if len(velocities) == 1:
                return velocities[0]
            return flow.guided_velocity(velocities[0], velocities[1], omega)

        return flow.sample(velocity, noise, self.config.denoise_steps)
