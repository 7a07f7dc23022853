"""Which of RLlib's own settings are read and saved, and what takes the place of all the others."""

import math
from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from dipole_ray.agents.precision import PRECISIONS
from dipole_ray.errors import ConfigError
from dipole_ray.rllib.callbacks import IN_DRIVER, IN_WORKERS
from dipole_ray.rllib.sections import RolloutConfig

READ = (
    "placement_strategy num_cpus_for_main_process custom_resources_for_main_process "
    "num_env_runners num_envs_per_env_runner rollout_fragment_length num_cpus_per_env_runner num_gpus_per_env_runner "
    "custom_resources_per_env_runner validate_env_runners_after_construction max_requests_in_flight_per_env_runner "
    "env_runner_stall_s num_learners num_cpus_per_learner num_gpus_per_learner custom_resources_per_learner "
    "local_gpu_idx learner_num_threads learner_matmul_precision evaluation_interval "
    "evaluation_num_env_runners evaluation_unhealthy_workers_timeout_s "
    "min_time_s_per_iteration min_train_timesteps_per_iteration min_sample_timesteps_per_iteration log_level seed"
)
"""Attributes of RLlib's config that RLlib, or we, read."""
KEPT = tuple(READ.split())
"""All of them; a checkpoint holds them as they are."""
CALLBACKS = ("callbacks_class", *(f"callbacks_{name}" for name in (*IN_DRIVER, *IN_WORKERS)))
"""Those that are called; a checkpoint holds their names only."""
NOT_JUDGED = (
    *CALLBACKS,
    "algo_class",
    "env",
    "env_config",
    "input_",
    "in_evaluation",
    "simple_optimizer",
    "_is_frozen",
)
"""Attributes that are saved under names of ours, or that RLlib alone sets."""
RENAMED = {
    "lr": "learning_rate",
    "gamma": "discount",
    "train_batch_size": "batch_size",
    "train_batch_size_per_learner": "batch_size",
    "minibatch_size": "batch_size",
    "num_epochs": "updates_per_env_step",
}
"""RLlib's names for what DIPOLE calls by the field's own."""
EVALUATION = "evaluation(episodes=..., omegas=..., candidates=..., evaluation_interval=...) says what is played"
OFFLINE = "there is no evaluation on data; on_evaluate_start and on_evaluate_end are called around the one that plays"
FAILURES = (
    "a worker that fails always starts again, after 1, 2, 4, ... s, and is retired after five failures in a row; "
    "env_runners(stall_s=...) says when a silent one counts as failed"
)
INSTEAD = {
    "extra_python_environs_for_driver": "ray.init(runtime_env={'env_vars': {...}}) sets variables for all processes",
    "num_gpus": "learners(num_gpus_per_learner=...) and env_runners(num_gpus_per_env_runner=...) reserve GPUs",
    "framework_str": "training(...) describes the networks and updates, which are torch's",
    "observation_space": "environment(id, env_config=...) makes the environment with its spaces, and "
    "training(reward_scale=..., observation_normalization=...) shapes what comes from it",
    "env_runner_cls": "env_runners(num_env_runners=..., num_envs_per_env_runner=..., rollout_fragment_length=..., "
    "stall_s=...) says how environments are stepped",
    "num_aggregator_actors_per_learner": "learners(num_learners=..., num_gpus_per_learner=..., num_threads=...) says "
    "where updates are computed",
    "gamma": "training(...) takes the keys of AgentConfig and TrainingConfig",
    "_learner_class": "a class derived from DIPOLELearner is, which a checkpoint does not hold",
    "callbacks_class": "there are no such objects here; callbacks(on_episode_end=..., on_sample_end=..., "
    "on_evaluate_end=..., on_train_result=...) are called with episodes and results",
    "explore": "training(omega=..., num_candidates=...) says how the policy acts",
    "enable_rl_module_and_learner": "DIPOLE runs on RLlib's new API stack; leave it out",
    "count_steps_by": "there is one agent with one policy; make one environment of several agents",
    "offline_data_class": "offline_data(input_=FOLDER) takes datasets that 'dipole data import' made",
    "evaluation_duration": EVALUATION,
    "keep_per_episode_custom_metrics": "algo.train() returns all metrics there are",
    "export_native_model_files": "algo.save_to_path(FOLDER) writes everything, as safetensors and JSON",
    "log_sys_usage": "leave it out; environment('Pendulum-v1') is quick enough for a trial",
    "evaluation_parallel_to_training": "evaluation takes the weights between two iterations; "
    "evaluation(evaluation_num_env_runners=...) plays it on workers of its own",
    "evaluation_error_after_n_consecutive_skips": "no evaluation is skipped: what a lost worker was to play is played "
    "by another, and once every worker has failed five times in a row the run ends with the last error",
    "evaluation_force_reset_envs_before_iteration": EVALUATION,
    "callbacks_on_offline_eval_runners_recreated": OFFLINE,
    "callbacks_on_evaluate_offline_start": OFFLINE,
    "restart_failed_env_runners": FAILURES,
    "_model_config": "training(hidden_dims=...) describes the networks",
    "_validate_config": "it belongs to RLlib's own algorithms; leave it out",
}
"""What to use instead of RLlib's other settings: by the first it holds for, in the order of RLlib's constructor."""


def _refused() -> dict[str, str]:
    """Return the message about every attribute of RLlib's that nothing reads."""
    messages, instead = {}, ""
    for key in vars(AlgorithmConfig()):
        instead = INSTEAD.get(key, instead)
        name = key.removeprefix("_")
        if key not in (*KEPT, *NOT_JUDGED):
            messages[key] = f"'{name}' is read by nothing in DIPOLE: {instead}"
    renamed = {key: f"training key '{key}' is called '{name}' in DIPOLE" for key, name in RENAMED.items()}
    return {**messages, **renamed, "_train_batch_size_per_learner": renamed["train_batch_size_per_learner"]}


REFUSED = _refused()
"""What is said about a setting of RLlib's that nothing would read, where somebody sets it."""
LEAST = dict.fromkeys(
    [
        "num_env_runners",
        "evaluation_num_env_runners",
        "num_learners",
        "evaluation_interval",
        "seed",
        "local_gpu_idx",
        "min_train_timesteps_per_iteration",
        "min_sample_timesteps_per_iteration",
    ],
    0,
) | dict.fromkeys(
    [
        "num_envs_per_env_runner",
        "rollout_fragment_length",
        "max_requests_in_flight_per_env_runner",
        "learner_num_threads",
    ],
    1,
)
"""Settings of RLlib's that are whole numbers, or None, with the least that each may be."""
AMOUNTS = tuple(f"num_{kind}_per_{owner}" for kind in ("cpus", "gpus") for owner in ("env_runner", "learner"))
AMOUNTS += ("num_cpus_for_main_process", "min_time_s_per_iteration", "evaluation_unhealthy_workers_timeout_s")
"""Those that are numbers from 0 on, None or auto."""
CHOICES = {
    "placement_strategy": ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
    "log_level": ("DEBUG", "INFO", "WARN", "ERROR"),
    "learner_matmul_precision": PRECISIONS,
}
"""Those that are one of some words, or None."""


def require_possible(key: str, value: Any) -> None:
    """Raise ConfigError for a value of RLlib's setting that nothing could obey; Tune's search spaces are not judged."""
    if not isinstance(value, int | float | str):
        if key == "env_config" and not isinstance(value, Mapping):
            raise ConfigError(f"env_config is {value!r}: give a dict, such as {{'max_episode_steps': 200}}")
        return
    if key in ("input_", "replay_directory") and value == "":
        raise ConfigError(f"{key} is empty: give the path of a folder, or leave it out")
    number = value if not isinstance(value, bool | str) else math.nan
    if key in LEAST and not (isinstance(number, int) and number >= LEAST[key]):
        raise ConfigError(f"{key} is {value!r}: give a whole number of at least {LEAST[key]}")
    if key in AMOUNTS and value != "auto" and not 0 <= number < math.inf:
        raise ConfigError(f"{key} is {value!r}: give a finite number of at least 0")
    if key in CHOICES and value not in CHOICES[key]:
        raise ConfigError(f"{key} is {value!r}: give one of {', '.join(CHOICES[key])}")
    if key == "env_runner_stall_s":
        RolloutConfig(stall_s=number)


FILLED = ("learner_config_dict", "algorithm_config_overrides_per_module", "exploration_config")
"""Those that RLlib's setters do not set, but fill."""


class Empty(dict[str, Any]):
    """The value of such a setting: a dict that stays empty."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def __setitem__(self, name: str, value: Any) -> None:
        raise ConfigError(REFUSED[self.key])

    def update(self, *values: Any, **more: Any) -> None:
        """Raise ConfigError unless there is nothing to take."""
        for name, value in dict(*values, **more).items():
            self[name] = value


def refuse_arguments(method: str, **kwargs: Any) -> None:
    """Raise ConfigError for what RLlib's method takes, and nothing reads here."""
    for key, value in kwargs.items():
        if value is not None:
            raise ConfigError(
                f"{method}: '{key}' is read by nothing in DIPOLE: a checkpoint is one whole folder of a disk"
            )
