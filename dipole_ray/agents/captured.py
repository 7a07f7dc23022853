"""K updates of an agent in one call without the host: the step holds no branch, so a GPU replays it as a CUDA graph.

`Agent.update` waits for the device once a step, to learn whether the step is finite, and starts every kernel from
Python. Here the device decides: a step that is not finite is computed like any other, but Adam, the target networks
and the running statistics are told not to move. Losses, draws and their order are those of `Agent.update`, so a state
dict taken between two calls continues in either.

Shapes: K updates a call, B batch rows, N table rows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from dipole_ray.agents import state
from dipole_ray.agents.agent import MAX_CONSECUTIVE_SKIPS, Agent, Batch
from dipole_ray.agents.branches import Branches
from dipole_ray.agents.graphed import GraphedUpdates
from dipole_ray.agents.networks import FUSED
from dipole_ray.agents.rows import RowLayout


class CapturedUpdates(GraphedUpdates):
    """Takes gradient steps of one agent, whose own methods may update, save or restore it between two calls.

    On CUDA a step is captured as a graph; elsewhere the same step runs op by op, for tests. The agent's parameters,
    targets and moments become views of one tensor each. A graph of torch's own kernels equals `Agent.update` bitwise,
    also with its branches side by side; fused kernels equal it to rounding.

    Attributes:
        agent: The agent, which must be alone (`DataParallel.size` 1).
        max_updates: The largest K of a call.
    """

    def __init__(
        self,
        agent: Agent,
        batch_size: int,
        max_updates: int,
        table_rows: int | None = None,
        *,
        fused: bool = True,
        side_by_side: bool = True,
    ) -> None:
        """Capture the step; the agent's observations must have been fitted, if its config asks for that.

        Args:
            agent: What learns.
            batch_size: B.
            max_updates: The largest K of a call.
            table_rows: N, to hold a dataset on the device; by default the rows of one call.
            fused: Whether to compute with the kernels of `agents.fused` where Triton runs.
            side_by_side: Whether a GPU computes independent branches of the loss at once.
        """
        super().__init__([agent], (), max_updates)
        self.agent, self._batch_size = agent, batch_size
        self._fused = _fused_kernels(agent.device) if fused else None
        self._branches = Branches(side_by_side and agent.device.type == "cuda")
        self._parameters = state.flatten(agent._parameters)
        self._targets = state.flatten(agent._target_parameters, like=self._parameters)
        # From here on the critics, where there are some, lie together, as their targets do.
        self._critics_start = agent._critic_parameters[0].storage_offset() if agent._critic_parameters else 0
        self._critics = self._parameters[self._critics_start :][: len(self._targets)]
        moments = [agent.optimizer.state[parameter] for parameter in agent._parameters]
        self._moments = {kind: state.flatten([each[kind] for each in moments]) for kind in moments[0]}
        self._gradients = torch.zeros_like(self._parameters)
        self._gradient_of = state.views(self._gradients, agent._parameters)

        self._layout, device = RowLayout(agent.sizes), agent.device
        self._table = torch.zeros(table_rows or batch_size * max_updates, self._layout.width, device=device)
        self._index = torch.zeros(max_updates, batch_size, dtype=torch.int64, device=device)
        self._prepare()

    def load(self, columns: Batch) -> None:
        """Put rows, as `Agent.update` takes them, into the table; they stay there until the next call of this."""
        self._layout.write(self._table, self.agent._read_batch(columns))

    def run(self, index: Tensor) -> dict[str, float]:
        """Take one step on each row of `index`, (K, B), which says where in the table the rows of its batch lie.

        Returns:
            Metrics by name: losses averaged over the call, diagnostics of its last step.

        Raises:
            NonFiniteError: Ten updates in a row were not finite, none of them applied nor any after them in this
                call; the tenth's batch is saved. Only the generator has gone on to the end of the call.
        """
        updates = len(index)
        self._index[:updates].copy_(index)
        rows, last = self._take(updates)
        for k, is_skipped in enumerate(self._skips(rows)):
            self.agent.learner_steps += 1
            if is_skipped:
                self.agent._skip(self._batch(self._index[k]))
            else:
                self.agent.consecutive_skips = 0
        return self._summary(self.agent, rows, last)

    def update_on(self, columns: Batch) -> dict[str, float]:
        """Take one step on each consecutive batch of `columns`, whose leading dimension is K B; see `run`."""
        self.load(columns)
        rows = torch.arange(len(columns["rewards"]), device=self.agent.device)
        return self.run(rows.view(-1, self._batch_size))

    def policy_state(self) -> dict[str, Tensor]:
        """Return what `Policy.policy_state` does, by one copy from the device."""
        agent = self.agent
        host = torch.empty_like(self._parameters, device="cpu", pin_memory=agent.device.type == "cuda")
        host.copy_(self._parameters)
        trained = dict(zip(agent.networks.trained_parameters(), state.views(host, agent._parameters), strict=True))
        acting = agent.policy.networks.state_dict()
        # Clones, since a part of `host` would take the whole along wherever it is sent.
        return {name: trained.get(name, tensor).cpu().clone() for name, tensor in acting.items()}

    def _update(self, diagnostics: bool) -> dict[str, Tensor]:
        """Do what `Agent.update` does, without asking the device; `skipped` among the metrics is 0 or 1."""
        agent = self.agent
        index = self._index.index_select(0, self._position)[0]
        with self._our_way():
            total, metrics, statistics = agent._loss(self._batch(index), diagnostics)
            gradients = torch.autograd.grad(total, agent._parameters, materialize_grads=True)
        torch._foreach_copy_(self._gradient_of, gradients)
        with torch.no_grad():
            grad_norm = torch.linalg.vector_norm(self._gradients)
            changed = {name: value for name, value in statistics.items() if value is not agent._statistics[name]}
            skipped = self._guard(sum(changed.values(), total.detach() + grad_norm))
            self._apply(skipped)
            for name, value in changed.items():
                kept = agent._statistics[name]
                torch.where(skipped.bool(), kept, value, out=kept)
        return {**metrics, "system/grad_norm": grad_norm, "skipped": skipped}

    @contextmanager
    def _our_way(self) -> Iterator[None]:
        """Let the agent's losses and their gradients run on branches and with fused kernels in this block."""
        token, eager = FUSED.set(self._fused), self.agent.branches
        self.agent.branches = self._branches
        try:
            yield
            self._branches.end()
        finally:
            self.agent.branches = eager
            FUSED.reset(token)

    def _guard(self, check: Tensor) -> Tensor:
        """Return whether to skip the step, 0 or 1, and count skips in a row; `check` is finite if all losses are."""
        if self._fused is not None:
            fused: Tensor = self._fused.guard(check, self._consecutive_skips, MAX_CONSECUTIVE_SKIPS)
            return fused
        return super()._guard(check)

    def _apply(self, skipped: Tensor) -> None:
        """Take the step of Adam and of the target networks, unless `skipped`, which is 0 or 1."""
        group, config, applied = self.agent.optimizer.param_groups[0], self.agent.config, 1.0 - skipped
        steps, is_before = self._moments["step"].add_(applied), config.target_update == "before"
        if self._fused is not None:
            moments = self._moments["exp_avg"], self._moments["exp_avg_sq"]
            followers = self._targets, self._critics_start, config.tau, is_before
            self._fused.adam(self._parameters, self._gradients, moments, steps, skipped, followers, group)
            return
        if is_before:
            self._targets.lerp_(self._critics, config.tau * applied)
        torch._fused_adam_(
            [self._parameters],
            [self._gradients],
            [self._moments["exp_avg"]],
            [self._moments["exp_avg_sq"]],
            [],
            [steps[0]],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skipped,
        )
        if not is_before:
            self._targets.lerp_(self._critics, config.tau * applied)

    def _batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the table's rows at `index`, (B,), by column."""
        return self._layout.read(self._table.index_select(0, index))


def _fused_kernels(device: torch.device) -> ModuleType | None:
    """Return the fused kernels where Triton can run them: a GPU, or its interpreter."""
    if find_spec("triton") is None or (device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1"):
        return None
    from dipole_ray.agents import fused

    return fused
