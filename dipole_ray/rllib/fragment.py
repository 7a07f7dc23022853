"""A fragment: the trajectory pieces one worker gathers between two deliveries, and the report that goes with them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dipole_ray.data.schema import Rows, close_trajectory, concatenate
from dipole_ray.envs.acting import Episode, Steps


@dataclass(frozen=True, kw_only=True, slots=True)
class FragmentReport:
    """What one `collect` did, beside its rows."""

    rows: Rows
    """The rows themselves: a reference would die with the worker, before the replay has read them."""
    worker: int
    incarnation: int
    """Which life of the worker: it differs after a restart."""
    sequence: int
    """Number of the fragment within the incarnation."""
    env_steps: int
    dropped_env_steps: int
    """Transitions in the rows, and those thrown away because an environment gave non-finite numbers."""
    returns: list[float]
    lengths: list[int]
    successes: list[float]
    """Undiscounted returns and steps of the episodes that ended, and their successes where the task defines success."""
    policy_version: int
    """The policy that acted."""
    busy_s: float
    """Seconds this worker computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFailure:
    """What a worker answers when its environment or policy raised: left to RLlib, the actor would end in silence."""

    error: str  # type and message


class FragmentRecorder:
    """Trajectory pieces being recorded, one open piece per environment."""

    def __init__(self, num_envs: int) -> None:
        self._open: list[list[tuple[np.ndarray, np.ndarray, np.floating[Any], bool]]] = [[] for _ in range(num_envs)]
        self._closed: list[Rows] = []
        self.ended: list[Episode] = []
        """The episodes that ended whole."""
        self.dropped = 0
        """Broken steps, which are left out."""

    def add(self, steps: Steps) -> None:
        """Record one step of every environment, and close the pieces of those whose episode is over."""
        for row, i in enumerate(steps.indices):
            if steps.broken[row]:  # the step is left out: the piece ends where it began
                self._close(i, steps.observations[row])
                self.dropped += 1
                continue
            mask = not steps.terminated[row]  # a time limit is no end: the value of the last state still counts
            self._open[i].append((steps.observations[row], steps.actions[row], steps.rewards[row], mask))
            if steps.done[row]:
                self._close(i, steps.next_observations[row])
                self.ended.append(steps.episodes[row])

    def finish(self, observations: np.ndarray) -> Rows:
        """Close every open piece where its environment stands, (N, O), and return all rows, if any was kept."""
        for i, observation in enumerate(observations):
            self._close(i, observation)
        return concatenate(self._closed) if self._closed else {}

    def _close(self, i: int, last_observation: np.ndarray) -> None:
        """End environment `i`'s piece, if it has one, with its last observation."""
        piece, self._open[i] = self._open[i], []
        if piece:
            observations, actions, rewards, masks = (np.asarray(one, np.float32) for one in zip(*piece, strict=True))
            observations = np.append(observations, [last_observation], axis=0)
            self._closed.append(close_trajectory(observations, actions, rewards, masks))
