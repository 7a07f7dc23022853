"""How the episodes of many cells share calls of the policy, each as if it were alone.

An action must not depend on who else acts. So every episode has noise of its own, seeded by evaluation, cell and
number. Cells that differ in omega alone share a call, with omega a column of the batch. A row of a call is computed
alone by the packed networks that act on a CPU; libraries of linear algebra, for IQL's Gaussian and on a GPU, round it
by the number of rows.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipole_ray.envs.acting import Episode
from dipole_ray.envs.observations import Observations, each, finite_rows, row_of
from dipole_ray.errors import EnvironmentFault, NonFiniteError
from dipole_ray.evaluation.cells import Cell, PolicyName

_AHEAD = 32  # draws made at once
_EPISODE_STREAM, _NOISE_STREAM = 0xE9150DE, 0x90110C1  # keep the two kinds of seeds apart


class DrawsNormal(Protocol):
    """A source of noise that draws each row of a batch from a stream of the row's own."""

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Return standard normal noise (B, ...)."""
        ...


class SamplesActions(Protocol):
    """What evaluation needs of a policy; all of ours have it."""

    def sample_actions(
        self,
        observations: Any,
        omega: float | Tensor | None = None,
        num_candidates: int | None = None,
        generator: torch.Generator | DrawsNormal | None = None,
        policy: PolicyName = "guided",
    ) -> Tensor:
        """Return actions (B, A) in [-1, 1] for observations (B, O), arrays or dicts; omega may be one a row, (B,)."""
        ...


def episode_seed(seed: int, episode: int) -> int:
    """Return the reset seed of an episode, the same in every cell; 31 bits."""
    return int(np.random.SeedSequence([_EPISODE_STREAM, seed, episode]).generate_state(1)[0]) & 0x7FFFFFFF


class Noise:
    """The standard normal noise of one episode of a cell: as much as is asked for at each call."""

    def __init__(self, seed: int, cell: Cell, episode: int) -> None:
        # As bits, because a seed is made of whole numbers; + 0.0 makes -0.0 the same omega as 0.0.
        omega_bits = int(np.float64(np.inf if cell.omega is None else cell.omega + 0.0).view(np.uint64))
        self._random = np.random.default_rng([_NOISE_STREAM, seed, omega_bits, cell.candidates, episode])
        self._ahead: list[NDArray[np.float32]] = []

    def draw(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the next noise; an episode always asks for one shape."""
        if not self._ahead:
            self._ahead = list(self._random.standard_normal((_AHEAD, *shape), np.float32)[::-1])
        return self._ahead.pop()


@dataclass(kw_only=True, slots=True)
class CellEpisode(Episode):
    """An episode of a cell."""

    cell: Cell
    index: int
    noise: Noise

    @property
    def way(self) -> tuple[PolicyName, float | None, int]:
        """What it has in common with all that it can share a call with; of the guided policy None is any omega."""
        cell = self.cell
        # At 0 and -1 only one of the two guided fields is evaluated.
        return cell.policy, cell.omega if cell.omega in (None, 0.0, -1.0) else None, cell.candidates


class Batches:
    """Acts in episodes of any cells, in few calls of the policy."""

    def __init__(self, policy: SamplesActions) -> None:
        self._policy = policy

    def __call__(self, observations: Observations, episodes: Sequence[Any]) -> NDArray[np.float32]:
        """Return the actions (B, A), or chunks of them, of B episodes.

        Raises:
            NonFiniteError: If an action is NaN or infinite.
            EnvironmentFault: If it is so because of an observation.
        """
        calls: defaultdict[Any, list[int]] = defaultdict(list)
        for row, episode in enumerate(episodes):
            calls[episode.way].append(row)
        actions: Any = None
        for rows in calls.values():
            answer = self._call(row_of(observations, rows), [episodes[row] for row in rows])
            actions = np.empty((len(episodes), *answer.shape[1:]), np.float32) if actions is None else actions
            actions[rows] = answer
        _require_finite(observations, actions, episodes)
        found: NDArray[np.float32] = actions
        return found

    @torch.no_grad()
    def _call(self, observations: Observations, episodes: Sequence[CellEpisode]) -> NDArray[np.float32]:
        """Return the actions of episodes of one way."""
        policy, omega, candidates = episodes[0].way
        omegas: float | Tensor | None = omega
        if policy == "guided" and omega is None:
            omegas = torch.tensor([episode.cell.omega for episode in episodes], dtype=torch.float32)

        def draw(shape: tuple[int, ...]) -> Tensor:
            return torch.from_numpy(np.stack([episode.noise.draw(shape[1:]) for episode in episodes]))

        how: Any = {"num_candidates": candidates, "generator": draw, "policy": policy}
        found: NDArray[np.float32]
        found = self._policy.sample_actions(each(torch.from_numpy, observations), omega=omegas, **how).cpu().numpy()
        return found


def _require_finite(observations: Observations, actions: NDArray[np.float32], episodes: Sequence[CellEpisode]) -> None:
    """Raise where an action is NaN or infinite, and say whose fault it is: the environment's, or the policy's."""
    if np.isfinite(actions).all():
        return
    row = int(np.argmin(np.isfinite(actions).reshape(len(actions), -1).all(axis=1)))
    cell = episodes[row].cell
    observation = row_of(observations, row)
    if not finite_rows(observations)[row]:
        raise EnvironmentFault(f"evaluation ({cell}): observation {observation}; check the environment")
    raise NonFiniteError(
        f"evaluation ({cell}): the policy's action {actions[row]} for the observation {observation} is "
        "not finite; use an earlier checkpoint or lower the learning rate"
    )
