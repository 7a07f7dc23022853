"""The paper's update written the plain way: one torch module and one Adam a network, loops over members.

It is what `learner_speed.py` measures the agent against, so it is kept simple but not slow on purpose:
it skips the negative field when it samples the TD target and computes no metrics beyond the losses.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.agents.networks import StackedMLP


def mlp(input_dim: int, hidden_dims: Iterable[int], output_dim: int, layer_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for hidden in hidden_dims:
        layers += [nn.Linear(input_dim, hidden), nn.GELU(approximate="tanh")]
        if layer_norm:
            layers.append(nn.LayerNorm(hidden, eps=1e-6))
        input_dim = hidden
    return nn.Sequential(*layers, nn.Linear(input_dim, output_dim))


def copy_member(stacked: StackedMLP, member: int, network: nn.Sequential) -> None:
    """Give a plain network the weights of one member of a stack."""
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    norms = [layer for layer in network if isinstance(layer, nn.LayerNorm)]
    with torch.no_grad():
        for linear, kernel, bias in zip(linears, stacked.kernels, stacked.biases, strict=True):
            linear.weight.copy_(kernel[member].T)
            linear.bias.copy_(bias[member, 0])
        for norm, scale, shift in zip(norms, stacked.norm_scales, stacked.norm_shifts, strict=True):
            norm.weight.copy_(scale[member, 0])
            norm.bias.copy_(shift[member, 0])


class PlainLearner:
    """DIPOLE with the preset `paper` or `small`'s value bootstrap, weights copied from an agent to compare with."""

    def __init__(self, agent: DipoleAgent) -> None:
        config, observation_dim, action_dim = agent.config, agent.sizes.observation_dim, agent.sizes.action_dim
        assert config.weight_scheme == "dipole" and config.num_critics == 2 and not config.train_bc
        self.config: AgentConfig = config
        self.action_dim = action_dim
        self.device = agent.device
        critic_dim, field_dim = observation_dim + action_dim, observation_dim + action_dim + 1

        def critic() -> nn.Sequential:
            return mlp(critic_dim, config.hidden_dims, 1, layer_norm=True)

        self.critics, self.targets = [critic(), critic()], [critic(), critic()]
        self.value = mlp(observation_dim, config.hidden_dims, 1, layer_norm=True)
        self.positive = mlp(field_dim, config.hidden_dims, action_dim, layer_norm=False)
        self.negative = mlp(field_dim, config.hidden_dims, action_dim, layer_norm=False)
        for member in range(2):
            copy_member(agent.networks.critic, member, self.critics[member])
            copy_member(agent.networks.target_critic, member, self.targets[member])
        copy_member(agent.networks.value, 0, self.value)
        copy_member(agent.networks.fields.mlp, 0, self.positive)
        copy_member(agent.networks.fields.mlp, 1, self.negative)
        for network in (*self.critics, *self.targets, self.value, self.positive, self.negative):
            network.to(self.device)
        trained = (*self.critics, self.value, self.positive, self.negative)
        self.optimizers = [torch.optim.Adam(network.parameters(), lr=config.learning_rate) for network in trained]
        self.running_variance: float | Tensor = 0.0
        self.running_mass = 0.0

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, float | Tensor]:
        """Take one step, drawing noise in the agent's order; return the losses under the agent's names."""
        config, rows = self.config, len(batch["rewards"])
        pairs = torch.cat((batch["observations"], batch["actions"]), dim=1)
        with torch.no_grad():
            if config.bootstrap == "policy":
                bootstrap = self.policy_bootstrap(batch["next_observations"], generator)
            else:
                bootstrap = self.value(batch["next_observations"])[:, 0]
            q_target = batch["rewards"] + config.discount * batch["masks"] * bootstrap
            q_data = torch.min(*[target(pairs)[:, 0] for target in self.targets])

        v = self.value(batch["observations"])[:, 0]
        residual = q_data - v
        expectile = torch.where(residual < 0, 1 - config.expectile, config.expectile)
        value_loss = (expectile * residual.square()).mean()
        critic_loss = sum((critic(pairs)[:, 0] - q_target).square().mean() for critic in self.critics) / 2

        weight_pos, weight_neg = self.weights(residual.detach())
        noise = torch.randn(rows, self.action_dim, generator=generator, device=self.device)
        t = torch.rand(rows, 1, generator=generator, device=self.device)
        x, target = (1 - t) * noise + t * batch["actions"], batch["actions"] - noise
        inputs = torch.cat((batch["observations"], x, t), dim=1)
        positive_loss = (weight_pos * (self.positive(inputs) - target).square().mean(dim=1)).mean()
        negative_loss = (weight_neg * (self.negative(inputs) - target).square().mean(dim=1)).mean()

        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for loss in (value_loss, critic_loss, positive_loss, negative_loss):
            loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for critic, target_critic in zip(self.critics, self.targets, strict=True):
                for online, slow in zip(critic.parameters(), target_critic.parameters(), strict=True):
                    slow.mul_(1 - config.tau).add_(online, alpha=config.tau)
        return {
            "critic/loss": critic_loss.detach(),
            "value/loss": value_loss.detach(),
            "actor/loss_positive": positive_loss.detach(),
            "actor/loss_negative": negative_loss.detach(),
        }

    def policy_bootstrap(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean target critic at an action of pi+ for each observation."""
        steps, rows = self.config.denoise_steps, len(observations)
        x = torch.randn(rows, 1, self.action_dim, generator=generator, device=self.device)[:, 0]
        for k in range(steps):
            t = torch.full((rows, 1), k / steps, device=self.device)
            x = x + self.positive(torch.cat((observations, x, t), dim=1)) / steps
        pairs = torch.cat((observations, x.clamp(-1, 1)), dim=1)
        estimates = torch.stack([target(pairs)[:, 0] for target in self.targets])
        return estimates.mean(dim=0)

    def weights(self, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """Return both fields' weights, the advantage over its running deviation where the config says so."""
        if self.config.advantage_normalization == "running_std":
            self.running_variance = 0.99 * self.running_variance + 0.01 * advantage.var(correction=0)
            self.running_mass = 0.99 * self.running_mass + 0.01
            advantage = advantage / ((self.running_variance / self.running_mass) ** 0.5 + 1e-6)
        x = self.config.beta * advantage + self.config.shift
        return torch.sigmoid(x), torch.sigmoid(-x)
