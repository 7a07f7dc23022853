"""The acting loop: environments, their running episodes and planned actions, stepped by a policy.

Collecting, evaluating and filming act by it. The environments are a plain list: for these a vector of processes costs
more in messages than it wins, so parallelism is one process a core, each with a loop of its own. N environments, n of
them with a running episode, B asked about, O the shape of an observation, A action dim, H actions of a chunk.
Observations may be several arrays by name, see `observations`.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from dipole_ray.columns import flattened, nested
from dipole_ray.envs.observations import Observation, Observations, as_seen, finite_rows, is_same, row_of, stacked
from dipole_ray.envs.standard import success_of
from dipole_ray.errors import EnvironmentFault

logger = logging.getLogger(__name__)


MAX_BROKEN = 100
"""Steps and resets in a row with NaN or infinity after which an environment counts as broken for good."""


@dataclass(kw_only=True, slots=True)
class Episode:
    """The episode of one environment so far."""

    seed: int
    """What the environment is reset with."""
    length: int = 0
    """Steps."""
    episode_return: float = 0.0
    """Undiscounted sum of rewards."""
    success: float = math.nan
    """Best success told so far in [0, 1]; NaN where none was."""

    def begin(self, observation: Observation) -> None:
        """Take the first observation (O,)."""

    def take(self, reward: float, observation: Observation, success: float) -> None:
        """Take what one step led to."""
        self.length += 1
        self.episode_return += reward
        self.success = float(np.fmax(self.success, success))


Act = Callable[[Any, Sequence[Any]], np.ndarray]
"""From observations (B, O), and the `Episode`s that they are of, to actions (B, A), or to chunks (B, H, A) of actions
to be taken one after another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """One step of every running episode: n rows, in the order of the environments."""

    indices: list[int]  # the environments
    episodes: list[Episode]  # which have taken the step
    observations: Observations  # (n, O), before it
    actions: np.ndarray  # (n, A)
    rewards: np.ndarray  # (n,)
    next_observations: Observations  # (n, O)
    terminated: np.ndarray  # (n,)
    truncated: np.ndarray  # (n,)
    broken: np.ndarray  # (n,), reward or next observation is not finite; never true where faults are not counted

    @property
    def done(self) -> np.ndarray:
        """Which episodes ended, (n,): terminated, truncated or broken."""
        ended: np.ndarray = self.terminated | self.truncated | self.broken
        return ended


class Faults:
    """Counts steps and resets in a row that gave NaN or infinity: warns of the first, gives up at the hundredth."""

    def __init__(self, env_id: str, worker: int) -> None:
        self._env_id, self._worker = env_id, worker
        self._in_a_row, self._has_warned = 0, False

    def note(self, count: int) -> None:
        """Take the number of faults among the environments' last steps or resets.

        Raises:
            EnvironmentFault: There were too many in a row.
        """
        self._in_a_row = self._in_a_row + count if count else 0
        if count and not self._has_warned:
            self._has_warned = True
            consequence = "such a step is left out (counted as rollout/dropped_env_steps) and a new episode begins"
            found = f"worker {self._worker}: environment '{self._env_id}' gave NaN or infinity"
            logger.warning("%s; %s", found, consequence)
        if self._in_a_row >= MAX_BROKEN:
            found = f"environment '{self._env_id}': {self._in_a_row} steps or resets in a row gave NaN or infinity"
            raise EnvironmentFault(f"{found}; repair it, or try it by hand with dipole_ray.envs.make.make_env")


class Listener(Protocol):
    """Who is told what happens in each environment, also while saved episodes are lived again."""

    def created(self, i: int) -> None:
        """Environment `i` is about to be reset."""

    def started(self, i: int, observation: Observation, info: dict[str, Any]) -> None:
        """It was reset."""

    def stepped(self, steps: Steps, row: int, info: dict[str, Any]) -> None:
        """The environment of one of the rows took its step; a broken one ends the episode."""


class ActingLoop:
    """Steps the running episodes of many environments together, and begins the next where one is over."""

    def __init__(
        self,
        envs: Sequence[gymnasium.Env],
        act: Act,
        next_episode: Callable[[int], Episode | None],
        *,
        faults: Faults | None = None,
        listener: Listener | None = None,
        precision: type[np.float32] | type[np.float64] = np.float64,
    ) -> None:
        """Act in `envs`, none of which has an episode until `start`.

        Args:
            envs: Environments of one kind; they stay open.
            act: Asked about the environments in which no action of a chunk is left.
            next_episode: Returns what an environment plays next; None leaves it out from then on.
            faults: Counts NaN and infinity, at which an episode ends; None lets them pass.
            listener: Told of every reset and step; None for nobody.
            precision: Type to which rewards and successes are rounded, such as that of stored rows.
        """
        self._envs, self._act, self._next_episode = envs, act, next_episode
        self._faults, self._listener, self._precision = faults, listener, precision
        self.episodes: dict[int, Episode] = {}
        """The running episodes by environment."""
        self._observations: dict[int, Observation] = {}
        self._taken: dict[int, list[np.ndarray]] = {}
        """Actions since the reset: with its seed enough to live an episode again."""
        self._planned: dict[int, deque[np.ndarray]] = {}
        """What is left of an environment's chunk."""

    @property
    def observations(self) -> Observations:
        """Where the running episodes stand, (n, O)."""
        return self._standing(sorted(self.episodes))

    def start(self, indices: Iterable[int]) -> None:
        """Begin the next episode in each of some environments, dropping the one that runs there."""
        broken = []
        for i in indices:
            self.episodes.pop(i, None)
            episode = self._next_episode(i)
            if episode is not None:
                self._reset(i, episode)
                if not finite_rows(self._standing([i])).all():
                    broken.append(i)
        if broken and self._faults is not None:
            self._faults.note(len(broken))
            self.start(broken)

    def step(self) -> Steps:
        """Take one step in every environment with a running episode."""
        running = sorted(self.episodes)
        steps = self._advance(running, self._actions(running))
        if self._faults is not None:
            self._faults.note(int(np.count_nonzero(steps.broken)))
        self.start([i for i, is_done in zip(running, steps.done, strict=True) if is_done])
        return steps

    def state(self) -> tuple[dict[str, np.ndarray], list[int]]:
        """Return arrays and seeds from which `load_state` continues exactly, if every environment has an episode."""
        if not self.episodes:
            return {}, []
        arrays = flattened({"observations": self.observations})
        for i, env in enumerate(self._envs):
            taken = np.asarray(self._taken[i], np.float32)
            arrays[f"actions_{i}"] = taken.reshape(-1, *(env.action_space.shape or ()))
            if self._planned[i]:
                arrays[f"planned_{i}"] = np.stack(self._planned[i])
        return arrays, [self.episodes[i].seed for i in sorted(self.episodes)]

    def load_state(self, arrays: Mapping[str, np.ndarray], seeds: Sequence[int]) -> None:
        """Live the saved episodes again by their seeds and actions; a simulator that strays starts a new episode."""
        standing = nested(arrays)["observations"]
        for i, seed in enumerate(seeds):
            self._reset(i, Episode(seed=seed))
            for action in arrays[f"actions_{i}"]:
                self._advance([i], action[None])
            self._planned[i].extend(arrays.get(f"planned_{i}", ()))
            if not is_same(self._observations[i], row_of(standing, i)):
                logger.warning("environment %d did not repeat its episode exactly: a new episode begins there", i)
                self.start([i])

    def _reset(self, i: int, episode: Episode) -> None:
        """Take an environment to the start of an episode; what was planned there was planned for another one."""
        if self._listener is not None:
            self._listener.created(i)
        observation, info = self._envs[i].reset(seed=episode.seed)
        self._observations[i] = as_seen(observation)
        self.episodes[i], self._taken[i], self._planned[i] = episode, [], deque()
        episode.begin(self._observations[i])
        if self._listener is not None:
            self._listener.started(i, self._observations[i], info)

    def _standing(self, indices: Sequence[int]) -> Observations:
        return stacked([self._observations[i] for i in indices])

    def _actions(self, running: list[int]) -> np.ndarray:
        """Return the next action of each environment (n, A), asking for more where none is left."""
        asked = [i for i in running if not self._planned[i]]
        if asked:
            answer = np.asarray(self._act(self._standing(asked), [self.episodes[i] for i in asked]), np.float32)
            for i, chunk in zip(asked, answer if answer.ndim == 3 else answer[:, None], strict=True):
                self._planned[i].extend(chunk)
        return np.stack([self._planned[i].popleft() for i in running])

    def _advance(self, running: list[int], actions: np.ndarray) -> Steps:
        """Step some environments and tell their episodes."""
        before = self._standing(running)
        stepped = [self._envs[i].step(action) for i, action in zip(running, actions, strict=True)]
        observations, numbers, terminated, truncated, infos = zip(*stepped, strict=True)
        after, rewards = stacked([*map(as_seen, observations)]), np.asarray(numbers, self._precision)
        broken = np.zeros(len(running), bool)
        if self._faults is not None:
            broken = ~np.isfinite(rewards) | ~finite_rows(after)
        episodes = [self.episodes[i] for i in running]
        for row, i in enumerate(running):
            self._observations[i] = observation = row_of(after, row)
            self._taken[i].append(actions[row].copy())
            success = float(self._precision(success_of(infos[row])))
            episodes[row].take(float(rewards[row]), observation, success)
        steps = Steps(
            indices=running,
            episodes=episodes,
            observations=before,
            actions=actions,
            rewards=rewards,
            next_observations=after,
            terminated=np.asarray(terminated, bool),
            truncated=np.asarray(truncated, bool),
            broken=broken,
        )
        if self._listener is not None:
            for row, info in enumerate(infos):
                self._listener.stepped(steps, row, info)
        return steps
