"""Play the episodes of a cell: return, success, length and paths of each.

All running episodes act through one batched policy call per step, because the cost of a call hardly depends on the
number of rows. Every cell starts its episodes from the same states (common random numbers), so that differences between
cells come from the policies. Nothing here knows Ray: a caller may play cells anywhere.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipole_ray.envs.acting import Act, ActingLoop, Episode, Listener
from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.errors import ConfigError, EnvironmentFault, NonFiniteError
from dipole_ray.evaluation.cells import Cell, PolicyName
from dipole_ray.evaluation.trajectories import Maze, Trajectory, maze_of

_EPISODE_STREAM, _POLICY_STREAM = 0xE9150DE, 0x90110C1  # keep the two kinds of seeds apart
_AT_BOUND = 1.0 - 1e-6


class SamplesActions(Protocol):
    """What evaluation needs of a policy; all of ours have it."""

    def sample_actions(
        self,
        observations: Tensor,
        omega: float | None = None,
        num_candidates: int | None = None,
        generator: torch.Generator | None = None,
        policy: PolicyName = "guided",
    ) -> Tensor:
        """Return actions (B, A) in [-1, 1] for float32 observations (B, O)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CellResult:
    """What the episodes of one cell gave; N episodes, in the order of their seeds."""

    cell: Cell
    returns: NDArray[np.float64]  # undiscounted sums of rewards, (N,)
    successes: (
        NDArray[np.bool_] | None
    )  # whether it succeeded at any step, (N,); an episode that told none has failed; None where none told any
    lengths: NDArray[np.int64]  # environment steps, (N,)
    paths: tuple[NDArray[np.float32], ...]
    maze: Maze | None
    """Positions (T + 1, 2) in metres of the first episodes, and the floor plan; nothing outside mazes."""
    action_bound_fraction: float  # share of action components at the bound, |a| >= 1 - 1e-6, in [0, 1]
    logged: Any = None  # what the caller's listener logged meanwhile

    def trajectories(self, phase: str) -> list[Trajectory]:
        """Return the recorded paths, labelled for `write_trajectories`."""
        successes = np.zeros(len(self.returns), np.bool_) if self.successes is None else self.successes
        labels: Any = {"phase": phase, **asdict(self.cell)}
        pairs = zip(self.paths, successes, strict=False)  # paths are kept of the first episodes only
        return [Trajectory(**labels, success=bool(success), positions=path) for path, success in pairs]


def episode_seed(seed: int, episode: int) -> int:
    """Return the reset seed of an episode, the same in every cell; 31 bits."""
    return int(np.random.SeedSequence([_EPISODE_STREAM, seed, episode]).generate_state(1)[0]) & 0x7FFFFFFF


def acting(agent: SamplesActions, cell: Cell, seed: int) -> Act:
    """Return what acts as a cell says, with noise seeded by (seed, cell), and refuses NaN and infinity."""
    # As bits, because a seed is made of whole numbers; + 0.0 makes -0.0 the same omega as 0.0.
    omega_bits = int(np.float64(np.inf if cell.omega is None else cell.omega + 0.0).view(np.uint64))
    state = np.random.SeedSequence([_POLICY_STREAM, seed, omega_bits, cell.candidates]).generate_state(1, np.uint64)
    device: Any = getattr(agent, "device", "cpu")
    generator = torch.Generator(device=device).manual_seed(int(state[0]) & 0x7FFFFFFFFFFFFFFF)
    sample = partial(agent.sample_actions, omega=cell.omega, num_candidates=cell.candidates, generator=generator)

    def act(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            actions: NDArray[np.float32] = sample(torch.from_numpy(observations), policy=cell.policy).cpu().numpy()
        finite = np.isfinite(actions).reshape(len(actions), -1).all(axis=1)
        if not finite.all():  # the environment's fault, or the policy's
            row = int(np.argmin(finite))
            if not np.isfinite(observations[row]).all():
                raise EnvironmentFault(f"evaluation ({cell}): observation {observations[row]}; check the environment")
            raise NonFiniteError(
                f"evaluation ({cell}): the policy's action {actions[row]} for the observation {observations[row]} is "
                "not finite; use an earlier checkpoint or lower the learning rate"
            )
        return actions

    return act


def evaluate_cell(
    agent: SamplesActions,
    env: EnvConfig | str | Sequence[gymnasium.Env],
    cell: Cell,
    *,
    episodes: int,
    seed: int,
    num_envs: int = 50,
    trajectories: int = 0,
    listener: Listener | None = None,
) -> CellResult:
    """Play the episodes of one cell.

    The result depends on the agent, the cell, the seed and the number of environments, on nothing else. `env` is what
    to make at most `num_envs` environments of, or environments to use, which stay open. In mazes the paths of the first
    episodes are kept, as many as `trajectories` says. A `listener` is told of every reset and step.

    Raises:
        NonFiniteError: If an action is NaN or infinite.
        EnvironmentFault: If a reward or an observation is.
    """
    if episodes < 1:
        raise ConfigError(f"an evaluation needs at least one episode; found {episodes}")
    if isinstance(env, EnvConfig | str):
        with ExitStack() as closing:
            made = [closing.enter_context(make_env(env)) for _ in range(min(num_envs, episodes))]
            how: Any = {"trajectories": trajectories, "listener": listener}
            return evaluate_cell(agent, made, cell, episodes=episodes, seed=seed, **how)
    played = [_Episode(seed=episode_seed(seed, i), index=i, keeps_path=i < trajectories) for i in range(episodes)]
    waiting = iter(played)  # an environment takes the next one as soon as it is free
    loop = ActingLoop(env, acting(agent, cell, seed), lambda _: next(waiting, None), listener=listener)
    loop.start(range(min(len(env), episodes)))
    maze = maze_of(env[0])
    bound_hits = components = 0
    while loop.episodes:
        actions = loop.step().actions
        bound_hits += int(np.count_nonzero(np.abs(actions) >= _AT_BOUND))
        components += actions.size
    successes = np.array([episode.success for episode in played])
    return CellResult(
        cell=cell,
        returns=np.array([episode.episode_return for episode in played], np.float64),
        successes=None if np.isnan(successes).all() else successes > 0,
        lengths=np.array([episode.length for episode in played], np.int64),
        paths=tuple(np.stack(e.positions) for e in played if e.positions) if maze is not None else (),
        maze=maze,
        action_bound_fraction=bound_hits / components,
    )


@dataclass(kw_only=True, slots=True)
class _Episode(Episode):
    """A counted episode, and its path where one is kept."""

    index: int
    keeps_path: bool
    positions: list[NDArray[np.float32]] = field(default_factory=list)

    def begin(self, observation: NDArray[np.float32]) -> None:
        # The observations of all OGBench mazes begin with the agent's x and y.
        if self.keeps_path:
            self.positions.append(observation[:2].copy())

    def take(self, reward: float, observation: NDArray[np.float32], success: float) -> None:
        if not math.isfinite(reward):
            raise EnvironmentFault(
                f"evaluation episode {self.index}: reward {reward} at step {self.length}; check the environment"
            )
        Episode.take(self, reward, observation, success)
        self.begin(observation)
