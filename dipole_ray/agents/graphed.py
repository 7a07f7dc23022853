"""Steps that hold no branch: on a GPU each is replayed as a CUDA graph, elsewhere the same step runs op by op.

Shapes: K updates a call, S agents, M metrics.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from dipole_ray.agents.agent import MAX_CONSECUTIVE_SKIPS, Agent
from dipole_ray.agents.branches import Branches
from dipole_ray.errors import ConfigError

_WARM_UP_STEPS = 3
"""Steps before a capture: libraries make their handles and workspaces in the first, which no graph may hold."""


class GraphedUpdates(ABC):
    """Captures an update, replays it, and keeps each agent's metrics and guard on the device until they are read."""

    def __init__(self, agents: Sequence[Agent], max_updates: int, side_by_side: bool) -> None:
        """Make the guard's counters, (S,); a subclass ends its own constructor with `_prepare`.

        ConfigError where observations are no flat vectors: the rows of its table are numbers of one type.
        """
        if agents[0].networks.is_encoded:
            found = f"observations are {', '.join(map(str, agents[0].networks.observed.values()))} and have an encoder"
            raise ConfigError(f"captured updates: {found}, and they take flat vectors; use Agent.update")
        self._learning, self.max_updates = agents, max_updates
        self._device = agents[0].device
        self._branches = Branches(side_by_side and self._device.type == "cuda")
        self._position = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._consecutive_skips = torch.zeros(len(agents), device=self._device)

    @abstractmethod
    def _update(self, diagnostics: bool) -> dict[str, Tensor]:
        """Do what `Agent.update` does, without asking the device; `skipped` among the metrics is 0 or 1, (S,).

        What the metrics do not need may still be on its way on a branch.
        """

    def _prepare(self) -> None:
        """Learn the names of the metrics, make their buffers, and capture a step with diagnostics and one without."""
        noise = [agent.generator.get_state() for agent in self._learning]
        self._consecutive_skips.fill_(MAX_CONSECUTIVE_SKIPS)  # the guard is shut: nothing learns from these steps
        on_cuda = self._device.type == "cuda"
        with _beside_the_current_stream(self._device) if on_cuda else nullcontext():
            for _ in range(_WARM_UP_STEPS if on_cuda else 1):
                plain, full = self._update(diagnostics=False), self._update(diagnostics=True)
                self._branches.end()
        self._names, self._diagnostic_names = list(plain), list(full)
        self._metrics = torch.zeros(self.max_updates, len(plain), len(self._learning), device=self._device)
        self._diagnostics = torch.zeros(len(full), len(self._learning), device=self._device)
        self._graphs = [self._capture(diagnostics) for diagnostics in (False, True)] if on_cuda else []
        for agent, before in zip(self._learning, noise, strict=True):
            agent.generator.set_state(before)

    def _capture(self, diagnostics: bool) -> torch.cuda.CUDAGraph:
        """Return the graph of a step, which draws from the agents' generators wherever they stand at its replay."""
        graph = torch.cuda.CUDAGraph()
        for agent in self._learning:
            graph.register_generator_state(agent.generator)
        with torch.cuda.graph(graph):
            self._step(diagnostics)
        return graph

    def _take(self, updates: int) -> tuple[Tensor, Tensor]:
        """Take K steps; return the metrics of each, (K, M, S), and the last one's diagnostics, once they are done."""
        self._position.zero_()
        skips = torch.tensor([float(agent.consecutive_skips) for agent in self._learning])
        self._consecutive_skips.copy_(skips)
        for k in range(updates):
            diagnostics = k == updates - 1
            if self._graphs:
                self._graphs[diagnostics].replay()
            else:
                self._step(diagnostics)
        found = torch.cat((self._metrics[:updates].flatten(0, 1), self._diagnostics)).cpu()
        return found[: -len(self._diagnostics)].unflatten(0, (updates, -1)), found[-len(self._diagnostics) :]

    def _step(self, diagnostics: bool) -> None:
        """Take the next step of the call, and write down its metrics."""
        metrics = self._update(diagnostics)
        row = torch.stack([metrics[name] for name in self._names])
        self._metrics.index_copy_(0, self._position, row.unsqueeze(0))
        if diagnostics:
            torch.stack(list(metrics.values()), out=self._diagnostics)
        self._position += 1
        self._branches.end()

    def _skips(self, rows: Tensor) -> list[bool]:
        """Return which of one agent's steps, (K, M), were skipped."""
        return [bool(skipped) for skipped in rows[:, self._names.index("skipped")].tolist()]

    def _summary(self, agent: Agent, rows: Tensor, last: Tensor) -> dict[str, float]:
        """Return an agent's metrics of a call by name: losses averaged over it, diagnostics of its last step."""
        metrics = dict(zip(self._diagnostic_names, last.tolist(), strict=True))
        means = dict(zip(self._names, rows.mean(dim=0).tolist(), strict=True))
        metrics |= {name: value for name, value in means.items() if "/loss" in name}
        del metrics["skipped"]
        return metrics | {"system/skipped_updates": float(agent.skipped_updates)}


@contextmanager
def _beside_the_current_stream(device: torch.device) -> Iterator[None]:
    """Run what is started in this block on a stream of its own, after what was started before and before what follows.

    Graphs are captured from such a stream, and libraries keep their workspaces by stream.
    """
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
