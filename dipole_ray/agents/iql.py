"""Implicit Q-learning (Kostrikov et al., ICLR 2022): a Gaussian policy by exp-weighted regression on the advantage.

Shapes: B batch rows, N candidates, O observation dim, A action dim, E critics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from dipole_ray.agents import losses
from dipole_ray.agents.agent import Losses
from dipole_ray.agents.config import BOOTSTRAP, CEILING, DIVISOR, AgentConfig
from dipole_ray.agents.encoders import Seen, seen_by
from dipole_ray.agents.fields import MakeFields
from dipole_ray.agents.networks import Sizes, StackedMLP
from dipole_ray.agents.policy import Policy
from dipole_ray.agents.roles import Roles
from dipole_ray.agents.value import ValueAgent

LOG_STD_RANGE = (-5.0, 2.0)
LAST_KERNEL_SCALE = 0.1
"""The mean's last kernel begins at a tenth of the usual bound (a hundredth of the variance), near zero everywhere."""


@dataclass(frozen=True, kw_only=True)
class IqlConfig(AgentConfig):
    """IQL's settings beside the common ones."""

    algorithm: str = "iql"
    """`iql`."""
    exp_weight_max: Annotated[float, CEILING] = 100.0
    """As in `DipoleConfig`."""
    bootstrap: Annotated[str, BOOTSTRAP] = "policy"
    """What Q bootstraps from: it must say `value`, V(s')."""
    advantage_normalization: Annotated[str, DIVISOR] = "none"
    """As in `DipoleConfig`."""

    def __post_init__(self) -> None:
        """Reject values out of range, and another bootstrap than IQL's."""
        super().__post_init__()
        self.require("bootstrap", "value", "algorithm 'iql' leaves no choice there", "agent.algorithm=dipole")


class GaussianPolicy(Policy):
    """A Gaussian whose mean depends on the state and whose deviation does not."""

    roles: ClassVar[tuple[str, ...]] = ("critic", "policy", "policy_log_std")
    has_mode: ClassVar[bool] = True

    @staticmethod
    def draw_actor(config: IqlConfig, make_fields: MakeFields, sizes: Sizes, generator: torch.Generator) -> Roles:
        """Return the mean, near zero everywhere, and a deviation of 1."""
        dims = (sizes.observation_dim, *sizes.hidden_dims, sizes.action_dim)
        mean = StackedMLP(1, dims, layer_norm=False, generator=generator)
        with torch.no_grad():
            mean.kernels[-1].mul_(LAST_KERNEL_SCALE)
        return {"policy": mean, "policy_log_std": nn.Parameter(torch.zeros(1, sizes.action_dim))}

    def from_noise(
        self, observations: Seen, noise: Tensor, omega: float | Tensor, policy: str, explore: bool = False
    ) -> Tensor:
        """Return the actions (B, N, A) at mean + deviation * noise, clipped to the action box."""
        mean, log_std = self.gaussian(observations)
        return (mean.unsqueeze(1) + log_std.exp() * noise).clamp(-1.0, 1.0)

    def gaussian(self, observations: Seen) -> tuple[Tensor, Tensor]:
        """Return mean (B, A) and log deviation (1, A)."""
        mean = self.networks.policy(seen_by("policy", observations))[0]
        return mean, self.networks.policy_log_std.clamp(*LOG_STD_RANGE)


class IqlAgent(ValueAgent):
    """IQL of FQL's code base, but for the deviation of its Gaussian.

    That is learned, as by Kostrikov et al. (whose mean goes through a tanh; this one is clipped when acting). FQL's
    code base holds it at 1, which makes the policy's loss a weighted squared error.

    V       expectile regression on min_i Qbar_i(s, a)
    Q       r + discount mask V(s')
    policy  -min(exp(beta A), ceiling) log N(a; mean(s), deviation), A = min_i Q_i - V
    act     the mean clipped to the action box; drawn while exploring, and where there are candidates to choose from
    """

    algorithm: ClassVar[str] = "iql"
    config: IqlConfig
    policy_class: ClassVar[type[Policy]] = GaussianPolicy
    policy: GaussianPolicy

    def _losses(self, batch: Mapping[str, Any], diagnostics: bool) -> Losses:
        config, observations, actions = self.config, batch["observations"], batch["actions"]
        q_target, q_data = self._critic_targets(batch)
        v = self._values(seen_by("value", observations))
        value_loss = self._value_loss(v, q_data)
        q = self._estimates(seen_by("critic", observations), actions)

        # The online critics, as in FQL's code base; the flow policies take the targets.
        advantage = self._advantage(q, v)
        scaled, statistics = self._normalized_advantage(advantage)
        weight = losses.exponential_weight(scaled, config.beta, config.exp_weight_max)
        mean, log_std = self.policy.gaussian(observations)
        likelihood = losses.gaussian_log_likelihood(actions, mean, log_std)

        critic_loss, actor_loss = losses.temporal_difference_loss(q, q_target), -(weight * likelihood).mean()
        terms = {"critic": critic_loss, "value": value_loss, "actor": actor_loss}
        metrics = {f"{name}/loss": loss.detach() for name, loss in terms.items()}
        if diagnostics:
            metrics |= self._critic_metrics(q, q_target) | self._value_metrics(v)
            metrics |= self._advantage_metrics(advantage, weight)
            metrics["actor/std_mean"] = log_std.detach().exp().mean()
        return terms, metrics, statistics
