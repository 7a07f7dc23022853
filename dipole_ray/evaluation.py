"""Evaluate one policy over a grid of omega and candidates: return, success, length, intervals, paths.

The unit of work is a cell of the grid (`Cell`), which a caller may run anywhere; nothing here knows Ray.
Inside a cell all running episodes act through one batched policy call per step, because the cost of a call
hardly depends on the number of rows. Every cell starts its episodes from the same states (common random
numbers), so that differences between cells come from the policies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipole_ray.agents.config import AgentConfig
from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.errors import ConfigError, EnvironmentFault, NonFiniteError
from dipole_ray.report import BC, Row
from dipole_ray.statistics import Interval, bootstrap_interval, wilson_interval
from dipole_ray.trajectories import Maze, Trajectory, maze_of

PolicyName = Literal["guided", "bc"]
IFQL = "IFQL"
"""Method name where critics learned by IQL choose among candidates of the behaviour-cloned policy."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What an evaluation measures."""

    episodes: int = 50
    """Episodes per cell, at least 1."""
    omegas: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Greediness of the guided policy, each >= -1; 0 is the positive policy alone, -1 the negative one."""
    candidates: tuple[int, ...] = (1, 16)
    """Actions sampled per step, of which the one with the highest Q is taken; each >= 1. The paper uses 1 and 32."""
    bc: bool = True
    """Also evaluate the behaviour-cloned policy, where the agent trained one."""
    num_envs: int = 50
    """Environments stepped together, at most one an episode. Changing it changes the policy's random numbers."""
    seed: int = 0
    """Seed of the start states and of the policy's noise; independent of the training seed."""
    confidence: float = 0.95
    """Coverage of the intervals, in (0, 1)."""
    trajectories: int = 20
    """Episodes per cell whose path is kept for the maze picture; only mazes have one."""
    every_learner_steps: int = 0
    """Updates between two evaluations of the chosen cell during training, for the learning curves; 0 = none."""
    interval_episodes: int = 10
    """Episodes of each evaluation during training, at least 1."""
    interval_grid: bool = False
    """Evaluations during training play the whole grid, each on episodes of its own (`seed` plus its number), instead
    of the chosen cell alone on the same episodes again and again; benchmarks average over them."""
    videos: int = 0
    """Episodes of the preset's cell rendered to video after the counted ones; they enter no statistic."""

    def __post_init__(self) -> None:
        """Reject what cannot be evaluated."""
        for name in ("episodes", "num_envs", "interval_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluation.{name} must be at least 1; found {getattr(self, name)}")
        for name in ("trajectories", "videos", "seed", "every_learner_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"evaluation.{name} must not be negative; found {getattr(self, name)}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"evaluation.confidence must lie strictly between 0 and 1; found {self.confidence}")
        if not self.candidates or any(count < 1 for count in self.candidates):
            raise ConfigError(
                f"evaluation.candidates needs counts of at least 1, such as [1, 16]; found {self.candidates}"
            )
        if any(not math.isfinite(omega) or omega < -1 for omega in self.omegas):
            raise ConfigError(f"evaluation.omegas must be finite and at least -1; found {self.omegas}")
        if not self.omegas and not self.bc:
            raise ConfigError(
                "evaluation.omegas is empty and evaluation.bc is false: nothing is left to evaluate; name an omega"
            )


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to act with a trained agent."""

    policy: PolicyName = "guided"
    """`guided` by omega, or the behaviour-cloned policy `bc`."""
    omega: float | None = 1.0
    """Greediness of the guided policy, >= -1; None for `bc`."""
    candidates: int = 1
    """Actions sampled per step, of which the best by Q is taken."""

    def __post_init__(self) -> None:
        """Reject an omega where none applies, and its absence where one does."""
        if (self.policy == "bc") != (self.omega is None):
            raise ConfigError(f"policy '{self.policy}' cannot have omega {self.omega}; only 'bc' has None")

    def __str__(self) -> str:
        name = "BC" if self.omega is None else f"omega {self.omega:g}"
        return f"{name}, {self.candidates} candidate{'s' * (self.candidates != 1)}"


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


def grid(config: EvalConfig, has_bc: bool) -> list[Cell]:
    """Return the cells to evaluate: per number of candidates, BC first and then omega rising.

    Args:
        config: What to evaluate.
        has_bc: Whether the agent trained an unweighted field.
    """
    cells = []
    for candidates in sorted(set(config.candidates)):
        if config.bc and has_bc:
            cells.append(Cell("bc", None, candidates))
        cells.extend(Cell("guided", omega, candidates) for omega in sorted(set(config.omegas)))
    if not cells:
        raise ConfigError("evaluation.omegas is empty and this agent trained no BC policy; name an omega, such as 1")
    return cells


def method_name(agent: AgentConfig) -> str:
    """Return what tables call the method that a config describes, such as `DIPOLE`, `IFQL` or `FQL`."""
    if agent.algorithm != "dipole":
        return agent.algorithm.upper()
    if agent.weight_scheme == "bc" and agent.bootstrap == "value":
        return IFQL
    return agent.weight_scheme.upper()


def chosen_cell(agent: AgentConfig) -> Cell:
    """Return the cell the agent's own config acts with."""
    if agent.weight_scheme == "bc":
        return Cell("bc", None, agent.num_candidates)
    return Cell("guided", agent.omega, agent.num_candidates)


def cells_of(config: EvalConfig, agent: AgentConfig) -> list[Cell]:
    """Return the cells of the grid that this agent can act in: one with a single field knows no omega."""
    if agent.is_guided:
        return grid(config, "bc" in agent.fields)
    own = [replace(chosen_cell(agent), candidates=count) for count in sorted(set(config.candidates))]
    added = agent.weight_scheme != "bc" and agent.train_bc and config.bc
    return [Cell("bc", None, cell.candidates) for cell in own if added] + own


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


def summarize(result: CellResult, method: str = "DIPOLE", confidence: float = 0.95) -> Row:
    """Return the table row of a cell: Wilson's interval for success, a seeded bootstrap for the means.

    Args:
        result: The episodes.
        method: `method_name` of the agent. Rows of the behaviour-cloned policy are called `BC`, but for IFQL's with
            candidates to choose from.
        confidence: Coverage of the intervals.
    """
    success, success_interval = None, None
    if result.successes is not None:
        success = float(result.successes.mean())
        success_interval = wilson_interval(int(result.successes.sum()), len(result.successes), confidence)
    is_cloned = result.cell.policy == "bc" and not (method == IFQL and result.cell.candidates > 1)
    return_interval = _none_if_undefined(bootstrap_interval(result.returns, confidence))
    length_interval = _none_if_undefined(bootstrap_interval(result.lengths, confidence))
    return {
        "method": BC if is_cloned else method,
        "omega": result.cell.omega,
        "candidates": result.cell.candidates,
        "episodes": len(result.returns),
        "success": success,
        "success_low": success_interval.low if success_interval else None,
        "success_high": success_interval.high if success_interval else None,
        "return": float(result.returns.mean()),
        "return_low": return_interval.low if return_interval else None,
        "return_high": return_interval.high if return_interval else None,
        "length": float(result.lengths.mean()),
        "length_low": length_interval.low if length_interval else None,
        "length_high": length_interval.high if length_interval else None,
        "confidence": confidence,
        "action_bound_fraction": result.action_bound_fraction,
    }


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


def _none_if_undefined(interval: Interval) -> Interval | None:
    return None if math.isnan(interval.low) else interval
