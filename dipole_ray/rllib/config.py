"""`DIPOLEConfig`: RLlib's fluent config for DIPOLE, with the agent's and the loop's settings as its own keys."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Self

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.util.debug import log_once

from dipole_ray import settings
from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.config import RolloutConfig, RunConfig, TrainingConfig, require_equal_shares
from dipole_ray.envs.make import EnvConfig, env_dims
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.rllib.evaluate import evaluate_grid
from dipole_ray.rllib.offline_data import ArrowOfflineData
from dipole_ray.rllib.placement import workers_beside_driver
from dipole_ray.rllib.privates import is_frozen, sync_no_states, translated

AGENT_KEYS = tuple(settings.to_mapping(AgentConfig()))
TRAINING_KEYS = tuple(f.name for f in fields(TrainingConfig))
EVALUATION_KEYS = tuple(f.name for f in fields(EvalConfig))
RENAMED = {
    "lr": "learning_rate",
    "gamma": "discount",
    "train_batch_size": "batch_size",
    "train_batch_size_per_learner": "batch_size",
    "minibatch_size": "batch_size",
    "num_epochs": "updates_per_env_step",
}
"""RLlib's names for what DIPOLE calls by the field's own."""
OLD_STACK_KEYS = ("model", "optimizer", "replay_buffer_config")


class DIPOLEConfig(AlgorithmConfig):
    """Configures `DIPOLE`; every key of `AgentConfig` and `TrainingConfig` is a key here, also for Ray Tune.

    Example:
        config = (
            DIPOLEConfig()
            .environment("pointmaze-medium-navigate-singletask-task1-v0")
            .offline_data(input_="data/pointmaze")
            .training(preset="small", beta=3.0, omega=1.0, offline_learner_steps=4000)
            .env_runners(num_env_runners=2)
            .learners(num_learners=1)
        )
        algo = config.build_algo()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        from dipole_ray.rllib.algorithm import DIPOLE
        from dipole_ray.rllib.env_runner import DIPOLEEnvRunner

        super().__init__(algo_class=algo_class or DIPOLE)
        for section in (AgentConfig(), TrainingConfig(offline_learner_steps=0)):
            for key, value in settings.to_mapping(section).items():
                setattr(self, key, value)
        self.seed = 0
        self.env_runner_cls = DIPOLEEnvRunner
        self.offline_data_class = ArrowOfflineData
        self.num_envs_per_env_runner = 4
        self.rollout_fragment_length = 64
        self.num_gpus_per_learner: Any = "auto"
        self.learner_num_threads: Any = None
        self.env_runner_stall_s = RolloutConfig().stall_s
        self.replay_directory: str | None = None
        self.eval_settings: dict[str, Any] = settings.to_mapping(EvalConfig())
        self.custom_evaluation_function = evaluate_grid
        # Workers get versioned weights with each request; connector states do not exist here.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        sync_no_states(self)
        self.env_runner_health_probe_timeout_s = 5.0
        self.delay_between_env_runner_restarts_s = 5.0

    # ---- fluent setters ----

    def training(self, *, preset: str | None = None, learner_class: Any = None, **settings_: Any) -> Self:
        """Set keys of `AgentConfig` (beta, omega, expectile, ...) and of `TrainingConfig`.

        Args:
            preset: Name of an agent preset the other keys override.
            learner_class: As in RLlib.
            **settings_: Values, or Ray Tune search spaces for them.

        Raises:
            ConfigError: An unknown key; RLlib's names for our keys are pointed out.
        """
        if preset is not None:
            settings_ = {**settings.to_mapping(AgentConfig.preset(preset)), **settings_}
        if learner_class is not None:
            super().training(learner_class=learner_class)
        for key, value in settings_.items():
            if key not in (*AGENT_KEYS, *TRAINING_KEYS, "replay_directory"):
                raise ConfigError(_unknown(key, (*AGENT_KEYS, *TRAINING_KEYS)))
            setattr(self, key, value)
        return self

    def env_runners(self, *, stall_s: float | None = None, **kwargs: Any) -> Self:
        """Set RLlib's rollout settings, and `stall_s` (see `RolloutConfig`)."""
        if stall_s is not None:
            self.env_runner_stall_s = RolloutConfig(stall_s=stall_s).stall_s
        super().env_runners(**kwargs)
        return self

    def learners(self, *, num_threads: int | None = None, **kwargs: Any) -> Self:
        """Set RLlib's learner settings, and `num_threads`: torch threads of the learner (None = automatic)."""
        if num_threads is not None:
            self.learner_num_threads = num_threads
        super().learners(**kwargs)
        return self

    def evaluation(self, **kwargs: Any) -> Self:
        """Set RLlib's evaluation settings, and those of `EvalConfig` (episodes, omegas, candidates, ...)."""
        ours = {key: kwargs.pop(key) for key in list(kwargs) if key in EVALUATION_KEYS}
        self.eval_settings = {**self.eval_settings, **ours}
        super().evaluation(**kwargs)
        return self

    @classmethod
    def from_run(cls, run: RunConfig, dataset: str | None, replay_directory: str | None) -> DIPOLEConfig:
        """Return the algorithm's config for a run.

        Args:
            run: The run's config.
            dataset: Folder of the offline dataset, or None.
            replay_directory: Folder of the online ring, or None for the algorithm's own.
        """
        config = cls()
        env = settings.to_mapping(run.env)
        config.environment(env.pop("id"), env_config=env)
        if dataset is not None:
            config.offline_data(input_=dataset)
        config.training(**settings.to_mapping(run.agent), **settings.to_mapping(run.training))
        config.training(replay_directory=replay_directory)
        config.env_runners(
            num_env_runners=run.rollout.num_workers,
            num_envs_per_env_runner=run.rollout.envs_per_worker,
            rollout_fragment_length=run.rollout.fragment_steps,
            num_cpus_per_env_runner=run.rollout.cpus_per_worker,
            stall_s=run.rollout.stall_s,
        )
        config.learners(num_learners=run.learner.actors, num_threads=run.learner.num_threads)
        config.evaluation(**settings.to_mapping(run.evaluation))
        config.debugging(seed=run.seed)
        return config

    # ---- what the parts are built from ----

    def agent_settings(self) -> AgentConfig:
        """Return the agent's config."""
        return settings.from_mapping(AgentConfig, {key: getattr(self, key) for key in AGENT_KEYS})

    def training_settings(self) -> TrainingConfig:
        """Return the loop's config."""
        return settings.from_mapping(TrainingConfig, {key: getattr(self, key) for key in TRAINING_KEYS})

    def env_settings(self) -> EnvConfig:
        """Return the environment's config."""
        return settings.from_mapping(EnvConfig, {"id": self.env, **dict(self.env_config)}, "env")

    def evaluation_settings(self) -> EvalConfig:
        """Return the evaluation's config."""
        return settings.from_mapping(EvalConfig, self.eval_settings, "evaluation")

    def to_plain(self) -> dict[str, Any]:
        """Return what a checkpoint needs to build the same algorithm, JSON-able."""
        inputs = self.input_ if isinstance(self.input_, list) else [self.input_]
        return {
            "env": settings.to_mapping(self.env_settings()),
            "input": [str(path) for path in inputs] if self.is_offline else [],
            "agent": settings.to_mapping(self.agent_settings()),
            "training": settings.to_mapping(self.training_settings()),
            "evaluation": settings.to_mapping(self.evaluation_settings()),
            "seed": self.seed,
            "num_env_runners": self.num_env_runners,
            "num_envs_per_env_runner": self.num_envs_per_env_runner,
            "rollout_fragment_length": self.rollout_fragment_length,
            "num_cpus_per_env_runner": self.num_cpus_per_env_runner,
            "env_runner_stall_s": self.env_runner_stall_s,
            "num_learners": self.num_learners,
            "learner_num_threads": self.learner_num_threads,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> DIPOLEConfig:
        """Return the config that `to_plain` described."""
        config = cls()
        env = dict(plain["env"])
        config.environment(env.pop("id"), env_config=env)
        if plain["input"]:
            config.offline_data(input_=list(plain["input"]))
        config.training(**plain["agent"], **plain["training"])
        config.evaluation(**plain["evaluation"])
        for key in ("num_env_runners", "num_envs_per_env_runner", "rollout_fragment_length", "num_cpus_per_env_runner"):
            setattr(config, key, plain[key])
        config.env_runner_stall_s = float(plain.get("env_runner_stall_s", config.env_runner_stall_s))
        config.num_learners, config.learner_num_threads = plain["num_learners"], plain["learner_num_threads"]
        config.seed = plain["seed"]
        return config

    # ---- RLlib's hooks ----

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> Self:
        """Take keys as Ray Tune gives them: a partial dict, or a whole config's.

        Raises:
            ConfigError: A key that nothing would read.
        """
        taken = {}
        for key, value in config_dict.items():
            name = translated(self, key)
            is_of_tune = name.startswith("__") or name == "multiagent"
            if not hasattr(self, name) and not is_of_tune:
                raise ConfigError(_unknown(key, (*AGENT_KEYS, *TRAINING_KEYS)))
            if name in RENAMED and value != getattr(self, name):
                raise ConfigError(_unknown(key, ()))
            # RLlib would pass these defaults of its old stack on to `training`, where they mean nothing.
            if name not in OLD_STACK_KEYS or value != getattr(self, name):
                taken[key] = value
        super().update_from_dict(taken)
        return self

    def get_state(self) -> dict[str, Any]:
        """Return all settings; RLlib leaves out what is -1, its mark of deprecated keys, and a shift may be -1."""
        return {**super().get_state(), **{key: getattr(self, key) for key in (*AGENT_KEYS, *TRAINING_KEYS)}}

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of the module around the agent."""
        from dipole_ray.rllib.module import DIPOLERLModule

        return RLModuleSpec(module_class=DIPOLERLModule)

    def build_learner_group(self, **kwargs: Any) -> LearnerGroup:
        """Build our own learners, beside driver and replay where they fit; they need none of what RLlib's are given."""
        from dipole_ray.rllib.learner_client import LearnerClient

        return LearnerClient(self.copy())

    def get_default_learner_class(self) -> type:
        """Return the learner that steps the agent."""
        from dipole_ray.rllib.learner import DIPOLELearner

        return DIPOLELearner

    @property
    def model_config(self) -> dict[str, Any]:
        """The agent's settings, for every module wherever it is built."""
        agent = settings.to_mapping(self.agent_settings())
        return {**super().model_config, "agent": agent, "seed": self.seed or 0}

    def validate(self) -> None:
        """Check everything that would otherwise fail late, and settle what is automatic.

        Raises:
            ConfigError: A contradiction, with its remedy.
        """
        self._settle_automatic()
        log_once("DIPOLE_on_new_api_stack")  # takes the place of RLlib's warning that says no more than its name
        super().validate()
        agent = self.agent_settings()
        training = self.training_settings()
        self.evaluation_settings()
        if not isinstance(self.env, str):
            raise ConfigError(
                f"environment is {self.env!r}: give an id; an environment of your own gets one by "
                "gymnasium.register (then 'your_module:YourEnv-v0' also imports it in every worker)"
            )
        self._settle_spaces()  # an unknown environment would otherwise fail in an actor
        require_equal_shares(agent.batch_size, self.num_learners)
        if self.num_learners > 1 and 0 < self.num_gpus_per_learner < 1:
            raise ConfigError(
                f"num_gpus_per_learner is {self.num_gpus_per_learner} with num_learners={self.num_learners}: NCCL "
                "needs a GPU of its own for each learner; give each a whole one, or set num_learners=1"
            )
        if training.offline_learner_steps and not self.is_offline:
            raise ConfigError(
                f"offline_learner_steps is {training.offline_learner_steps} but there is no dataset: call "
                ".offline_data(input_=FOLDER), or set offline_learner_steps=0"
            )
        if agent.observation_normalization == "dataset" and not self.is_offline:
            raise ConfigError(
                "observation_normalization is 'dataset' but there is no dataset: call .offline_data(input_=FOLDER), or "
                "set it to 'none'"
            )
        if training.offline_fraction and not self.is_offline:
            raise ConfigError(
                f"offline_fraction is {training.offline_fraction} but there is no dataset: call "
                ".offline_data(input_=FOLDER), or leave the fraction None"
            )
        if not self.is_offline and not training.online_env_steps:
            raise ConfigError("online_env_steps is 0 and there is no dataset: nothing could be learned from")

    def _settle_spaces(self) -> None:
        """Find the spaces here, once: a worker that builds no environment while it starts cannot fail or hang there."""
        dims = env_dims(self.env_settings())
        if not is_frozen(self):
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (dims.observation_dim,), np.float32)
            self.action_space = gym.spaces.Box(-1.0, 1.0, (dims.action_dim,), np.float32)

    def _settle_automatic(self) -> None:
        """Resolve the learner's GPU and thread count for this machine or cluster."""
        if is_frozen(self):
            return
        if self.num_gpus_per_learner == "auto":
            if self.num_learners and ray.is_initialized():
                has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
            else:
                has_gpu = torch.cuda.is_available()
            self.num_gpus_per_learner = int(has_gpu)
        if self.learner_num_threads is None:
            cores = len(os.sched_getaffinity(0))
            # Beside remote learners this process is busy, too: it steps the environments if there are no workers.
            stepping = max(min(1, self.num_learners), workers_beside_driver(self))
            self.learner_num_threads = max(1, (cores - stepping) // max(1, self.num_learners))


def _unknown(key: str, valid: Sequence[str]) -> str:
    """Return the message for an unknown training key."""
    if key in RENAMED:
        return f"training key '{key}' is called '{RENAMED[key]}' in DIPOLE"
    near = difflib.get_close_matches(key, valid, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(sorted(valid))}"
    return f"unknown training key '{key}': {hint}"
