"""From a run's config to its dataset and its algorithm, on the ring that belongs to what it continues from."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from dipole_ray import columns, settings
from dipole_ray.data.dataset import read_manifest
from dipole_ray.envs.make import EnvConfig, env_dims
from dipole_ray.errors import ConfigError
from dipole_ray.files.checkpoint import Checkpoint
from dipole_ray.rllib.algorithm import DIPOLE
from dipole_ray.rllib.config import SECTIONS, DIPOLEConfig
from dipole_ray.rllib.replay_actor import RING_FILE
from dipole_ray.runs.config import RunConfig
from dipole_ray.runs.prepare import prepare_dataset


def build_algorithm(
    config: RunConfig, dataset: Path | None, folder: Path, checkpoint: Checkpoint | None, **learner: Any
) -> DIPOLE:
    """Return the algorithm, not yet restored, on the ring that belongs to the checkpoint, or else on an empty one."""
    replay = folder / "replay"
    rllib = rllib_config(config, dataset, replay)
    rllib.learners(**learner)
    if checkpoint is None:
        shutil.rmtree(replay, ignore_errors=True)  # of a run that ended before its first checkpoint
        return cast(DIPOLE, rllib.build_algo())
    ring = checkpoint.metadata["replay"]["online"]
    if ring is not None and config.training.replay_capacity is None:
        rllib.training(replay_capacity=ring["capacity"])  # a run that is made longer keeps the ring it has
    if (replay / RING_FILE).exists():
        checkpoint.metadata["replay_directory"] = str(replay)  # a copy of a run folder has a ring of its own
    return cast(DIPOLE, rllib.build_algo())


def rllib_config(run: RunConfig, dataset: Path | None, replay: Path | None) -> DIPOLEConfig:
    """Return RLlib's config of a run, with the run's own sections in it; without `replay` the ring is put elsewhere."""
    sections = {name: getattr(run, name) for name in SECTIONS}
    config = DIPOLEConfig.from_sections(run.env, sections, () if dataset is None else (str(dataset),))
    config.replay_directory = None if replay is None else str(replay)
    config.env_runners(
        num_env_runners=run.rollout.num_workers,
        num_envs_per_env_runner=run.rollout.envs_per_worker,
        rollout_fragment_length=run.rollout.fragment_steps,
        num_cpus_per_env_runner=run.rollout.cpus_per_worker,
        stall_s=run.rollout.stall_s,
    )
    config.learners(num_learners=run.learner.actors, num_threads=run.learner.num_threads)
    config.debugging(seed=run.seed)
    return config


def data_key(config: RunConfig) -> str:
    """Return what says where a run's data comes from, the same for runs that share it."""
    return json.dumps([settings.to_mapping(config.data), settings.to_mapping(config.env)])


def prepare_datasets(configs: Iterable[RunConfig]) -> None:
    """Make the datasets of many runs, each once, before the runs ask for them; ConfigError where one does not fit."""
    for config in {data_key(config): config for config in configs}.values():
        require_fit(prepare_dataset(config.data, config.env), config.env)


def require_fit(dataset: Path | None, env: EnvConfig) -> None:
    """Raise ConfigError unless the dataset's numbers are as many as the environment's."""
    if dataset is not None:
        remedy, whom = "set env.id to the environment the data was collected in", f"'{env.id}'"
        found, expected = read_manifest(dataset).schema, env_dims(env).schema
        columns.require_fit(found, expected, what=dataset, whom=whom, remedy=remedy, error=ConfigError)
