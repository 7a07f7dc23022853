"""K updates of S agents in one call, each step all of theirs at once: seeds, or a grid of settings, in one process.

The agents stay ordinary ones, with their own batches, draws, counters and state dicts, which continue in any other
way of updating. None sees another's numbers: a step that is not finite is skipped by its own agent alone. Results are
those of `Agent.update` to rounding. On a GPU the step is one CUDA graph, as in `captured`; elsewhere it runs op by op,
and compiled updates of one agent after the other are faster.

Shapes: S members, K updates a call, B batch rows, M metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dipole_ray.agents.agent import Agent, Batch
from dipole_ray.agents.branches import Branches
from dipole_ray.agents.graphed import GraphedUpdates
from dipole_ray.agents.rows import RowLayout
from dipole_ray.agents.stacked_loss import StackedLoss, require_alike, stack
from dipole_ray.agents.steps import Steps
from dipole_ray.errors import ConfigError, NonFiniteError


class StackedUpdates(GraphedUpdates):
    """Takes gradient steps of S agents, whose own methods may update, save or restore them between two calls.

    Attributes:
        agents: Each must be alone (`DataParallel.size` 1).
        max_updates: The largest K of a call.
    """

    def __init__(
        self, agents: Sequence[Agent], batch_size: int, max_updates: int, *, side_by_side: bool = True
    ) -> None:
        """Make the agents' tensors views of stacks, and capture the step; observations must have been fitted.

        Args:
            agents: What learns; one config but for the settings in `stacked_loss.MAY_DIFFER`.
            batch_size: B.
            max_updates: The largest K of a call.
            side_by_side: Whether a GPU computes independent branches of the loss at once.
        """
        require_alike([agent.config for agent in agents])
        super().__init__(agents, (len(agents),), max_updates)
        self.agents, self._batch_size = list(agents), batch_size
        first, self._count = agents[0], len(agents)
        self._branches = Branches(side_by_side and self._device.type == "cuda")
        self._loss = StackedLoss(self.agents, self._branches)
        for agent in agents:  # compiled loops would go on with the tensors that they have made flat
            optimizer = agent.optimizer
            agent.steps = Steps(agent.config, optimizer, agent._critic_parameters, agent._target_parameters)
        # By member, each parameter's gradient, moments and number of steps, as Adam's own function takes them.
        self._gradients = [torch.zeros_like(each, requires_grad=False) for each in self._loss.trained.values()]
        self._gradients_of = [[each[s] for each in self._gradients] for s in range(self._count)]
        states = [[agent.optimizer.state[each] for each in agent._parameters] for agent in agents]
        self._steps = stack([each["step"] for own in states for each in own]).view(self._count, -1)
        self._means_of, self._squares_of = (
            [[each[kind] for each in own] for own in states] for kind in ("exp_avg", "exp_avg_sq")
        )
        self._layout = RowLayout(first.sizes)
        shape = (self._count, max_updates * batch_size, self._layout.width)
        self._table = torch.zeros(shape, device=self._device)
        self._prepare()

    def update_on(self, batches: Sequence[Batch]) -> list[dict[str, float] | NonFiniteError]:
        """Take one step on each consecutive batch of every member's columns, whose leading dimension is K B.

        Returns:
            For each member its metrics, as `CapturedUpdates.update_on`; or the error of ten updates in a row that were
            not finite, after which none of its updates was applied.
        """
        lengths = {len(columns["rewards"]) for columns in batches}
        if len(batches) != self._count or len(lengths) != 1:
            found = f"{len(batches)} batches of {sorted(lengths)} rows for {self._count} members"
            raise ConfigError(f"stacked updates: {found}; give each member a batch of its own, of one length")
        for table, agent, columns in zip(self._table, self.agents, batches, strict=True):
            self._layout.write(table, agent._read_batch(columns))
        rows, last = self._take(lengths.pop() // self._batch_size)
        return [self._read(s, rows[..., s], last[:, s]) for s in range(self._count)]

    def _update(self, diagnostics: bool) -> dict[str, Tensor]:
        """Do what `Agent.update` does for every member, without asking the device; `skipped` is 0 or 1, (S,)."""
        rows = self._table.view(self._count, self.max_updates, self._batch_size, -1)
        batch = self._layout.read(rows.index_select(1, self._position)[:, 0])
        total, metrics, statistics = self._loss(batch, diagnostics)
        # A member's loss reaches its own part of each stack alone, so the sum's gradient is every member's own.
        trained = list(self._loss.trained.values())
        gradients = torch.autograd.grad(total.sum(), trained, materialize_grads=True)
        self._branches.end()
        with torch.no_grad():
            torch._foreach_copy_(self._gradients, gradients)
            norms = [torch.linalg.vector_norm(each.view(self._count, -1), dim=1) for each in self._gradients]
            grad_norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
            skipped = self._guard(sum(statistics.values(), total.detach() + grad_norm))
            self._apply(skipped)
            for name, value in statistics.items():
                kept = self._loss.statistics[name]
                torch.where(skipped.bool(), kept, value, out=kept)
        return {**metrics, "system/grad_norm": grad_norm, "skipped": skipped}

    def _apply(self, skipped: Tensor) -> None:
        """Take every member's step of Adam and of its target networks, unless `skipped`, (S,), is 1."""
        applied, config = 1.0 - skipped, self.agents[0].config
        self._steps.add_(applied.unsqueeze(1))
        if config.target_update == "before":
            self._move_targets(applied * config.tau)
        for s, agent in enumerate(self.agents):
            group = agent.optimizer.param_groups[0]
            torch._fused_adam_(
                list(agent._parameters),
                self._gradients_of[s],
                self._means_of[s],
                self._squares_of[s],
                [],
                list(self._steps[s]),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                found_inf=skipped[s],
            )
        if config.target_update == "after":
            self._move_targets(applied * config.tau)

    def _move_targets(self, rate: Tensor) -> None:
        """Move every member's target critics towards its critics, by a rate of its own, (S,)."""
        for name, target in self._loss.targets.items():
            critic = self._loss.trained[name.removeprefix("target_")].detach()
            target.lerp_(critic, rate.view(-1, *[1] * (target.dim() - 1)))

    def _read(self, s: int, rows: Tensor, last: Tensor) -> dict[str, float] | NonFiniteError:
        """Return a member's metrics, or its error, from its own of every step, (K, M), and the last diagnostics."""
        agent = self.agents[s]
        for k, is_skipped in enumerate(self._skips(rows)):
            agent.learner_steps += 1
            if not is_skipped:
                agent.consecutive_skips = 0
                continue
            start = k * self._batch_size
            try:
                agent._skip(self._layout.read(self._table[s, start : start + self._batch_size]))
            except NonFiniteError as error:
                return error
        return self._summary(agent, rows, last)
