"""K updates in one call without the host, of one agent or of many, each step all of theirs at once.

`Agent.update` waits for the device once a step, to learn whether the step is finite, and starts every kernel from
Python. Here the device decides: a step that is not finite is computed like any other, but Adam, the target networks
and the running statistics are told not to move. So the step holds no branch, and a GPU replays it as a CUDA graph.

The agents stay ordinary ones, with their own batches, draws, counters and state dicts, which continue in any other way
of updating: losses, draws and their order are those of `Agent.update`. Of many agents, which may be seeds or a grid of
settings, none sees another's numbers.

Shapes: S agents, K updates a call, B batch rows, N table rows, M metrics, P parameters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from dipole_ray.agents import state
from dipole_ray.agents.agent import MAX_CONSECUTIVE_SKIPS, Agent, Batch
from dipole_ray.agents.graphed import GraphedUpdates
from dipole_ray.agents.losses import SQUARES
from dipole_ray.agents.networks import PASSES
from dipole_ray.agents.rows import RowLayout
from dipole_ray.agents.stacked_loss import LossOfOne, StackedLoss, require_alike
from dipole_ray.agents.steps import Steps
from dipole_ray.errors import ConfigError, NonFiniteError

Outcome = dict[str, float] | NonFiniteError
"""An agent's metrics of a call, losses averaged over it and diagnostics of its last step; or the error of ten updates
in a row that were not finite, none of them applied nor any after them in the call. The tenth's batch is saved, and only
the generator has gone on to the end of the call."""


class CapturedUpdates(GraphedUpdates):
    """Takes gradient steps of agents, whose own methods may update, save or restore them between two calls.

    On CUDA a step is captured as a graph; elsewhere the same step runs op by op, for tests. The agents' parameters,
    targets and moments become views of one tensor each. A graph of torch's own kernels for one agent equals
    `Agent.update` bitwise, also with its branches side by side; fused kernels, and many agents, equal it to rounding.

    Attributes:
        agents: Each must be alone (`DataParallel.size` 1).
        max_updates: The largest K of a call.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        batch_size: int,
        max_updates: int,
        table_rows: int | None = None,
        *,
        fused: bool = True,
        side_by_side: bool = True,
    ) -> None:
        """Capture the step; the agents' observations must have been fitted, if their config asks for that.

        Args:
            agents: What learns; several have one config but for the settings in `stacked_loss.MAY_DIFFER`.
            batch_size: B.
            max_updates: The largest K of a call.
            table_rows: N, to hold a dataset on the device for each agent; by default the rows of one call.
            fused: Whether to compute with the kernels of `agents.fused` where Triton runs.
            side_by_side: Whether a GPU computes independent branches of the loss at once.
        """
        if len(agents) > 1:
            require_alike([agent.config for agent in agents])
        super().__init__(agents, max_updates, side_by_side)
        self.agents, self._batch_size, count = list(agents), batch_size, len(agents)
        self._parameters = state.flatten_each([agent._parameters for agent in agents])
        self._targets = state.flatten_each([agent._target_parameters for agent in agents], like=self._parameters)
        # From here on the critics, where there are some, lie together, as their targets do.
        critics = agents[0]._critic_parameters
        self._critics_start = critics[0].storage_offset() if critics else 0
        self._critics = self._parameters[:, self._critics_start :][:, : self._targets.shape[1]]
        moments = [[agent.optimizer.state[each] for each in agent._parameters] for agent in agents]
        self._moments = {
            kind: state.flatten_each([[each[kind] for each in own] for own in moments]) for kind in moments[0][0]
        }
        self._gradients = torch.zeros_like(self._parameters)
        self._gradient_of = state.views(self._gradients, agents[0]._parameters)
        rates = [agent.optimizer.param_groups[0]["lr"] for agent in agents]
        self._rates = torch.tensor(rates, dtype=torch.float64, device=self._device)
        for agent in agents:  # compiled loops would go on with the tensors that they have made flat
            optimizer = agent.optimizer
            agent.steps = Steps(agent.config, optimizer, agent._critic_parameters, agent._target_parameters)
        if count == 1:
            self._loss: LossOfOne | StackedLoss = LossOfOne(agents[0], self._branches)
        else:
            self._loss = StackedLoss(self.agents, self._parameters, self._targets, self._branches)
        self._ones = torch.ones(count, device=self._device)
        self._fused = _fused_kernels(self._device) if fused else None
        if self._fused is not None:
            self._passes = self._fused.FusedPasses(self._loss.trained, self._gradient_of, self._branches)

        self._layout, rows = RowLayout(agents[0]._columns), table_rows or batch_size * max_updates
        self._table = torch.zeros(count, rows, self._layout.width, device=self._device)
        self._index = torch.zeros(max_updates, count, batch_size, dtype=torch.int64, device=self._device)
        self._prepare()

    def load(self, batches: Sequence[Batch]) -> None:
        """Put each agent's rows, as `Agent.update` takes them, into its table, until the next call of this."""
        if len(batches) != len(self.agents):
            found = f"{len(batches)} batches for {len(self.agents)} agents"
            raise ConfigError(f"captured updates: {found}; give each agent one of its own")
        for table, agent, columns in zip(self._table, self.agents, batches, strict=True):
            self._layout.write(table, agent._read_batch(columns))

    def run(self, index: Tensor) -> list[Outcome]:
        """Take one step of each agent on each of `index`, (K, S, B), the rows of its batch in its table."""
        updates = len(index)
        self._index[:updates].copy_(index)
        rows, last = self._take(updates)
        return [self._read(s, rows[..., s], last[:, s]) for s in range(len(self.agents))]

    def update_on(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Take one step on each consecutive batch of every agent's columns, of one leading dimension K B; see `run`."""
        lengths = {len(columns["rewards"]) for columns in batches}
        if len(lengths) != 1:
            raise ConfigError(f"captured updates: batches of {sorted(lengths)} rows; give all agents equally many")
        self.load(batches)
        rows = torch.arange(lengths.pop(), device=self._device).view(-1, 1, self._batch_size)
        return self.run(rows.expand(-1, len(self.agents), -1))

    def policy_state(self, s: int = 0) -> dict[str, Tensor]:
        """Return what an agent's `Policy.policy_state` does, by one copy from the device."""
        agent = self.agents[s]
        host = torch.empty(self._parameters.shape[1], pin_memory=self._device.type == "cuda")
        host.copy_(self._parameters[s])
        trained = dict(zip(agent.networks.trained_parameters(), state.views(host, agent._parameters), strict=True))
        acting = agent.policy.networks.state_dict()
        # Clones, since a part of `host` would take the whole along wherever it is sent.
        return {name: trained.get(name, tensor).cpu().clone() for name, tensor in acting.items()}

    def _update(self, diagnostics: bool) -> dict[str, Tensor]:
        """Do what `Agent.update` does, without asking the device; `skipped` among the metrics is 0 or 1, (S,)."""
        with self._our_way():
            total, metrics, statistics = self._loss(self._batch(), diagnostics)
            # An agent's loss reaches its own parameters alone, so the sum's gradient is every agent's own.
            gradients = torch.autograd.grad(total, self._loss.trained, self._ones, materialize_grads=True)
        pairs = zip(self._gradient_of, gradients, strict=True)
        elsewhere = [(place.view(each.shape), each) for place, each in pairs if each.data_ptr() != place.data_ptr()]
        with torch.no_grad():
            if elsewhere:
                torch._foreach_copy_([place for place, _ in elsewhere], [each for _, each in elsewhere])
            skipped, grad_norm = self._guard(sum(statistics.values(), total.detach()))
            self._branches.beside("steps", self._apply, skipped)
            for name, value in statistics.items():
                kept = self._loss.statistics[name]
                torch.where(skipped.bool(), kept, value, out=kept)
        return {**metrics, "system/grad_norm": grad_norm, "skipped": skipped}

    @contextmanager
    def _our_way(self) -> Iterator[None]:
        """Let losses and their gradients be computed with fused kernels in this block, and end all branches with it."""
        if self._fused is None:
            yield
        else:
            self._passes.begin()
            passes, squares = PASSES.set(self._passes), SQUARES.set(self._fused.weighted_squares)
            try:
                yield
            finally:
                PASSES.reset(passes)
                SQUARES.reset(squares)
        self._branches.end()

    def _guard(self, check: Tensor) -> tuple[Tensor, Tensor]:
        """Return which agents skip the step, 0 or 1, and their gradients' norms; count the steps, and skips in a row.

        All are (S,); `check` is finite where all losses are.
        """
        skips, steps = self._consecutive_skips, self._moments["step"]
        if self._fused is not None:
            found: tuple[Tensor, Tensor] = self._fused.guard(
                check, self._gradients, skips, steps, MAX_CONSECUTIVE_SKIPS
            )
            return found
        grad_norm = torch.linalg.vector_norm(self._gradients, dim=1)
        check = check + grad_norm
        # x - x is 0, or NaN where x is not finite.
        is_skipped = (check - check).ne(0) | (skips >= MAX_CONSECUTIVE_SKIPS)
        skipped = is_skipped.to(check.dtype)
        skips.add_(1).mul_(skipped)
        steps.add_(1.0 - skipped.unsqueeze(1))
        return skipped, grad_norm

    def _apply(self, skipped: Tensor) -> None:
        """Take every agent's step of Adam and of its target networks, unless `skipped`, (S,), is 1."""
        config, is_before = self.agents[0].config, self.agents[0].config.target_update == "before"
        mean, square, steps = (self._moments[kind] for kind in ("exp_avg", "exp_avg_sq", "step"))
        if self._fused is not None:
            followers = self._targets, self._critics_start, config.tau, is_before
            group = self.agents[0].optimizer.param_groups[0]
            tensors = self._parameters, self._gradients, (mean, square), steps
            self._fused.adam(*tensors, skipped, followers, self._rates, group)
            return
        rate = (config.tau * (1.0 - skipped)).unsqueeze(1)
        if is_before:
            self._targets.lerp_(self._critics, rate)
        for s, agent in enumerate(self.agents):
            group = agent.optimizer.param_groups[0]
            torch._fused_adam_(
                [self._parameters[s]],
                [self._gradients[s]],
                [mean[s]],
                [square[s]],
                [],
                [steps[s, 0]],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                found_inf=skipped[s],
            )
        if not is_before:
            self._targets.lerp_(self._critics, rate)

    def _batch(self) -> dict[str, Tensor]:
        """Return by column the rows of this step's batches, (S, B, ...)."""
        index = self._index.index_select(0, self._position)[0]
        if len(self.agents) == 1:
            return self._layout.read(self._table[0].index_select(0, index[0]).unsqueeze(0))
        rows = torch.gather(self._table, 1, index.unsqueeze(2).expand(-1, -1, self._layout.width))
        return self._layout.read(rows)

    def _read(self, s: int, rows: Tensor, last: Tensor) -> Outcome:
        """Return an agent's metrics, or its error, from its own of every step, (K, M), and the last diagnostics."""
        agent = self.agents[s]
        for k, is_skipped in enumerate(self._skips(rows)):
            agent.learner_steps += 1
            if not is_skipped:
                agent.consecutive_skips = 0
                continue
            try:
                agent._skip(self._layout.read(self._table[s].index_select(0, self._index[k, s])))
            except NonFiniteError as error:
                return error
        return self._summary(agent, rows, last)


def _fused_kernels(device: torch.device) -> ModuleType | None:
    """Return the fused kernels where Triton can run them: on a GPU, or in its interpreter."""
    if find_spec("triton") is None or (device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1"):
        return None
    from dipole_ray.agents import fused

    return fused
