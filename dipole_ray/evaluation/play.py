"""Play the episodes of cells: return, success, length and paths of each.

Every cell starts its episodes from the same states (common random numbers), so that differences between cells come
from the policies. All running episodes, whatever their cells, act through shared calls of the policy (see
`batches.py`), because the cost of a call hardly depends on the number of rows. Nothing here knows Ray: a caller may
play cells, and parts of their episodes, anywhere.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dipole_ray.envs.acting import ActingLoop, Episode, Listener
from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.envs.observations import Observation, row_of
from dipole_ray.errors import ConfigError, EnvironmentFault
from dipole_ray.evaluation.batches import Batches, CellEpisode, Noise, SamplesActions, episode_seed
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.trajectories import Maze, Trajectory, maze_of

AT_BOUND = 1.0 - 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class CellResult:
    """What episodes of one cell gave; N episodes, in the order of their numbers."""

    cell: Cell
    returns: NDArray[np.float64]  # undiscounted sums of rewards, (N,)
    successes: (
        NDArray[np.bool_] | None
    )  # whether it succeeded at any step, (N,); an episode that told none has failed; None where none told any
    lengths: NDArray[np.int64]  # environment steps, (N,)
    paths: tuple[NDArray[np.float32], ...]
    maze: Maze | None
    """Positions (T + 1, 2) in metres of the first episodes, and the floor plan; nothing outside mazes,
    or where they are seen as images."""
    at_bound: NDArray[np.float64]  # share of action components at the bound, |a| >= 1 - 1e-6, summed over steps, (N,)
    logged: tuple[Any, ...] = ()  # what the caller's listeners logged meanwhile
    measures: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # further ones by name, (N,) each
    clusters: tuple[str, ...] = ()  # what each episode has in common with some others: scenes of one drive, one log

    @property
    def action_bound_fraction(self) -> float:
        """Share of all action components that were at the bound, in [0, 1]."""
        return float(self.at_bound.sum() / self.lengths.sum())

    def trajectories(self, phase: str) -> list[Trajectory]:
        """Return the recorded paths, labelled for `write_trajectories`."""
        successes = np.zeros(len(self.returns), np.bool_) if self.successes is None else self.successes
        labels: Any = {"phase": phase, **asdict(self.cell)}
        pairs = zip(self.paths, successes, strict=False)  # paths are kept of the first episodes only
        return [Trajectory(**labels, success=bool(success), positions=path) for path, success in pairs]


def evaluate_cell(
    agent: SamplesActions,
    env: EnvConfig | str | Sequence[gymnasium.Env],
    cell: Cell,
    *,
    episodes: int,
    **how: Any,
) -> CellResult:
    """Play the first episodes of one cell; `how` is `evaluate_cells`'s."""
    return evaluate_cells(agent, env, [cell], episodes=range(episodes), **how)[0]


def evaluate_cells(
    agent: SamplesActions,
    env: EnvConfig | str | Sequence[gymnasium.Env],
    cells: Sequence[Cell],
    *,
    episodes: range,
    seed: int,
    num_envs: int = 50,
    trajectories: int = 0,
    listener: Listener | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> list[CellResult]:
    """Play the episodes with these numbers of every cell.

    An episode depends on the agent, its cell, the seed and its number, on nothing else (see `batches.py`): neither on
    what is played beside it nor on the number of environments. `env` is what to make at most `num_envs` environments
    of, or environments to use, which stay open. In mazes the paths of the first episodes are kept, as many as
    `trajectories` says. A `listener` is told of every reset and step, and `on_step` is called after each step of all
    environments.

    Raises:
        NonFiniteError: If an action is NaN or infinite.
        EnvironmentFault: If a reward or an observation is.
    """
    if not episodes:
        raise ConfigError(f"an evaluation needs at least one episode; found {len(episodes)}")
    if isinstance(env, EnvConfig | str):
        with ExitStack() as closing:
            count = min(num_envs, len(episodes) * len(cells))
            made = [closing.enter_context(make_env(env)) for _ in range(count)]
            how: Any = {"trajectories": trajectories, "listener": listener, "on_step": on_step}
            return evaluate_cells(agent, made, cells, episodes=episodes, seed=seed, **how)
    played = {cell: [_episode(seed, cell, i, i < trajectories) for i in episodes] for cell in cells}
    waiting = deque(episode for cell in cells for episode in played[cell])
    loop = ActingLoop(env, Batches(agent), lambda _: waiting.popleft() if waiting else None, listener=listener)
    loop.start(range(min(len(env), len(waiting))))
    maze = maze_of(env[0]) if _has_place(row_of(loop.observations, 0)) else None
    while loop.episodes:
        steps = loop.step()
        for episode, share in zip(steps.episodes, (np.abs(steps.actions) >= AT_BOUND).mean(axis=1), strict=True):
            episode.at_bound += float(share)  # type: ignore[attr-defined]
        on_step()
    return [_result(cell, played[cell], maze) for cell in cells]


def joined(parts: Sequence[CellResult]) -> CellResult:
    """Return the result of a cell whose episodes were played in parts, given in their order."""
    told = [np.zeros(len(part.returns), np.bool_) if part.successes is None else part.successes for part in parts]
    return CellResult(
        cell=parts[0].cell,
        returns=np.concatenate([part.returns for part in parts]),
        successes=None if all(part.successes is None for part in parts) else np.concatenate(told),
        lengths=np.concatenate([part.lengths for part in parts]),
        paths=tuple(path for part in parts for path in part.paths),
        maze=parts[0].maze,
        at_bound=np.concatenate([part.at_bound for part in parts]),
        logged=tuple(one for part in parts for one in part.logged),
        measures={name: np.concatenate([part.measures[name] for part in parts]) for name in parts[0].measures},
        clusters=tuple(one for part in parts for one in part.clusters),
    )


def _has_place(observation: Observation) -> TypeGuard[np.ndarray]:
    """Return whether an observation begins, in a maze, with the agent's x and y, as all vectors of OGBench's do."""
    return isinstance(observation, np.ndarray) and observation.ndim == 1


def _episode(seed: int, cell: Cell, index: int, keeps_path: bool) -> "_Episode":
    identity: Any = {"cell": cell, "index": index, "noise": Noise(seed, cell, index)}
    return _Episode(seed=episode_seed(seed, index), keeps_path=keeps_path, **identity)


def _result(cell: Cell, episodes: Sequence["_Episode"], maze: Maze | None) -> CellResult:
    successes = np.array([episode.success for episode in episodes])
    return CellResult(
        cell=cell,
        returns=np.array([episode.episode_return for episode in episodes], np.float64),
        successes=None if np.isnan(successes).all() else successes > 0,
        lengths=np.array([episode.length for episode in episodes], np.int64),
        paths=tuple(np.stack(e.positions) for e in episodes if e.positions) if maze is not None else (),
        maze=maze,
        at_bound=np.array([episode.at_bound for episode in episodes], np.float64),
    )


@dataclass(kw_only=True, slots=True)
class _Episode(CellEpisode):
    """A counted episode, and its path where one is kept."""

    keeps_path: bool
    positions: list[NDArray[np.float32]] = field(default_factory=list)
    at_bound: float = 0.0

    def begin(self, observation: Observation) -> None:
        if self.keeps_path and _has_place(observation):
            self.positions.append(observation[:2].copy())

    def take(self, reward: float, observation: Observation, success: float) -> None:
        if not math.isfinite(reward):
            raise EnvironmentFault(
                f"evaluation episode {self.index}: reward {reward} at step {self.length}; check the environment"
            )
        Episode.take(self, reward, observation, success)
        self.begin(observation)
