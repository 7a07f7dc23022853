"""K updates of S agents in one call, each step all of theirs at once: seeds, or a grid of settings, in one process.

The agents stay ordinary ones, with their own batches, draws, counters and state dicts, which continue in any other
way of updating. None sees another's numbers: a step that is not finite is skipped by its own agent alone. Results are
those of `Agent.update` to rounding. On a GPU the step is one CUDA graph, as in `captured`; elsewhere it runs op by op,
and compiled updates of one agent after the other are faster.

Shapes: S members, K updates a call, B batch rows, M metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from dipole_ray.agents.agent import MAX_CONSECUTIVE_SKIPS, Agent, Batch
from dipole_ray.agents.branches import Branches
from dipole_ray.agents.captured import WARM_UP_STEPS, beside_the_current_stream
from dipole_ray.agents.rows import RowLayout
from dipole_ray.agents.stacked_loss import StackedLoss, require_alike, stack
from dipole_ray.agents.steps import Steps
from dipole_ray.errors import ConfigError, NonFiniteError


class StackedUpdates:
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
        self.agents, self.max_updates, self._batch_size = list(agents), max_updates, batch_size
        first, self._count = agents[0], len(agents)
        self._device = first.device
        on_cuda = self._device.type == "cuda"
        self._branches = Branches(side_by_side and on_cuda)
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
        self._position = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._consecutive_skips = torch.zeros(self._count, device=self._device)
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
        updates = lengths.pop() // self._batch_size
        self._position.zero_()
        self._consecutive_skips.copy_(torch.tensor([float(agent.consecutive_skips) for agent in self.agents]))
        for k in range(updates):
            diagnostics = k == updates - 1
            if self._graphs:
                self._graphs[diagnostics].replay()
            else:
                self._step(diagnostics)
        return self._read(updates)

    def _prepare(self) -> None:
        """Learn the names of the metrics, make their buffers, and capture a step with diagnostics and one without."""
        noise = [agent.generator.get_state() for agent in self.agents]
        self._consecutive_skips.fill_(MAX_CONSECUTIVE_SKIPS)  # the guard is shut: nothing learns from these steps
        on_cuda = self._device.type == "cuda"
        with beside_the_current_stream(self._device) if on_cuda else nullcontext():
            for _ in range(WARM_UP_STEPS if on_cuda else 1):
                plain, full = self._update(diagnostics=False), self._update(diagnostics=True)
        self._names, self._diagnostic_names = list(plain), list(full)
        self._metrics = torch.zeros(self.max_updates, len(plain), self._count, device=self._device)
        self._diagnostics = torch.zeros(len(full), self._count, device=self._device)
        self._graphs = [self._capture(diagnostics) for diagnostics in (False, True)] if on_cuda else []
        for agent, before in zip(self.agents, noise, strict=True):
            agent.generator.set_state(before)

    def _capture(self, diagnostics: bool) -> torch.cuda.CUDAGraph:
        """Return the graph of a step, which draws from the agents' generators wherever they stand at its replay."""
        graph = torch.cuda.CUDAGraph()
        for agent in self.agents:
            graph.register_generator_state(agent.generator)
        with torch.cuda.graph(graph):
            self._step(diagnostics)
        return graph

    def _step(self, diagnostics: bool) -> None:
        """Take the next step of the call, and write down its metrics."""
        metrics = self._update(diagnostics)
        row = torch.stack([metrics[name] for name in self._names])
        self._metrics.index_copy_(0, self._position, row.unsqueeze(0))
        if diagnostics:
            torch.stack(list(metrics.values()), out=self._diagnostics)
        self._position += 1

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

    def _guard(self, check: Tensor) -> Tensor:
        """Return whether each member skips the step, 0 or 1, and count its skips in a row; of `check`, (S,)."""
        # x - x is 0, or NaN where x is not finite.
        is_skipped = (check - check).ne(0) | (self._consecutive_skips >= MAX_CONSECUTIVE_SKIPS)
        skipped = is_skipped.to(check.dtype)
        self._consecutive_skips.add_(1).mul_(skipped)
        return skipped

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

    def _read(self, updates: int) -> list[dict[str, float] | NonFiniteError]:
        """Wait for the call's steps, count them, and return what `update_on` does."""
        size = len(self._diagnostic_names)
        found = torch.cat((self._metrics[:updates].flatten(0, 1), self._diagnostics)).cpu()
        rows, last = found[:-size].view(updates, -1, self._count), found[-size:]
        return [self._read_of(s, rows[..., s], last[:, s]) for s in range(self._count)]

    def _read_of(self, s: int, rows: Tensor, last: Tensor) -> dict[str, float] | NonFiniteError:
        """Return a member's metrics, or its error, from its own of every step, (K, M), and the last diagnostics."""
        agent = self.agents[s]
        for k, skipped in enumerate(rows[:, self._names.index("skipped")].tolist()):
            agent.learner_steps += 1
            if not skipped:
                agent.consecutive_skips = 0
                continue
            start = k * self._batch_size
            try:
                agent._skip(self._layout.read(self._table[s, start : start + self._batch_size]))
            except NonFiniteError as error:
                return error
        metrics = dict(zip(self._diagnostic_names, last.tolist(), strict=True))
        means = dict(zip(self._names, rows.mean(dim=0).tolist(), strict=True))
        metrics |= {name: value for name, value in means.items() if "/loss" in name}
        del metrics["skipped"]
        return metrics | {"system/skipped_updates": float(agent.skipped_updates)}
