"""`DIPOLEConfig`: RLlib's fluent config for DIPOLE, with the agent's and the loop's settings as its own keys."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self, TypeVar

import ray
import torch
from ray import tune
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils import force_list
from ray.util.debug import log_once

from dipole_ray import settings
from dipole_ray.agents.config import of_older
from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.cluster import settle_address
from dipole_ray.cores import usable_cores
from dipole_ray.envs.make import EnvConfig, env_dims
from dipole_ray.envs.offset import settled_offset
from dipole_ray.envs.scenes import DRIVE
from dipole_ray.envs.spaces import spaces_of
from dipole_ray.errors import ConfigError, warn_once
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.files.place import absolute
from dipole_ray.rllib.callbacks import names_of as callback_names
from dipole_ray.rllib.callbacks import never_called
from dipole_ray.rllib.env_runner import DIPOLEEnvRunner
from dipole_ray.rllib.evaluate import evaluate_grid
from dipole_ray.rllib.learner import DIPOLELearner
from dipole_ray.rllib.learner_client import LearnerClient
from dipole_ray.rllib.module import DIPOLERLModule
from dipole_ray.rllib.placement import workers_beside_driver
from dipole_ray.rllib.privates import is_frozen, is_registered_with_tune, sync_no_states, translated
from dipole_ray.rllib.replay_actor import ArrowOfflineData
from dipole_ray.rllib.rllib_keys import FILLED, KEPT, REFUSED, RENAMED, Empty, require_possible
from dipole_ray.rllib.sections import (
    LearnerConfig,
    RolloutConfig,
    TrainingConfig,
    require_backbone,
    require_equal_shares,
    require_own_plans,
)

Section = TypeVar("Section")

SECTIONS: dict[str, Any] = {"agent": AgentConfig, "training": TrainingConfig, "evaluation": EvalConfig}
SECTION_OF = {key: name for name in ("agent", "training") for key in settings.to_mapping(SECTIONS[name]())}
"""The section of every key that is one of RLlib's config, too, for `training()` and Ray Tune."""
EVALUATION = "eval_settings"
"""Key of the evaluation's section in the dict that Ray Tune gets."""


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

        super().__init__(algo_class=algo_class or DIPOLE)
        self.seed = 0
        self.env_runner_cls = DIPOLEEnvRunner
        self.offline_data_class = ArrowOfflineData
        self.num_envs_per_env_runner = 4
        self.rollout_fragment_length = 64
        self.num_gpus_per_learner: Any = "auto"
        self.learner_num_threads: Any = None
        self.learner_matmul_precision = LearnerConfig().matmul_precision
        self.env_runner_stall_s = RolloutConfig().stall_s
        self.replay_directory: str | None = None
        self.custom_evaluation_function = evaluate_grid
        self.local_tf_session_args: dict[str, Any] = {}  # RLlib sets others where there are some, which is refused
        # Workers get versioned weights with each request; connector states do not exist here.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        sync_no_states(self)
        self.env_runner_health_probe_timeout_s = 5.0
        self.delay_between_env_runner_restarts_s = 5.0
        self.__dict__.update({key: Empty(key) for key in FILLED})
        self._automatic: dict[str, Any] = {}
        # A section with changes is a dict of plain values until it is checked: one may be a search space of Ray Tune,
        # or make sense only with what is set next.
        training = TrainingConfig(offline_learner_steps=0)
        self._sections: dict[str, Any] = {"agent": AgentConfig(), "training": training, "evaluation": EvalConfig()}

    # ---- our keys as attributes of RLlib's config ----

    def __getattr__(self, name: str) -> Any:
        """Return the value of a key of the agent's or the loop's section."""
        if name in SECTION_OF and "_sections" in self.__dict__:
            return self._values(SECTION_OF[name])[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __setattr__(self, key: str, value: Any) -> None:
        """Set a key of ours, or a setting of RLlib's; ConfigError where nothing would read it."""
        if key in SECTION_OF:
            self._change(SECTION_OF[key], {key: value})
            return
        is_complete = "_sections" in self.__dict__  # what RLlib's constructor and ours set are the defaults
        is_read = key not in REFUSED or (key == "_learner_class" and isinstance(value, type))
        if is_complete and not is_read and not self.in_evaluation and value != getattr(self, key):
            raise ConfigError(REFUSED[key])
        if is_complete:
            if not (key.startswith("_") or hasattr(self, key) or type(self) is not DIPOLEConfig):
                near = difflib.get_close_matches(key, [*SECTION_OF, *KEPT], n=1)
                hint = f"did you mean '{near[0]}'?" if near else "a class derived from DIPOLEConfig may have others"
                raise ConfigError(f"unknown setting '{key}': {hint}")
            require_possible(key, value)
        if key == "callbacks_class" and (lost := [name for one in force_list(value) for name in never_called(one)]):
            raise ConfigError(f"callbacks: '{lost[0]}' is called by nothing in DIPOLE; leave it out of the class")
        super().__setattr__(key, absolute_paths(value) if key in ("input_", "replay_directory") else value)

    def __setitem__(self, key: str, value: Any) -> None:
        """Set like an attribute; RLlib's own would go past the sections."""
        setattr(self, key, value)

    def _change(self, section: str, values: Mapping[str, Any]) -> None:
        if values:
            self._sections = {**self._sections, section: {**self._values(section), **values}}

    def _values(self, name: str) -> dict[str, Any]:
        """Return a section as plain values, checked or not."""
        section = self._sections[name]
        return dict(section) if isinstance(section, dict) else settings.to_mapping(section)

    def _section(self, cls: type[Section], name: str, where: str = "") -> Section:
        """Return a section, checked."""
        return settings.from_mapping(cls, self._sections[name], where)

    # ---- fluent setters ----

    def training(self, *, preset: str | None = None, replay_directory: str | None = None, **ours: Any) -> Self:
        """Set keys of `AgentConfig` (beta, omega, expectile, ...) and of `TrainingConfig`.

        Args:
            preset: Name of an agent preset the other keys override.
            replay_directory: Folder of the online ring; a place, which a checkpoint does not hold.
            **ours: Values, or Ray Tune search spaces for them.

        Raises:
            ConfigError: An unknown key; RLlib's names for our keys are pointed out.
        """
        unknown = next((key for key in ours if key not in SECTION_OF), None)
        if unknown is not None:
            raise ConfigError(_unknown(unknown))
        if preset is not None:
            ours = {**settings.to_mapping(AgentConfig.preset(preset)), **ours}
        for key, value in ours.items():
            setattr(self, key, value)
        if replay_directory is not None:
            self.replay_directory = replay_directory
        return self

    def env_runners(self, *, stall_s: float | None = None, **kwargs: Any) -> Self:
        """Set RLlib's rollout settings, and `stall_s` (see `RolloutConfig`)."""
        if stall_s is not None:
            self.env_runner_stall_s = RolloutConfig(stall_s=stall_s).stall_s
        super().env_runners(**kwargs)
        return self

    def learners(self, *, num_threads: int | None = None, matmul_precision: str | None = None, **kwargs: Any) -> Self:
        """Set RLlib's learner settings, and `num_threads` and `matmul_precision` (see `LearnerConfig`)."""
        if num_threads is not None:
            self.learner_num_threads = num_threads
        if matmul_precision is not None:
            self.learner_matmul_precision = LearnerConfig(matmul_precision=matmul_precision).matmul_precision
        # What the user sets is no longer automatic, and a checkpoint keeps it.
        self._automatic = {key: value for key, value in self._automatic.items() if key not in kwargs}
        super().learners(**kwargs)
        return self

    def evaluation(self, **kwargs: Any) -> Self:
        """Set RLlib's evaluation settings, and those of `EvalConfig` (episodes, omegas, candidates, ...)."""
        keys = {field.name for field in fields(EvalConfig)}
        self._change("evaluation", {key: value for key, value in kwargs.items() if key in keys})
        super().evaluation(**{key: value for key, value in kwargs.items() if key not in keys})
        return self

    @classmethod
    def from_sections(cls, env: EnvConfig, sections: Mapping[str, Any], inputs: Sequence[str]) -> DIPOLEConfig:
        """Return the config of an environment, of the typed sections in `SECTIONS`, and of folders of datasets."""
        config, plain = cls(), settings.to_mapping(env)
        config.environment(plain.pop("id"), env_config=plain)
        config._sections = dict(sections)
        return config.offline_data(input_=list(inputs)) if inputs else config

    # ---- what the parts are built from ----

    def agent_settings(self) -> AgentConfig:
        """Return the agent's config."""
        return self._section(AgentConfig, "agent")

    def training_settings(self) -> TrainingConfig:
        """Return the loop's config."""
        return self._section(TrainingConfig, "training")

    def env_settings(self) -> EnvConfig:
        """Return the environment's config: of RLlib's `env_config` what `EnvConfig` knows, the rest as its kwargs."""
        own = [field.name for field in fields(EnvConfig)]
        # What differs from a setting of ours by a letter is refused as such, with the right one.
        ours = {key: self.env_config[key] for key in self.env_config if difflib.get_close_matches(key, own, 1, 0.9)}
        kwargs = {key: value for key, value in self.env_config.items() if key not in ours}
        given = {"id": self.env, **ours, "kwargs": {**(ours.get("kwargs") or {}), **kwargs}}
        return settings.from_mapping(EnvConfig, given, "env")

    def evaluation_settings(self) -> EvalConfig:
        """Return the evaluation's config."""
        return self._section(EvalConfig, "evaluation", "evaluation")

    def to_plain(self) -> dict[str, Any]:
        """Return all that a checkpoint needs to build the same algorithm, JSON-able."""
        inputs = self.input_ if isinstance(self.input_, list) else [self.input_]
        return {
            "env": settings.to_mapping(self.env_settings()),
            "input": [str(path) for path in inputs] if self.is_offline else [],
            **{name: settings.to_mapping(self._section(cls, name)) for name, cls in SECTIONS.items()},
            **{key: getattr(self, key) for key in KEPT},
            **self._automatic,
            **({"callbacks": names} if (names := callback_names(self)) else {}),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> DIPOLEConfig:
        """Return the config that `to_plain` described; what older versions did not write keeps its default."""
        env = settings.from_mapping(EnvConfig, {"observation_offset": {}, **plain["env"]}, "env")
        plain = {**plain, "agent": of_older(plain["agent"])}
        sections = {name: settings.from_mapping(section, plain[name], name) for name, section in SECTIONS.items()}
        config = cls.from_sections(env, sections, plain["input"])
        for key in KEPT:
            setattr(config, key, plain.get(key, getattr(config, key)))
        return config

    # ---- RLlib's hooks ----

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> Self:
        """Take keys as Ray Tune gives them, some or a whole config's; ConfigError where nothing would read one."""
        own = self.to_dict()
        differing = {key: value for key, value in config_dict.items() if key not in own or value != own[key]}
        for key in differing:
            name = translated(self, key)
            is_of_tune = name.startswith("__") or name in (EVALUATION, "multiagent")
            if name in RENAMED or not (is_of_tune or hasattr(self, name)):
                raise ConfigError(_unknown(key))
        self.evaluation(**differing.pop(EVALUATION, {}))
        super().update_from_dict(differing)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by key, ours among RLlib's, as Ray Tune takes them."""
        settle_address()  # which Tune joins next
        plain = super().to_dict()
        for name in ("_sections", "_automatic"):
            del plain[name]
        return {**plain, **self._values("agent"), **self._values("training"), EVALUATION: self._values("evaluation")}

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of the module around the agent."""
        return RLModuleSpec(module_class=DIPOLERLModule)

    def build_learner_group(self, **kwargs: Any) -> LearnerGroup:
        """Build our own learners, beside driver and replay where they fit; they need none of what RLlib's are given."""
        return LearnerClient(self.copy())

    def get_default_learner_class(self) -> type:
        """Return the learner that steps the agent."""
        return DIPOLELearner

    @property
    def model_config(self) -> dict[str, Any]:
        """The agent's settings, for every module wherever it is built."""
        return {**super().model_config, "agent": self.agent_settings(), "seed": self.seed or 0}

    def validate(self) -> None:
        """Settle what is automatic; ConfigError, with the remedy, for a contradiction that else would fail late."""
        self._settle_automatic()
        log_once("DIPOLE_on_new_api_stack")  # takes the place of RLlib's warning that says no more than its name
        super().validate()
        agent, training, evaluation = self.agent_settings(), self.training_settings(), self.evaluation_settings()
        if not is_frozen(self):  # a frozen copy was validated before
            self._sections = {"agent": agent, "training": training, "evaluation": evaluation}
        if self.input_ != "sampler" and not self.is_offline:
            raise ConfigError(f"input_ is {self.input_!r}: give the folder of a dataset, or a list of folders")
        if not isinstance(self.env, str):
            raise ConfigError(
                f"environment is {self.env!r}: give an id; an environment of your own gets one by "
                "gymnasium.register (then 'your_module:YourEnv-v0' also imports it in every worker)"
            )
        if not is_frozen(self):  # what the data says holds from here on, in every worker and in checkpoints
            inputs = force_list(self.input_) if self.is_offline else []
            offset = settled_offset(self.env_settings(), inputs)
            self.environment(env_config={**dict(self.env_config), "observation_offset": offset})
        self._settle_spaces()  # an unknown environment would otherwise fail in an actor
        require_equal_shares(agent.batch_size, self.num_learners)
        require_backbone(agent, training)
        require_own_plans(agent, training, self.env_settings().driving, self.learner_matmul_precision)
        if self.num_learners > 1 and 0 < self.num_gpus_per_learner < 1:
            raise ConfigError(
                f"num_gpus_per_learner is {self.num_gpus_per_learner} with num_learners={self.num_learners}: NCCL "
                "needs a GPU of its own for each learner; give each a whole one, or set num_learners=1"
            )
        self._require_reachable(training)
        if self.is_offline:
            return
        unmet = "but there is no dataset: call .offline_data(input_=FOLDER), or"
        for name in ("clone_learner_steps", "offline_learner_steps"):
            if steps := getattr(training, name):
                raise ConfigError(f"{name} is {steps} {unmet} set {name}=0")
        if agent.observation_normalization == "dataset":
            raise ConfigError(f"observation_normalization is 'dataset' {unmet} set it to 'none'")
        if fraction := training.offline_fraction:
            raise ConfigError(f"offline_fraction is {fraction} {unmet} leave the fraction None")
        if not training.online_env_steps:
            raise ConfigError("online_env_steps is 0 and there is no dataset: nothing could be learned from")

    def _require_reachable(self, training: TrainingConfig) -> None:
        """Raise ConfigError where an iteration would wait for ever for steps that nobody takes."""
        if (least := self.min_sample_timesteps_per_iteration) and not training.online_env_steps:
            found = f"min_sample_timesteps_per_iteration is {least} with online_env_steps=0"
            raise ConfigError(f"{found}: no environment is stepped; give min_train_timesteps_per_iteration")
        if (least := self.min_train_timesteps_per_iteration) and not training.updates_per_env_step:
            found = f"min_train_timesteps_per_iteration is {least} with updates_per_env_step=0"
            raise ConfigError(f"{found}: online nothing is trained; give min_sample_timesteps_per_iteration")

    def _settle_spaces(self) -> None:
        """Find the spaces here, once: a worker that builds no environment while it starts cannot fail or hang there."""
        try:
            dims = env_dims(self.env_settings())
        except ConfigError as error:
            if not is_registered_with_tune(str(self.env)):
                raise
            found = f"'{self.env}' is a name of tune.register_env, which no other command and no checkpoint could find"
            remedy = "let a module of yours call gymnasium.register(NAME, entry_point=..., max_episode_steps=...)"
            raise ConfigError(f"{found}; {remedy}, and give the id 'your_module:NAME'") from error
        for warning in dims.warnings:
            warn_once(warning)
        if not is_frozen(self):
            observed, acted = spaces_of(dims.schema)
            self.__dict__.update(observation_space=observed, action_space=acted)  # a user's would be refused

    def _settle_driving(self) -> None:
        """Let plans be judged in the place of steps, and open what is seen of the scenes as the dataset."""
        from dipole_ray.collect.scenes import scene_dataset  # these need the extra `driving`
        from dipole_ray.rllib.scene_runner import SceneRunner

        if not self.is_offline:
            self.offline_data(input_=str(scene_dataset(self.env_settings().driving)))
        self.__dict__["env_runner_cls"] = SceneRunner  # a user's would be refused

    def _settle_automatic(self) -> None:
        """Resolve the learner's GPU and thread count for this machine or cluster, and what scenes bring along."""
        if is_frozen(self):
            return
        if self.env == DRIVE:
            self._settle_driving()
        if self.num_gpus_per_learner == "auto":
            asks_cluster = self.num_learners and ray.is_initialized()
            has_gpu = ray.cluster_resources().get("GPU", 0) >= 1 if asks_cluster else torch.cuda.is_available()
            self.num_gpus_per_learner = int(has_gpu)
            self._automatic = {"num_gpus_per_learner": "auto"}  # the checkpoint may be continued on another machine
        if self.learner_num_threads is None:
            # Beside remote learners this process is busy, too: it steps the environments if there are no workers.
            stepping = max(min(1, self.num_learners), workers_beside_driver(self))
            self.learner_num_threads = max(1, (usable_cores() - stepping) // max(1, self.num_learners))


def absolute_paths(value: Any) -> Any:
    """Return paths, or Tune's choices of them, as they are meant here: relative ones begin at the working directory.

    In a trial of Tune, whose working directory is its own folder, they begin where the trial's process was started.
    """
    if isinstance(value, tune.search.sample.Categorical):
        return tune.choice([absolute_paths(one) for one in value.categories])
    if isinstance(value, list | tuple):
        return [absolute_paths(one) for one in value]
    if isinstance(value, dict):  # {"grid_search": [...]}
        return {key: absolute_paths(one) for key, one in value.items()}
    if not isinstance(value, str | Path) or value == "sampler":
        return value
    return str(absolute(value, os.environ.get("TUNE_ORIG_WORKING_DIR", "")))


def _unknown(key: str) -> str:
    """Return the message for an unknown training key."""
    if key in RENAMED:
        return REFUSED[key]
    near = difflib.get_close_matches(key, SECTION_OF, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(sorted(SECTION_OF))}"
    return f"unknown training key '{key}': {hint}"
