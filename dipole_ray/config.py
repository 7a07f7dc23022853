"""The configuration of a run: one tree of typed sections, from defaults, a preset, YAML and `key=value`.

Every section is declared beside what it configures (the agent's in `agents/config.py` and its algorithms, the
environment's in `envs/make.py`, ...); the sections of the training loop, which no single file owns, stand here.
Precedence: defaults < preset < YAML file < `key=value` on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dipole_ray import settings
from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.checkpoint import CheckpointConfig
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.provenance import digest
from dipole_ray.tracking.tracker import TrackingConfig

PRESETS = Path(__file__).resolve().parent / "tune_configs"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the offline transitions come from: an imported dataset, or a collector run on the spot."""

    path: str | None = None
    """A dataset folder made by `dipole data import` or `dipole data collect`, an OGBench .npz or D4RL .hdf5
    file, a Minari dataset's folder, or a folder of ExORL's episodes."""
    collect_transitions: int = 0
    """Transitions to make with the environment's own seeded collector when `path` is not given; 0 = none."""
    collect_seed: int = 0
    """Seed of the collector: the same seed gives the same dataset, whatever the number of processes."""
    cache: str = "~/.cache/dipole_ray"
    """Folder that keeps collected and converted datasets between runs."""
    strict: bool = False
    """Refuse a dataset with a damaged file; otherwise the other files are used, with a warning that names the rows."""

    def __post_init__(self) -> None:
        """Reject two sources at once."""
        if self.path is not None and self.collect_transitions:
            raise ConfigError(
                f"data.path ({self.path}) and data.collect_transitions ({self.collect_transitions}) are both set: "
                "a run has one offline dataset; drop one of them"
            )
        if self.collect_transitions < 0:
            raise ConfigError(f"data.collect_transitions is {self.collect_transitions}: use 0 or a positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """The one loop of both phases (paper: 1M updates, then 1M steps with one update each)."""

    offline_learner_steps: int = 1_000_000
    """Updates on the dataset alone, before the first environment step; 0 = start online."""
    online_env_steps: int = 1_000_000
    """Environment steps after the offline phase; 0 = offline only."""
    updates_per_env_step: float = 1.0
    """Updates owed for each environment step inserted; held exactly over the run and across restarts."""
    learner_steps_per_call: int = 32
    """Updates in one call of the learner, on batches sampled in one request; the granularity of overlap."""
    learner_steps_per_iteration: int = 1000
    """Updates in one training iteration of the offline phase, that is between two lines of metrics."""
    env_steps_per_iteration: int = 1000
    """Environment steps, at least, in one training iteration of the online phase."""
    replay_capacity: int | None = None
    """Rows of the online ring; None = room for all `online_env_steps` and their closing rows."""
    offline_fraction: float | None = None
    """Exact share of offline rows in every batch, in [0, 1]; None = uniform over offline and online rows together."""

    def __post_init__(self) -> None:
        """Reject counts that cannot be run."""
        for name in ("learner_steps_per_call", "learner_steps_per_iteration", "env_steps_per_iteration"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: at least 1 is needed")
        for name in ("offline_learner_steps", "online_env_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: use 0 to leave the phase out")
        if self.updates_per_env_step < 0:
            raise ConfigError(f"training.updates_per_env_step is {self.updates_per_env_step}: it cannot be negative")
        if self.offline_fraction is not None and not 0.0 <= self.offline_fraction <= 1.0:
            raise ConfigError(f"training.offline_fraction is {self.offline_fraction}: give a share in [0, 1], or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    """Who steps the environments in the online phase."""

    num_workers: int = 0
    """Rollout worker actors; 0 = the environments are stepped inside the training process."""
    envs_per_worker: int = 4
    """Environments each worker steps with one batched call of the policy."""
    fragment_steps: int = 64
    """Steps per environment between two deliveries; n-step windows are cut where a fragment ends."""
    cpus_per_worker: float = 1.0
    """CPU cores each worker reserves on the cluster; it computes with one thread in any case."""
    stall_s: float = 60.0
    """Seconds within which a worker whose environment does not return from one call is replaced (after four fifths of
    them at the earliest; twice as long after each failure in a row). Only single calls count: a fragment or an
    evaluation of many calls may take any time."""

    def __post_init__(self) -> None:
        """Reject sizes that collect nothing."""
        if self.num_workers < 0 or self.envs_per_worker < 1 or self.fragment_steps < 1:
            raise ConfigError(
                f"rollout: num_workers={self.num_workers}, envs_per_worker={self.envs_per_worker}, "
                f"fragment_steps={self.fragment_steps}: the first may be 0, the others are at least 1"
            )
        if not self.stall_s >= 1.0:
            raise ConfigError(f"rollout.stall_s is {self.stall_s}: give at least 1 (very large: wait for ever)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    """Where the updates are computed."""

    remote: bool = False
    """Run the learner as an actor of its own, on a GPU where the cluster has one."""
    num_learners: int = 1
    """Learners that take every update together, each on an equal share of the batch's rows, with the same result as
    one. More than one are actors in any case, each on a GPU of its own where the cluster has one."""
    num_threads: int | None = None
    """Torch threads of each learner; None = the cores that no rollout worker needs (never oversubscribed)."""

    @property
    def actors(self) -> int:
        """Learner actors of a run; 0 where the training process itself computes the updates."""
        return self.num_learners if self.remote or self.num_learners > 1 else 0

    def __post_init__(self) -> None:
        """Reject no learner and an empty thread pool."""
        if self.num_learners < 1:
            raise ConfigError(
                f"learner.num_learners is {self.num_learners}: at least 1 (learner.remote=false runs it in the "
                "training process)"
            )
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"learner.num_threads is {self.num_threads}: at least 1, or null for automatic")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that defines a run; `dipole train --help-config` prints it with these explanations."""

    name: str = "run"
    """Name of the run; its folder is `<folder>/<name>-<date>-<time>`."""
    folder: str = "runs"
    """Folder that holds the runs."""
    seed: int = 0
    """Seed of networks, updates, replay sampling and rollouts."""
    env: EnvConfig
    """The environment and task."""
    data: DataConfig = field(default_factory=DataConfig)
    """The offline dataset."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """The algorithm; what the other keys start from is `agent.preset`: paper, small, dipole, bc, ifql, exp, cfgrl, fql
    or iql."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Rollout workers."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """The learner."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation episodes and the grid of omega and candidates."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """metrics.jsonl and MLflow."""

    def __post_init__(self) -> None:
        """Reject contradictions between sections."""
        require_equal_shares(self.agent.batch_size, self.learner.num_learners)
        has_data = self.data.path is not None or self.data.collect_transitions > 0
        if self.training.offline_learner_steps and not has_data:
            raise ConfigError(
                f"training.offline_learner_steps is {self.training.offline_learner_steps} but there is no dataset: "
                "set data.path, or data.collect_transitions, or training.offline_learner_steps=0"
            )
        if self.agent.observation_normalization == "dataset" and not has_data:
            raise ConfigError(
                "agent.observation_normalization is 'dataset' but there is no dataset: set data.path or "
                "data.collect_transitions, or agent.observation_normalization=none"
            )
        if self.training.offline_fraction and not has_data:
            raise ConfigError(
                f"training.offline_fraction is {self.training.offline_fraction} but there is no dataset: "
                "set data.path or data.collect_transitions, or leave the fraction null"
            )

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
        """Build a run's config from nested plain values, such as a YAML file's.

        Args:
            mapping: Sections and keys as above; `agent.preset` names the preset the agent's keys override.

        Raises:
            ConfigError: An unknown key (the nearest valid one is named), a wrong type, or a contradiction.
        """
        plain = {key: value for key, value in mapping.items()}
        agent = plain.get("agent") or {}
        if not isinstance(agent, Mapping):
            raise ConfigError(f"agent is {agent!r}: a section of keys is needed, such as agent: {{preset: small}}")
        preset = agent.get("preset")
        if preset is not None:
            start = settings.to_mapping(AgentConfig.preset(str(preset)))
            plain["agent"] = {**start, **{key: value for key, value in agent.items() if key != "preset"}}
        return settings.from_mapping(RunConfig, plain)

    def to_mapping(self) -> dict[str, Any]:
        """Return the config as nested plain values that `from_mapping` reads back."""
        return settings.to_mapping(self)

    def digest(self) -> str:
        """Return 12 hex digits that differ between any two different configs."""
        return digest(self.to_mapping(), digits=12)


def require_equal_shares(batch_size: int, num_learners: int) -> None:
    """Raise ConfigError unless every batch can be shared out to the learners equally.

    Args:
        batch_size: Rows of one update.
        num_learners: Learner actors, 0 or 1 for a learner that takes them all.
    """
    if num_learners > 1 and batch_size % num_learners:
        raise ConfigError(
            f"agent.batch_size is {batch_size}, which does not divide by {num_learners} learners: make it "
            f"{batch_size - batch_size % num_learners or num_learners} or another multiple, or change num_learners"
        )


def presets() -> dict[str, Path]:
    """Return the run presets that come with the project, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml")) if not _is_sweep(path)}


def sweep_presets() -> dict[str, Path]:
    """Return the presets of `dipole sweep`, by name; they lie in the same folder."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml")) if _is_sweep(path)}


def _is_sweep(path: Path) -> bool:
    """Return whether a preset has a section `sweep`."""
    return re.search(r"^sweep:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def load(source: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's config from a preset name or a YAML file, with `key=value` overrides on top.

    Args:
        source: A name in `presets()`, the path of a YAML file, or None for the defaults alone.
        overrides: Dotted assignments such as `agent.beta=5`; values are YAML.

    Raises:
        ConfigError: The file is missing or unreadable, or a key or value is wrong.
    """
    mapping: dict[str, Any] = {} if source is None else read_yaml(source)
    if "sweep" in mapping:
        raise ConfigError(f"'{source}' is a sweep, no single run: start it with 'dipole sweep {source}'")
    try:
        return RunConfig.from_mapping(settings.apply_overrides(mapping, overrides))
    except ConfigError as error:
        raise ConfigError(f"{error} (in {source})" if source is not None and not overrides else str(error)) from None


def read_yaml(source: str | Path, known: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Return the mapping in the YAML file that `source` names, by preset name or path.

    Args:
        source: A preset's name, of a run or of a sweep, or a path.
        known: The presets a message offers; those of runs by default.
    """
    path = {**sweep_presets(), **presets()}.get(str(source), Path(source))
    if not path.is_file():
        offered = ", ".join(presets() if known is None else known)
        raise ConfigError(f"no preset or file '{source}': the presets are {offered}; a file is given by path")
    try:
        with path.open(encoding="utf-8") as stream:
            mapping = settings.parse_yaml(stream.read(settings.MAX_YAML_CHARACTERS + 1)) or {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: holds a {type(mapping).__name__}, a mapping of sections is needed")
    return mapping
