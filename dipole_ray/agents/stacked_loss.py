"""The loss of a captured step: one agent's own, or those of many agents of one shape at once, by `torch.vmap`.

Networks, observations' statistics, batches and draws of many lie in stacks. A member draws from its own generator what
it would draw alone, in the same order.

Shapes: S members, B batch rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from dipole_ray.agents import state
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.branches import Branches
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.networks import STACKED, StackedMLP
from dipole_ray.errors import ConfigError

IN_LOSSES = ("beta", "shift", "expectile")
MAY_DIFFER = (*IN_LOSSES, "learning_rate", "omega", "num_candidates")
"""Settings that each member may have its own value of: factors of losses and steps, and how to act."""


@torch.no_grad()
def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Make tensors of one shape views of one stack (S, ...), which is returned; they keep their values."""
    stacked = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, stacked, strict=True):
        tensor.data = view
    return stacked


def require_alike(configs: Sequence[AgentConfig]) -> None:
    """Raise ConfigError where agents differ in more than `MAY_DIFFER`, or are of other networks than stacked MLPs."""
    backbone, adapters = (getattr(configs[0], name, None) for name in ("backbone", "adapters"))
    if backbone is not None and adapters is not None and (backbone.network != "mlp" or adapters.rank):
        found = f"agent.backbone.network={backbone.network} and agent.adapters.rank={adapters.rank}"
        raise ConfigError(f"{found}: only MLPs without adapters are stacked; train these runs one by one")
    for config in configs[1:]:
        for name in (field.name for field in fields(configs[0])):
            left, right = getattr(configs[0], name), getattr(config, name, None)
            if left != right and name not in MAY_DIFFER:
                may = ", ".join(MAY_DIFFER)
                raise ConfigError(
                    f"agent.{name}: {left!r} and {right!r} in one stack, whose members may differ in {may}"
                )


class LossOfOne:
    """An agent's own loss, as `StackedLoss` returns it for several; see there."""

    def __init__(self, agent: Agent, branches: Branches) -> None:
        self._agent, self._branches, self.trained = agent, branches, agent._parameters
        self.statistics = {name: value.view(1) for name, value in agent._statistics.items()}

    def __call__(
        self, batch: Mapping[str, Tensor], diagnostics: bool
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return loss, metrics and the running statistics that change, (1,); the batch's columns are (1, B, ...)."""
        agent, eager = self._agent, self._agent.branches
        agent.branches = self._branches
        try:
            total, metrics, statistics = agent._loss({name: column[0] for name, column in batch.items()}, diagnostics)
        finally:
            agent.branches = eager
        changed = {name: value.view(1) for name, value in statistics.items() if value is not agent._statistics[name]}
        return total.view(1), {name: value.view(1) for name, value in metrics.items()}, changed


class StackedLoss:
    """The losses of agents that may also be used by themselves.

    Attributes:
        trained: What the optimizers move, (S, ...); leaves that require a gradient.
        statistics: Running statistics by name, (S,).
    """

    def __init__(self, agents: Sequence[Agent], parameters: Tensor, targets: Tensor, branches: Branches) -> None:
        """Take agents of `require_alike` settings whose trained parameters and targets are flat, (S, P) and (S, T)."""
        self._agents, self._first, self._branches = agents, agents[0], branches
        self.trained = [each.requires_grad_() for each in state.views(parameters.detach(), self._first._parameters)]
        self._tensors = dict(zip(self._first.networks.trained_parameters(), self.trained, strict=True))
        names = (name for name, _ in self._first.networks.named_parameters() if name.startswith("target_critic."))
        self._tensors |= zip(names, state.views(targets, self._first._target_parameters), strict=True)
        rest = [{**dict(each.networks.named_parameters()), **dict(each.networks.named_buffers())} for each in agents]
        self._tensors |= {name: stack([each[name] for each in rest]) for name in rest[0] if name not in self._tensors}
        kept = [agent._statistics for agent in agents]
        self.statistics = {name: stack([each[name] for each in kept]) for name in kept[0]}
        values = {name: [getattr(agent.config, name, None) for agent in agents] for name in IN_LOSSES}
        self._settings = {
            name: torch.tensor(each, dtype=torch.float64, device=self._first.device)
            for name, each in values.items()
            if len(set(each)) > 1
        }
        self._module = _Within(self._first, self._compute)
        self._draws: list[tuple[str, tuple[int, ...]]] | None = None

    def __call__(
        self, batch: Mapping[str, Tensor], diagnostics: bool
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the members' losses (S,), metrics (S,) and the running statistics that change, (S,).

        The batch's columns are (S, B, ...).
        """
        if self._draws is None:
            self._draws = self._note_draws({name: column[0] for name, column in batch.items()})
        drawn = [torch.stack([agent._draw(kind, shape) for agent in self._agents]) for kind, shape in self._draws]
        token = STACKED.set(True)
        try:
            found: Any = torch.vmap(self._of_one, in_dims=(0, 0, 0, 0, 0, None))(
                self._tensors, dict(batch), self.statistics, self._settings, drawn, diagnostics
            )
        finally:
            STACKED.reset(token)
            self._module.note_parameters()
        total, metrics, statistics = found
        return total, metrics, statistics

    def _of_one(
        self,
        tensors: dict[str, Tensor],
        batch: dict[str, Tensor],
        statistics: dict[str, Tensor],
        settings: dict[str, Tensor],
        drawn: list[Tensor],
        diagnostics: bool,
    ) -> Any:
        """Return what `__call__` does, of the member whose tensors these are."""
        named = {f"networks.{name}": tensor for name, tensor in tensors.items()}
        return torch.func.functional_call(
            self._module, named, (batch, statistics, settings, drawn, diagnostics), strict=True
        )

    def _compute(
        self,
        batch: dict[str, Tensor],
        statistics: dict[str, Tensor],
        settings: dict[str, Tensor],
        drawn: list[Tensor],
        diagnostics: bool,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the first agent's loss, with all that is a member's own in its place."""
        agent, policy, left = self._first, self._first.policy, iter(drawn)
        own: dict[str, Any] = {"config": agent.config, "branches": agent.branches, "_statistics": agent._statistics}
        acting = policy.networks
        agent.config = cast(Any, _Settings(agent.config, settings))
        agent.branches, agent._statistics, policy.networks = self._branches, statistics, agent.networks
        agent._draw = lambda kind, shape: next(left)  # type: ignore[method-assign]
        try:
            total, metrics, found = agent._loss(batch, diagnostics)
        finally:
            del agent._draw
            policy.networks = acting
            for name, value in own.items():
                setattr(agent, name, value)
        return total, metrics, {name: value for name, value in found.items() if value is not statistics[name]}

    def _note_draws(self, batch: dict[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
        """Return what a step of one agent draws, in order; its generator stays where it is."""
        agent, noted, before = self._first, [], self._first.generator.get_state()
        draw = agent._draw

        def note(kind: str, shape: tuple[int, ...]) -> Tensor:
            noted.append((kind, shape))
            return draw(kind, shape)

        agent._draw = note  # type: ignore[method-assign]
        try:
            with torch.no_grad():
                agent._loss(batch, diagnostics=True)
        finally:
            del agent._draw
            agent.generator.set_state(before)
        return noted


class _Within(nn.Module):
    """Computes with other tensors in the place of an agent's, as `torch.func.functional_call` puts them there."""

    def __init__(self, agent: Agent, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.networks, self._compute = agent.networks, compute

    def note_parameters(self) -> None:
        """Let the networks compute with the parameters that they have now."""
        for module in self.modules():
            if isinstance(module, StackedMLP):
                module.note_parameters()

    def forward(self, *arguments: Any) -> Any:
        """Return what the function does with the tensors of now."""
        self.note_parameters()
        return self._compute(*arguments)


class _Settings:
    """An agent's config in which some values are tensors."""

    def __init__(self, config: AgentConfig, values: Mapping[str, Tensor]) -> None:
        self._config, self._values = config, values

    def __getattr__(self, name: str) -> Any:
        return self._values[name] if name in self._values else getattr(self._config, name)
