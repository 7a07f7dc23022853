"""Where experience comes from: the one face behind which environments are stepped.

The loop, the replay and the learner see fragments of rows with a report, and results of evaluation cells. Whether
the rows are steps of environments (`Rollouts`) or plans that a scorer judged, each an episode of one step whose
reward is the given advantage, is known to the source alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows, close_trajectory, concatenate
from dipole_ray.envs.acting import Episode, Steps
from dipole_ray.envs.observations import Observation, Observations, row_of, stacked
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult

SourceState = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and JSON


@dataclass(frozen=True, slots=True)
class PublishedPolicy:
    """The weights rollout workers act with."""

    version: int  # counts publications; it never goes back, also when the learner restarts from a checkpoint
    state: Any  # the tensors, or a reference to them in Ray's object store
    backbone: Any = None  # a list of the same of a backbone that the state only names; in a list Ray does not fetch it


@dataclass(frozen=True, kw_only=True, slots=True)
class FragmentReport:
    """The trajectory pieces that one worker gathered between two deliveries, and what it did meanwhile."""

    rows: Rows  # no reference to them: it would die with the worker, before the replay has read them
    worker: int
    incarnation: int  # which life of the worker: it differs after a restart
    sequence: int  # number of the fragment within the incarnation
    env_steps: int  # transitions in the rows
    dropped_env_steps: int  # those thrown away because an environment gave non-finite numbers
    returns: list[float]  # undiscounted, of the episodes that ended
    lengths: list[int]  # steps of those episodes
    successes: list[float | None]  # of those episodes; None where one told none
    policy_version: int  # the policy that acted
    busy_s: float  # seconds this worker computed
    logged: Any = None  # what callbacks logged meanwhile, as RLlib's loggers merge it
    measures: Mapping[str, np.ndarray] = field(default_factory=dict)  # by name, whose means an iteration reports


class Experience(Protocol):
    """What the training loop asks of a source of experience."""

    interrupted: Sized
    """Grows with requests to stop, after which `gather` ends at its next wait."""

    @property
    def num_workers(self) -> int:
        """Workers that can be asked now, against which their waiting is measured."""

    @property
    def plays_beside(self) -> bool:
        """Whether it can play an evaluation while the learner goes on."""

    def came_back(self) -> list[int]:
        """Return the workers that are in service again since the last call."""

    def gather(self, policy: Callable[[], PublishedPolicy]) -> Iterator[FragmentReport]:
        """Yield fragments until a stop is asked for; who is idle acts with `policy()` next, while one is used."""

    def evaluate(
        self,
        cells: Sequence[Cell],
        policy: PublishedPolicy,
        *,
        episodes: int,
        on_wait: Callable[[], bool],
        **how: Any,
    ) -> Iterator[CellResult | None]:
        """Yield the result of each cell as it is finished, not in order; `how` is `evaluate_cells`'s.

        `on_wait`, which may raise, is called several times a second meanwhile; where it returns false a source that
        `plays_beside` yields None instead of waiting, and its other work goes on.
        """

    def metrics(self) -> dict[str, float]:
        """Return the state of the workers as `rollout/name`s."""

    def state(self) -> SourceState | None:
        """Return what `restore` continues from exactly; None where it can only begin anew."""

    def restore(self, state: SourceState | None, life: int) -> None:
        """Continue from `state`, or begin anew with random numbers that no earlier `life` of the run had."""

    def stop(self) -> None:
        """End the workers; one that does not answer is not waited for."""


class FragmentRecorder:
    """Trajectory pieces being recorded, one open piece per environment."""

    def __init__(self, num_envs: int, schema: Schema) -> None:
        self._schema = schema
        self._open: list[list[tuple[Observation, np.ndarray, np.floating[Any], bool]]] = [[] for _ in range(num_envs)]
        self._closed: list[Rows] = []
        self.ended: list[Episode] = []  # those that ended whole
        self.dropped = 0  # broken steps, which are left out

    def add(self, steps: Steps) -> None:
        """Record one step of every environment, and close the pieces of those whose episode is over."""
        for row, i in enumerate(steps.indices):
            if steps.broken[row]:  # the step is left out: the piece ends where it began
                self._close(i, row_of(steps.observations, row))
                self.dropped += 1
                continue
            mask = not steps.terminated[row]  # a time limit is no end: the value of the last state still counts
            self._open[i].append((row_of(steps.observations, row), steps.actions[row], steps.rewards[row], mask))
            if steps.done[row]:
                self._close(i, row_of(steps.next_observations, row))
                self.ended.append(steps.episodes[row])

    def finish(self, observations: Observations) -> Rows:
        """Close every open piece where its environment stands, (N, O), and return all rows, if any was kept."""
        for i in range(len(self._open)):
            self._close(i, row_of(observations, i))
        return concatenate(self._closed) if self._closed else {}

    def _close(self, i: int, last: Observation) -> None:
        """End environment `i`'s piece, if it has one, with its last observation."""
        piece, self._open[i] = self._open[i], []
        if piece:
            seen, *others = zip(*piece, strict=True)
            actions, rewards, masks = (np.asarray(one, np.float32) for one in others)
            observations = stacked([*seen, last])
            self._closed.append(close_trajectory(observations, actions, rewards, masks, self._schema))
