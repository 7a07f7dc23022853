"""Flow Q-learning (Park et al., ICML 2025): a one-step policy that climbs Q, held to a flow that clones the data.

Shapes: B batch rows, N candidates, O observation dim, A action dim, E critics.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from dipole_ray.agents import flow, losses
from dipole_ray.agents.agent import Agent, Losses
from dipole_ray.agents.config import ABOVE_ZERO, AGGREGATION, COUNT, SOLVER, AgentConfig, one_of
from dipole_ray.agents.encoders import Seen, seen_by
from dipole_ray.agents.fields import MakeFields
from dipole_ray.agents.networks import STACKED, Sizes, StackedMLP
from dipole_ray.agents.policy import Policy
from dipole_ray.agents.roles import Roles


@dataclass(frozen=True, kw_only=True)
class FqlConfig(AgentConfig):
    """FQL's settings beside the common ones."""

    algorithm: str = "fql"
    """`fql`."""
    alpha: Annotated[float, ABOVE_ZERO] = 10.0
    """How strongly `fql` holds its one-step policy to the cloned flow, > 0, against Q in units of the return.
    Published: 10 antmaze and antsoccer, 30 humanoidmaze, 300 cube and scene, 1000 puzzle; offline to online 30 on
    antsoccer and 100 on humanoidmaze-medium."""
    normalize_q_loss: bool = False
    """Of `fql`: divide Q in the policy's loss by its mean absolute value, so that alpha does not depend on the rewards'
    scale. Published: false."""
    train_bc: bool = False
    """Evaluate the cloned flow for comparison; it is trained in any case."""
    solver: Annotated[str, SOLVER] = "euler"
    """As in `DipoleConfig`, for the cloned flow."""
    target_candidates: Annotated[int, COUNT] = 1
    """As in `DipoleConfig`."""
    target_choice: Annotated[str, one_of("online", "target")] = "online"
    """As in `DipoleConfig`."""
    target_aggregation: Annotated[str, AGGREGATION] = "mean"
    """As in `DipoleConfig`."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The cloned flow's field."""
        return ("bc",)


class OneStepPolicy(Policy):
    """The one-step policy mu(s, z), and the field of the cloned flow that it is held to."""

    roles: ClassVar[tuple[str, ...]] = ("critic", "fields", "policy")

    @staticmethod
    def draw_actor(config: FqlConfig, make_fields: MakeFields, sizes: Sizes, generator: torch.Generator) -> Roles:
        """Return the field and the one-step policy."""
        fields = make_fields(config.fields, sizes, generator)
        dims = (sizes.pair_dim, *sizes.hidden_dims, sizes.action_dim)
        return {"fields": fields, "policy": StackedMLP(1, dims, layer_norm=False, generator=generator)}

    def from_noise(
        self, observations: Seen, noise: Tensor, omega: float | Tensor, policy: str, explore: bool = False
    ) -> Tensor:
        """Return the actions (B, N, A) of the one-step policy, or of the cloned flow."""
        if policy == "bc":
            return self.cloned(observations, noise)
        return self.one_step(observations, noise).clamp(-1.0, 1.0)

    def one_step(self, observations: Seen, noise: Tensor) -> Tensor:
        """Return mu(s, z), not yet clipped, (B, N, A)."""
        return self.networks.policy.at(seen_by("policy", observations), noise)[0]

    def cloned(self, observations: Seen, noise: Tensor) -> Tensor:
        """Return the actions (B, N, A) that the cloned flow carries `noise` to."""
        fields, states, config = self.networks.fields, seen_by("fields", observations), self.config
        return flow.generate(fields, states, noise, ["bc"], config.denoise_steps, solver=config.solver)


class FqlAgent(Agent):
    """FQL.

    Q       r + discount mask mean_i Qbar_i(s', a'), a' = mu(s', z') clipped to the action box
    flow    flow matching on the data's actions
    policy  alpha |mu(s, z) - flow(s, z)|^2 - mean_i Q_i(s, mu(s, z)), with mu clipped inside Q
    act     mu(s, z); with N candidates the best of N by the critics
    """

    algorithm: ClassVar[str] = "fql"
    config: FqlConfig
    policy_class: ClassVar[type[Policy]] = OneStepPolicy
    policy: OneStepPolicy

    def _losses(self, batch: Mapping[str, Any], diagnostics: bool) -> Losses:
        networks, observations, alpha = self.networks, batch["observations"], self.config.alpha
        q_target = self._critic_target(batch)
        states = seen_by("critic", observations)
        q = self._estimates(states, batch["actions"])

        x, t, target = self._path(batch["actions"])
        velocities = networks.fields(seen_by("fields", observations), x, t)
        flow_loss = losses.flow_matching_losses(velocities, target, torch.ones_like(q[:1]))[0]

        z = self._noise(len(x), 1)
        actions = self.policy.one_step(observations, z)
        with torch.no_grad():
            cloned = self.policy.cloned(observations, z)
        distillation_loss = losses.distillation_loss(actions, cloned)
        with frozen(networks.critic):
            q_policy = self._estimates(states.detach(), actions[:, 0].clamp(-1.0, 1.0)).mean(dim=0)
        scale = self.data_parallel.all_gather(q_policy.detach()).abs().mean() if self.config.normalize_q_loss else 1.0
        q_loss = -q_policy.mean() / scale

        critic_loss, policy_loss = losses.temporal_difference_loss(q, q_target), alpha * distillation_loss + q_loss
        terms = {"critic": critic_loss, "flow": flow_loss, "policy": policy_loss}
        metrics = {"critic/loss": critic_loss.detach()}
        for name, loss in {"bc": flow_loss, "distillation": distillation_loss, "q": q_loss}.items():
            metrics[f"actor/loss_{name}"] = loss.detach()
        if diagnostics:
            metrics |= self._critic_metrics(q, q_target)
        return terms, metrics, {}

    @torch.no_grad()
    def _critic_target(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the TD target (B,)."""
        no_pairs = batch["rewards"].new_empty(0, self.sizes.pair_dim)
        noise = self._noise(len(batch["rewards"]), self.config.target_candidates)
        bootstrap, _ = self._policy_bootstrap(batch["next_observations"], no_pairs, noise)
        return self._temporal_difference_target(batch, bootstrap)


@contextmanager
def frozen(module: StackedMLP) -> Iterator[None]:
    """Make what is computed in this block pass gradients through `module`, but leave none in its parameters."""
    is_stacked = STACKED.get()  # its parameters are then no leaves, of which torch could be told so
    if is_stacked:
        module.note_parameters(detached=True)
    else:
        module.requires_grad_(False)
    try:
        yield
    finally:
        if is_stacked:
            module.note_parameters()
        else:
            module.requires_grad_(True)
