"""Play the episodes of a cell: return, success, length and paths of each.

All running episodes act through one batched policy call per step, because the cost of a call hardly depends on the
number of rows. Every cell starts its episodes from the same states (common random numbers), so that differences between
cells come from the policies. Nothing here knows Ray: a caller may play cells anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.errors import ConfigError, EnvironmentFault, NonFiniteError
from dipole_ray.evaluation.cells import Cell, PolicyName
from dipole_ray.evaluation.trajectories import Maze, Trajectory, maze_of

_EPISODE_STREAM, _POLICY_STREAM = 0xE9150DE, 0x90110C1  # keep the two kinds of seeds apart
_AT_BOUND = 1.0 - 1e-6


class Policy(Protocol):
    """What evaluation needs of an agent; all of ours have it."""

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
    returns: NDArray[np.float64]
    """Undiscounted sums of rewards, (N,)."""
    successes: NDArray[np.bool_] | None
    """Whether the episode succeeded at any step, (N,); None where the task defines no success."""
    lengths: NDArray[np.int64]
    """Environment steps, (N,)."""
    paths: tuple[NDArray[np.float32], ...]
    """Positions (T + 1, 2) in metres of the first episodes; empty outside mazes."""
    maze: Maze | None
    """The floor plan the paths lie in."""
    action_bound_fraction: float
    """Share of action components at the bound, |a| >= 1 - 1e-6, in [0, 1]."""

    def trajectories(self, phase: str) -> list[Trajectory]:
        """Return the recorded paths, labelled for `write_trajectories`."""
        successes = np.zeros(len(self.returns), np.bool_) if self.successes is None else self.successes
        return [
            Trajectory(
                phase=phase,
                policy=self.cell.policy,
                omega=self.cell.omega,
                candidates=self.cell.candidates,
                success=bool(success),
                positions=path,
            )
            for path, success in zip(self.paths, successes, strict=False)
        ]


def episode_seed(seed: int, episode: int) -> int:
    """Return the reset seed of an episode, the same in every cell; 31 bits."""
    state = np.random.SeedSequence([_EPISODE_STREAM, seed, episode]).generate_state(1)
    return int(state[0]) & 0x7FFFFFFF


def policy_generator(agent: Policy, cell: Cell, seed: int) -> torch.Generator:
    """Return the noise source of a cell, on the agent's device, seeded by (seed, cell)."""
    omega_bits = int(np.float64(np.inf if cell.omega is None else cell.omega + 0.0).view(np.uint64))
    entropy: list[int] = [_POLICY_STREAM, seed, omega_bits, cell.candidates]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    device: Any = getattr(agent, "device", "cpu")
    return torch.Generator(device=device).manual_seed(int(state[0]) & 0x7FFFFFFFFFFFFFFF)


def act(
    agent: Policy, cell: Cell, observations: NDArray[np.float32], generator: torch.Generator
) -> NDArray[np.float32]:
    """Return the actions (B, A) of a cell for observations (B, O).

    Raises:
        NonFiniteError: If an action is NaN or infinite; names the row.
        EnvironmentFault: If that is because its observation is.
    """
    with torch.no_grad():
        chosen = agent.sample_actions(
            torch.from_numpy(observations),
            omega=cell.omega,
            num_candidates=cell.candidates,
            generator=generator,
            policy=cell.policy,
        )
    actions: NDArray[np.float32] = chosen.cpu().numpy()
    finite = np.isfinite(actions).all(axis=-1)
    if not finite.all():
        row = int(np.argmin(finite))
        if not np.isfinite(observations[row]).all():
            raise EnvironmentFault(f"evaluation ({cell}): observation {observations[row]}; check the environment")
        raise NonFiniteError(
            f"evaluation ({cell}): the policy's action {actions[row]} for the observation {observations[row]} is not "
            "finite; use an earlier checkpoint or lower the learning rate"
        )
    return actions


@contextmanager
def environments(env: EnvConfig | str, num_envs: int) -> Iterator[list[gymnasium.Env]]:
    """Make environments that several cells may share, and close them afterwards."""
    made: list[gymnasium.Env] = []
    try:
        made.extend(make_env(env) for _ in range(num_envs))
        yield made
    finally:
        for one in made:
            one.close()


def evaluate_cell(
    agent: Policy,
    env: EnvConfig | str | Sequence[gymnasium.Env],
    cell: Cell,
    *,
    episodes: int,
    seed: int,
    num_envs: int = 50,
    trajectories: int = 0,
) -> CellResult:
    """Run the episodes of one cell.

    The result depends on the agent, the cell, the seed and the number of environments, on nothing else.

    Args:
        agent: Acts; its networks are only read.
        env: What to make environments of, or environments to use (from `environments`), which stay open.
        cell: How to act.
        episodes: Number of episodes, at least 1.
        seed: Seed of start states and policy noise.
        num_envs: Environments stepped together, at most; ignored when `env` holds environments.
        trajectories: Number of episodes whose path is kept, in mazes.

    Raises:
        NonFiniteError: If an action is NaN or infinite.
        EnvironmentFault: If a reward or an observation is.
    """
    if episodes < 1:
        raise ConfigError(f"an evaluation needs at least one episode; found {episodes}")
    if isinstance(env, EnvConfig | str):
        with environments(env, min(num_envs, episodes)) as made:
            return evaluate_cell(agent, made, cell, episodes=episodes, seed=seed, trajectories=trajectories)
    finished: list[_Episode] = []
    running = [_Episode.start(one, index, seed, trajectories) for index, one in enumerate(env[:episodes])]
    maze = maze_of(running[0].env)
    started = len(running)
    generator = policy_generator(agent, cell, seed)
    bound_hits = components = 0
    while running:
        actions = act(agent, cell, np.stack([episode.observation for episode in running]), generator)
        bound_hits += int(np.count_nonzero(np.abs(actions) >= _AT_BOUND))
        components += actions.size
        still: list[_Episode] = []
        for episode, action in zip(running, actions, strict=True):
            if not episode.step(action):
                still.append(episode)
                continue
            finished.append(episode)
            if started < episodes:
                still.append(_Episode.start(episode.env, started, seed, trajectories))
                started += 1
        running = still
    finished.sort(key=lambda episode: episode.index)
    return CellResult(
        cell=cell,
        returns=np.array([episode.total_reward for episode in finished], np.float64),
        successes=_successes(finished),
        lengths=np.array([episode.length for episode in finished], np.int64),
        paths=tuple(np.stack(e.positions) for e in finished if e.positions) if maze is not None else (),
        maze=maze,
        action_bound_fraction=bound_hits / components,
    )


@dataclass(slots=True)
class _Episode:
    """A running episode: its environment, where it stands and what it has gathered."""

    env: gymnasium.Env
    index: int
    observation: NDArray[np.float32]
    keeps_path: bool
    total_reward: float = 0.0
    length: int = 0
    success: float | None = None
    positions: list[NDArray[np.float32]] = field(default_factory=list)

    @classmethod
    def start(cls, env: gymnasium.Env, index: int, seed: int, trajectories: int) -> _Episode:
        """Reset `env` to the start of episode `index`."""
        observation, _ = env.reset(seed=episode_seed(seed, index))
        episode = cls(env, index, observation, keeps_path=index < trajectories)
        episode._record()
        return episode

    def step(self, action: NDArray[np.float32]) -> bool:
        """Take one step and return whether the episode is over."""
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        if not math.isfinite(float(reward)):
            raise EnvironmentFault(
                f"evaluation episode {self.index}: reward {reward} at step {self.length}; check the environment"
            )
        self.total_reward += float(reward)
        self.length += 1
        if "success" in info:
            self.success = max(self.success or 0.0, float(info["success"]))
        self._record()
        return bool(terminated or truncated)

    def _record(self) -> None:
        # The observations of all OGBench mazes begin with the agent's x and y.
        if self.keeps_path:
            self.positions.append(np.array(self.observation[:2], np.float32))


def _successes(finished: list[_Episode]) -> NDArray[np.bool_] | None:
    values = [episode.success for episode in finished]
    if any(value is None for value in values):
        return None
    return np.array([value is not None and value > 0 for value in values], np.bool_)
