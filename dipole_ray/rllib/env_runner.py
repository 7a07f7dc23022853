"""The rollout worker: an acting loop behind what RLlib asks of an env runner, columns out."""

import math
import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env.env_runner import EnvRunner
from torch import Tensor

from dipole_ray.agents.adapters import with_backbone
from dipole_ray.agents.state import restore_generator
from dipole_ray.data.schema import Rows
from dipole_ray.envs.acting import ActingLoop, Episode, Faults
from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.envs.observations import Observations
from dipole_ray.envs.spaces import schema_of
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.pieces import Piece
from dipole_ray.evaluation.play import CellResult, evaluate_cells
from dipole_ray.rllib.callbacks import WorkerCallbacks
from dipole_ray.rllib.experience import FragmentRecorder, FragmentReport
from dipole_ray.rllib.heartbeat import Heartbeat, Watched
from dipole_ray.rllib.module import DIPOLERLModule
from dipole_ray.stopping import spare_this_process


class DIPOLEEnvRunner(EnvRunner):
    """Collects for training, and plays evaluation episodes."""

    env: Any  # the environments, made on first use, so that a driver beside remote workers has none

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.worker_index: int = int(kwargs.get("worker_index") or 0)
        if self.worker_index:
            spare_this_process()
        if self.worker_index or self.config.num_learners:
            torch.set_num_threads(1)  # one core a worker: more threads would fight the learner for them
        self._env_config: EnvConfig = self.config.env_settings()
        self.num_envs: int = self.config.num_envs_per_env_runner
        self.policy_version = 0
        actor = ray.get_runtime_context().get_actor_id() if self.worker_index else None
        self._heartbeat = None if actor is None else Heartbeat(actor, self.config.env_runner_stall_s)
        # The replay tells the inserts of one life from another's by this; the driver's own are reproducible.
        self._incarnation = secrets.randbits(62) if self.worker_index else 0
        self._seed_of_life = self._incarnation % 2**32 if self.worker_index and _was_restarted() else 0
        self._sequence = 0
        self._num_episodes = [0] * self.num_envs
        self._faults = Faults(self._env_config.id, self.worker_index)
        self._loop: ActingLoop | None = None
        self._eval_envs: list[gym.Env] = []
        self.make_module()
        self._callbacks = WorkerCallbacks(self)
        self._generator = torch.Generator().manual_seed(self._derived_seed(0, 0))

    # ---- what RLlib asks of a runner ----

    def make_env(self) -> None:
        """Build the environments, and the loop that acts in them."""
        self.env = [self._make_one() for _ in range(self.num_envs)]
        self._callbacks.take_environments(self.env)
        how: Any = {"faults": self._faults, "listener": self._callbacks.listener, "precision": np.float32}
        self._loop = ActingLoop(self.env, self._act, self._next_episode, **how)

    def make_module(self) -> None:
        """Build the module the worker acts with."""
        self.module = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True).build()
        assert isinstance(self.module, DIPOLERLModule)

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """Return the spaces under RLlib's keys."""
        spaces = (self.config.observation_space, self.config.action_space)
        return {"__env__": spaces, "__env_single__": spaces, DEFAULT_MODULE_ID: spaces}

    def assert_healthy(self) -> None:
        """Check that the constructor finished."""
        assert self.module is not None

    def sample(self, *, num_timesteps: int | None = None, **kwargs: Any) -> Rows:
        """Collect at least `num_timesteps` environment steps and return their rows."""
        wanted = num_timesteps or self.num_envs * self.config.get_rollout_fragment_length()
        return self.collect(-(-wanted // self.num_envs)).rows

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
        """Close the environments and drop their episodes; the next request begins with new ones."""
        for env in [*(self.env or ()), *self._eval_envs]:
            env.close()
        self.env, self._loop, self._eval_envs = None, None, []

    # ---- collecting ----

    def set_policy(self, version: int, state: Any, backbone: Any = None) -> None:
        """Act with a published policy from now on; the backbone, see `PublishedPolicy`, is fetched where it differs."""
        if version != self.policy_version:
            tensors = _fetched(state)
            if backbone is not None and self.module.policy.lacks_backbone(tensors):
                tensors = with_backbone(tensors, _fetched(backbone[0]), "fields.")
            self.module.policy.load_policy_state(tensors)
            self.policy_version = version

    def collect(self, num_steps: int, version: int = 0, policy: Any = None, backbone: Any = None) -> FragmentReport:
        """Step every environment `num_steps` times with the guided policy at the configured omega and candidates.

        A `policy`, weights of a `version` or a reference to them, is taken first. In the fragment a closing row
        follows each piece of a trajectory.
        """
        start = time.perf_counter()
        if policy is not None:
            self.set_policy(version, policy, backbone)
        loop = self._acting_loop()
        if len(loop.episodes) < self.num_envs:
            loop.start(range(self.num_envs))
        self._callbacks.begin_fragment()
        record = FragmentRecorder(self.num_envs, schema_of(self.config.observation_space, self.config.action_space))
        for _ in range(num_steps):
            record.add(loop.step())
        self._sequence += 1
        rows = self._callbacks.edited(record.finish(loop.observations))
        return FragmentReport(
            rows=rows,
            worker=self.worker_index,
            incarnation=self._incarnation,
            sequence=self._sequence,
            env_steps=int(np.count_nonzero(rows["remaining"])) if rows else 0,
            dropped_env_steps=record.dropped,
            returns=[episode.episode_return for episode in record.ended],
            lengths=[episode.length for episode in record.ended],
            successes=[None if math.isnan(episode.success) else episode.success for episode in record.ended],
            policy_version=self.policy_version,
            busy_s=time.perf_counter() - start,
            logged=self._callbacks.metrics(),
        )

    def evaluate(
        self, piece: Piece, *, num_envs: int, version: int, policy: Any, backbone: Any = None, **how: Any
    ) -> tuple[Piece, list[CellResult]]:
        """Play a piece of a grid with a published policy, beside the training episodes; `how` is `evaluate_cells`'s.

        The policy may be older than the one that acted last, which the next request brings along again.
        """
        self.set_policy(version, policy, backbone)
        num_envs = min(num_envs, piece.num_episodes)
        more = [self._make_one() for _ in range(num_envs - len(self._eval_envs))]
        self._eval_envs += more
        envs, listener = self._eval_envs[:num_envs], self._callbacks.listener
        # Whoever listens is told of one cell at a time.
        results: list[CellResult] = []
        for cells in [piece.cells] if listener is None else [(cell,) for cell in piece.cells]:
            with self._callbacks.in_evaluation(envs, are_new=bool(more)) as metrics:
                how |= {"episodes": piece.episodes, "listener": listener}
                played = evaluate_cells(self.module.policy, envs, cells, **how)
            more = []
            results += [replace(one, logged=() if metrics.logged is None else (metrics.logged,)) for one in played]
        return piece, results

    # ---- exact resume ----

    def begin_life(self, life: int) -> None:
        """Drop the running episodes and draw from streams of their own: a resumed run must not repeat its beginning."""
        self._seed_of_life = life
        if not self.worker_index:
            self._incarnation = life  # or the replay would take its inserts for those of the run's beginning
        self._num_episodes = [0] * self.num_envs
        if self._loop is not None:
            self._loop.episodes.clear()
        self._generator.manual_seed(self._derived_seed(0, 0))

    def rollout_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON from which `load_rollout_state` continues the running episodes exactly."""
        arrays, seeds = ({}, []) if self._loop is None else self._loop.state()
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        counts = {"life": self._seed_of_life, "sequence": self._sequence, "num_episodes": list(self._num_episodes)}
        return {"generator": self._generator.get_state(), **tensors}, {**counts, "seeds": seeds}

    def load_rollout_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Live the saved episodes again by their seeds and actions; a simulator that strays starts a new episode."""
        restore_generator(self._generator, tensors["generator"])
        self._sequence = int(state["sequence"])
        self._seed_of_life = self._incarnation = int(state.get("life", 0))
        self._num_episodes = [int(count) for count in state["num_episodes"]]
        if (saved := len(self._num_episodes)) != self.num_envs:
            raise ConfigError(
                f"the checkpoint holds {saved} running environments, this run has {self.num_envs}: resume with "
                f"rollout.envs_per_worker={saved}"
            )
        if self._loop is not None:
            self._loop.episodes.clear()
        if state["seeds"]:
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            self._acting_loop().load_state(arrays, [int(seed) for seed in state["seeds"]])

    # ---- inside ----

    def _make_one(self) -> gym.Env:
        """Build one environment; in a worker of its own, one whose calls are watched."""
        env = make_env(self._env_config)
        return env if self._heartbeat is None else Watched(env, self._heartbeat)

    def _acting_loop(self) -> ActingLoop:
        if self._loop is None:
            self.make_env()
        assert self._loop is not None
        return self._loop

    def _act(self, observations: Observations, episodes: Sequence[Episode]) -> np.ndarray:
        return np.asarray(self.module.policy.sample_actions(observations, generator=self._generator, explore=True))

    def _next_episode(self, i: int) -> Episode:
        """Return the episode that environment `i` plays next, with a seed of its own."""
        self._num_episodes[i] += 1
        return Episode(seed=self._derived_seed(i + 1, self._num_episodes[i]))

    def _derived_seed(self, stream: int, count: int) -> int:
        """Return a seed that no other worker, environment, episode or life of a worker has."""
        entropy = [self.config.seed or 0, self.worker_index, self._seed_of_life, stream, count]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _was_restarted() -> bool:
    """Return whether Ray has restarted this actor: then its episodes must not repeat those of its first life."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's property uses a deprecated one of its own
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def _fetched(tensors: Any) -> Any:
    """Return tensors, or those that a reference means."""
    return ray.get(tensors) if isinstance(tensors, ray.ObjectRef) else tensors
