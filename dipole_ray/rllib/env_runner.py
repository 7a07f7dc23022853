"""The rollout worker: environments stepped together by one batched call of the guided policy, columns out.

N environments of this worker, T steps of a fragment, O observation dim, A action dim.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env.env_runner import EnvRunner
from torch import Tensor

from dipole_ray.agents.state import restore_generator
from dipole_ray.data.schema import Rows
from dipole_ray.envs.batch import EnvBatch
from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.errors import ConfigError, EnvironmentFault
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult, evaluate_cell
from dipole_ray.rllib.fragment import FragmentRecorder, FragmentReport
from dipole_ray.rllib.heartbeat import Heartbeat, Watched
from dipole_ray.rllib.module import DIPOLERLModule

logger = logging.getLogger(__name__)

MAX_BROKEN = 100
"""Steps and resets in a row with NaN or infinity after which an environment counts as broken for good."""


@dataclass(kw_only=True, slots=True)
class Episode:
    """The running episode of one environment; seed and actions are enough to live it again."""

    seed: int
    """What the environment was reset with."""
    actions: list[np.ndarray] = field(default_factory=list)
    """Every action (A,) since."""
    episode_return: float = 0.0
    """Undiscounted sum of rewards."""
    success: float = math.nan
    """Best success so far in [0, 1]; NaN where the task defines none."""

    def note(self, action: np.ndarray, reward: np.floating[Any], success: np.floating[Any]) -> None:
        """Take one step into the record."""
        self.actions.append(action.copy())
        self.episode_return += float(reward)
        self.success = float(np.fmax(self.success, success))


class DIPOLEEnvRunner(EnvRunner):
    """Collects for training, and plays evaluation episodes."""

    env: Any
    """An `EnvBatch`, made on first use."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.worker_index: int = int(kwargs.get("worker_index") or 0)
        if self.worker_index or self.config.num_learners:
            torch.set_num_threads(1)  # one core a worker: more threads would fight the learner for them
        self._env_config: EnvConfig = self.config.env_settings()
        self._spaces: tuple[gym.spaces.Box, gym.spaces.Box] = (self.config.observation_space, self.config.action_space)
        self.num_envs: int = self.config.num_envs_per_env_runner
        self.policy_version = 0
        self._heartbeat = self._begin_heartbeat() if self.worker_index else None
        self._incarnation = time.time_ns() if self.worker_index else 0
        self._seed_of_life = self._incarnation % 2**32 if self.worker_index and _was_restarted() else 0
        self._sequence = 0
        self._num_episodes = [0] * self.num_envs
        self._num_broken, self._has_warned = 0, False
        self._episodes: list[Episode] = []
        self._eval_envs: list[gym.Env] = []
        self._observations = np.zeros((self.num_envs, *self._spaces[0].shape), np.float32)
        self.make_module()
        self._generator = torch.Generator().manual_seed(self._derived_seed(0, 0))

    # ---- what RLlib asks of a runner ----

    def make_env(self) -> None:
        """Build the environments; they are made on first use, so that a driver beside remote workers has none."""
        self.env = EnvBatch([self._make_one() for _ in range(self.num_envs)])

    def make_module(self) -> None:
        """Build the module the worker acts with."""
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build()
        assert isinstance(self.module, DIPOLERLModule)

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """Return the spaces under RLlib's keys."""
        return {"__env__": self._spaces, "__env_single__": self._spaces, DEFAULT_MODULE_ID: self._spaces}

    def assert_healthy(self) -> None:
        """Check that the constructor finished."""
        assert self.module is not None

    def sample(self, *, num_timesteps: int | None = None, **kwargs: Any) -> Rows:
        """Collect at least `num_timesteps` environment steps and return their rows."""
        wanted = num_timesteps or self.num_envs * self.config.get_rollout_fragment_length()
        return self.collect(-(-wanted // self.num_envs)).rows

    def get_metrics(self) -> dict[str, Any]:
        """Return nothing: reports carry this worker's numbers to the algorithm."""
        return {}

    def get_state(self, components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return the module's weights under RLlib's key."""
        return {COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: self.module.get_state()}}

    def set_state(self, state: Any) -> None:
        """Take module weights that RLlib broadcasts."""
        module_state = state.get(COMPONENT_RL_MODULE)
        if module_state is not None:
            module_state = ray.get(module_state) if isinstance(module_state, ray.ObjectRef) else module_state
            self.module.set_state(module_state.get(DEFAULT_MODULE_ID, module_state))

    def stop(self) -> None:
        """Close the environments."""
        if self.env is not None:
            self.env.close()
            self.env = None
        for env in self._eval_envs:
            env.close()
        self._eval_envs = []

    def abandon_episodes(self) -> None:
        """Throw the running episodes and their environments away; the next request begins with new ones."""
        self.stop()
        self._episodes = []

    # ---- collecting ----

    def set_policy(self, version: int, state: Any) -> None:
        """Act with a published policy from now on, unless it is older than the present one."""
        if version > self.policy_version:
            self.module.agent.load_policy_state(ray.get(state) if isinstance(state, ray.ObjectRef) else state)
            self.policy_version = version

    def collect(self, num_steps: int, version: int = 0, policy: Any = None) -> FragmentReport:
        """Step every environment `num_steps` times with the guided policy at the configured omega and candidates.

        Args:
            num_steps: Steps per environment.
            version: Version of `policy`.
            policy: Weights to take first, or a reference to them; None keeps the present ones.

        Returns:
            The fragment: each piece of a trajectory followed by its closing row.
        """
        start = time.perf_counter()
        if policy is not None:
            self.set_policy(version, policy)
        if not self._episodes:
            self._start_episodes(range(self.num_envs))
        record = FragmentRecorder(self.num_envs)
        ended: list[Episode] = []
        everyone = np.arange(self.num_envs)
        for _ in range(num_steps):
            drawn = self.module.agent.sample_actions(self._observations, generator=self._generator, explore=True)
            actions = drawn.numpy()
            next_observations, rewards, terminated, truncated, successes = self.env.step(everyone, actions)
            record.add(self._observations, actions, rewards, terminated)
            self._observations = next_observations
            for episode, action, reward, success in zip(self._episodes, actions, rewards, successes, strict=True):
                episode.note(action, reward, success)
            broken = ~np.isfinite(rewards) | ~np.isfinite(next_observations).all(axis=1)
            done = terminated | truncated | broken
            for i in np.flatnonzero(done):
                record.close(int(i), self._observations[i], is_broken=bool(broken[i]))
                if not broken[i]:
                    ended.append(self._episodes[i])
            self._note_broken(int(np.count_nonzero(broken)))
            if done.any():
                self._observations = self._observations.copy()  # the recorder still holds the old array
                self._start_episodes(np.flatnonzero(done))
        rows = record.finish(self._observations)
        self._sequence += 1
        return FragmentReport(
            rows=rows,
            worker=self.worker_index,
            incarnation=self._incarnation,
            sequence=self._sequence,
            env_steps=num_steps * self.num_envs - record.dropped,
            dropped_env_steps=record.dropped,
            returns=[episode.episode_return for episode in ended],
            lengths=[len(episode.actions) for episode in ended],
            successes=[episode.success for episode in ended if not math.isnan(episode.success)],
            policy_version=self.policy_version,
            busy_s=time.perf_counter() - start,
        )

    def evaluate(
        self,
        cell: Cell,
        episodes: int,
        seed: int,
        num_envs: int,
        trajectories: int,
        version: int,
        policy: Any,
    ) -> CellResult:
        """Play evaluation episodes of one cell of the grid with a published policy, beside the training episodes."""
        self.set_policy(version, policy)
        if len(self._eval_envs) < num_envs:
            self._eval_envs += [self._make_one() for _ in range(num_envs - len(self._eval_envs))]
        envs = self._eval_envs[:num_envs]
        return evaluate_cell(self.module.agent, envs, cell, episodes=episodes, seed=seed, trajectories=trajectories)

    # ---- exact resume ----

    def begin_life(self, life: int) -> None:
        """Drop the running episodes and draw from streams of their own: a resumed run must not repeat its beginning."""
        self._seed_of_life = life
        if not self.worker_index:
            self._incarnation = life  # or the replay would take its inserts for those of the run's beginning
        self._num_episodes = [0] * self.num_envs
        self._episodes = []
        self._generator.manual_seed(self._derived_seed(0, 0))

    def rollout_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON from which `load_rollout_state` continues the running episodes exactly."""
        tensors = {"generator": self._generator.get_state()}
        for i, episode in enumerate(self._episodes):
            action_dim = self._spaces[1].shape[0]
            actions = np.stack(episode.actions) if episode.actions else np.zeros((0, action_dim), np.float32)
            tensors[f"actions_{i}"] = torch.from_numpy(actions)
        if self._episodes:
            tensors["observations"] = torch.from_numpy(self._observations.copy())
        seeds = [episode.seed for episode in self._episodes]
        counts = {"life": self._seed_of_life, "sequence": self._sequence, "num_episodes": list(self._num_episodes)}
        return tensors, {**counts, "seeds": seeds}

    def load_rollout_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Live the saved episodes again by their seeds and actions; a simulator that strays starts a new episode."""
        restore_generator(self._generator, tensors["generator"])
        self._sequence = int(state["sequence"])
        self._seed_of_life = self._incarnation = int(state.get("life", 0))
        if len(state["num_episodes"]) != self.num_envs:
            raise ConfigError(
                f"the checkpoint holds {len(state['num_episodes'])} running environments, "
                f"this run has {self.num_envs}: resume with rollout.envs_per_worker={len(state['num_episodes'])}"
            )
        self._num_episodes = [int(count) for count in state["num_episodes"]]
        self._episodes = []
        if not state["seeds"]:
            return
        self._open_envs()
        self._episodes = [Episode(seed=int(seed)) for seed in state["seeds"]]
        for i, episode in enumerate(self._episodes):
            one = np.array([i])
            self._observations[i] = self.env.reset(one, [episode.seed])[0]
            for action in tensors[f"actions_{i}"].numpy():
                next_observations, rewards, _, _, successes = self.env.step(one, action[None])
                self._observations[i] = next_observations[0]
                episode.note(action, rewards[0], successes[0])
            if not np.array_equal(self._observations[i], tensors["observations"][i].numpy()):
                logger.warning("environment %d did not repeat its episode exactly: a new episode begins there", i)
                self._start_episodes([i])

    # ---- inside ----

    def _begin_heartbeat(self) -> Heartbeat:
        actor = ray.get_runtime_context().get_actor_id()
        assert actor is not None
        return Heartbeat(actor, self.config.env_runner_stall_s)

    def _make_one(self) -> gym.Env:
        """Build one environment; in a worker of its own, one whose calls are watched."""
        env = make_env(self._env_config)
        return env if self._heartbeat is None else Watched(env, self._heartbeat)

    def _open_envs(self) -> None:
        if self.env is None:
            self.make_env()

    def _start_episodes(self, indices: Sequence[int] | range | np.ndarray) -> None:
        """Reset the environments at `indices`, each to the next seed of its own."""
        self._open_envs()
        if not self._episodes:
            self._episodes = [Episode(seed=0) for _ in range(self.num_envs)]
        chosen = np.asarray(list(indices))
        for i in chosen:
            self._num_episodes[i] += 1
            self._episodes[i] = Episode(seed=self._derived_seed(int(i) + 1, self._num_episodes[i]))
        self._observations[chosen] = self.env.reset(chosen, [self._episodes[i].seed for i in chosen])
        broken = chosen[~np.isfinite(self._observations[chosen]).all(axis=1)]
        if len(broken):
            self._note_broken(len(broken))
            self._start_episodes(broken)

    def _note_broken(self, count: int) -> None:
        """Count steps and resets in a row, of all environments, that gave NaN or infinity; warn first, then give up."""
        self._num_broken = self._num_broken + count if count else 0
        if count and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "worker %d: environment '%s' gave NaN or infinity; such a step is left out (counted as "
                "rollout/dropped_env_steps) and a new episode begins",
                *(self.worker_index, self._env_config.id),
            )
        if self._num_broken >= MAX_BROKEN:
            raise EnvironmentFault(
                f"environment '{self._env_config.id}': {self._num_broken} steps or resets in a row gave NaN or "
                "infinity; repair it, or try it by hand with dipole_ray.envs.make.make_env"
            )

    def _derived_seed(self, stream: int, count: int) -> int:
        """Return a seed that no other worker, environment, episode or life of a worker has."""
        entropy = [self.config.seed or 0, self.worker_index, self._seed_of_life, stream, count]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _was_restarted() -> bool:
    """Return whether Ray has restarted this actor: then its episodes must not repeat those of its first life."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's property uses a deprecated one of its own
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
