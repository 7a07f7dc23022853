"""The configuration of a run: one tree of typed sections, from defaults, a preset, YAML and `key=value`.

Every section but the dataset's is declared beside what it configures: the agent's in `agents/config.py` and its
algorithms, the environment's in `envs/make.py`, those of the training loop in `rllib/sections.py`.
Precedence: defaults < preset < YAML file < `key=value` on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dipole_ray import settings
from dipole_ray.agents.config import of_older
from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.envs.make import EnvConfig
from dipole_ray.envs.scenes import DRIVE, RECORDED
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.files.checkpoint import Checkpoint, CheckpointConfig, entries_of
from dipole_ray.files.place import absolute
from dipole_ray.files.provenance import digest
from dipole_ray.rllib.sections import (
    LearnerConfig,
    RolloutConfig,
    TrainingConfig,
    require_backbone,
    require_equal_shares,
    require_judged,
    require_own_plans,
)
from dipole_ray.tracking.tracker import TrackingConfig, located_uri

PRESETS = Path(__file__).resolve().parents[1] / "tune_configs"
_NETWORKS = ("algorithm", "hidden_dims", "num_critics", "weight_scheme", "train_bc", "observation_normalization")
_LAYERS = ("learned_score", "encoder.network", "encoder.sharing", "backbone.network", "backbone.dtype", "adapters")
FIXED = ("env", "seed", "training.clone_learner_steps", *(f"agent.{name}" for name in (*_NETWORKS, *_LAYERS)))
"""Settings of a run that its checkpoints cannot be continued without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the offline transitions come from: an imported dataset, or a collector run on the spot."""

    path: str | None = None
    """A dataset folder made by `dipole data import` or `dipole data collect`, or whatever `dipole data import` takes
    without further options, which is converted once into `cache`: an OGBench .npz, a D4RL .hdf5, a folder of Minari's,
    LeRobot's or ExORL's, a table whose columns have usual names. Relative to the working directory of the command,
    in a file as well; the run keeps it absolute."""
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
class RunConfig:
    """Everything that defines a run; `dipole train --help-config` prints it with these explanations."""

    name: str = "run"
    """Name of the run; its folder is `<folder>/<name>-<date>-<time>`."""
    folder: str = "runs"
    """Folder that holds the runs, relative to the working directory of the command."""
    seed: int = 0
    """Seed of networks, updates, replay sampling and rollouts."""
    seeds: tuple[int, ...] = ()
    """Several seeds, such as [0, 1, 2, 3], in the place of `seed`: a run for each, all in one process, with one dataset
    in memory and, on a GPU, one stacked step for all. Each has a folder `<folder>/<name>-<date>-<time>-seed-<seed>`,
    which is a run's like any other."""
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
        self._require_seeds()
        require_equal_shares(self.agent.batch_size, self.learner.num_learners)
        require_backbone(self.agent, self.training)
        require_judged(self.agent, self.training, self.env.id)
        require_own_plans(self.agent, self.training, self.env.driving, self.learner.matmul_precision)
        self._require_data()

    def _require_data(self) -> None:
        """Raise ConfigError where a setting needs a dataset and there is none, or there is one too many."""
        has_data = self.data.path is not None or self.data.collect_transitions > 0
        if self.env.id == DRIVE:
            if has_data:
                raise ConfigError(f"env.id is '{DRIVE}', whose scenes are the dataset; leave the section data out")
            if self.evaluation.videos:
                raise ConfigError("evaluation.videos: scenes are not filmed; set 0, 'dipole drive show' draws them")
        if has_data or self.env.id == DRIVE:
            return
        for name in ("clone_learner_steps", "offline_learner_steps"):
            if steps := getattr(self.training, name):
                raise ConfigError(
                    f"training.{name} is {steps} but there is no dataset: set data.path, or "
                    f"data.collect_transitions, or training.{name}=0"
                )
        unmet = "but there is no dataset: set data.path or data.collect_transitions, or"
        if self.agent.observation_normalization == "dataset":
            raise ConfigError(
                f"agent.observation_normalization is 'dataset' {unmet} agent.observation_normalization=none"
            )
        if fraction := self.training.offline_fraction:
            raise ConfigError(f"training.offline_fraction is {fraction} {unmet} leave the fraction null")

    def _require_seeds(self) -> None:
        """Raise ConfigError where `seeds` are no seeds, or something else contradicts them."""
        if not self.seeds:
            return
        if min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds is {list(self.seeds)}: different whole numbers >= 0 are needed")
        if self.seed:
            raise ConfigError(f"seed is {self.seed} and seeds is {list(self.seeds)}: drop one of them")
        if self.learner.actors or self.rollout.num_workers:
            found = f"rollout.num_workers is {self.rollout.num_workers}, learner.remote {self.learner.remote}"
            remedy = "set rollout.num_workers=0 learner.remote=false, or start a run for each seed"
            raise ConfigError(f"seeds is {list(self.seeds)}, whose runs share one process, and {found}: {remedy}")

    def members(self) -> list[RunConfig]:
        """Return the configs of single runs, one for each of `seeds`, or this one where there are none."""
        return [replace(self, seed=seed, seeds=()) for seed in self.seeds] or [self]

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
        """Build a run's config from nested plain values; `agent.preset` names the preset the agent's keys override."""
        plain = dict(mapping)
        agent = plain.get("agent") or {}
        if not isinstance(agent, Mapping):
            raise ConfigError(f"agent is {agent!r}: a section of keys is needed, such as agent: {{preset: small}}")
        own = dict(agent)
        if (preset := own.pop("preset", None)) is not None:
            plain["agent"] = {**settings.to_mapping(AgentConfig.preset(str(preset))), **own}
        return settings.from_mapping(RunConfig, plain)

    def to_mapping(self) -> dict[str, Any]:
        """Return the config as nested plain values that `from_mapping` reads back."""
        plain = settings.to_mapping(self)
        if not self.seeds:  # a single run's is what it was before there were any
            del plain["seeds"]
        return plain

    def changed(self, **changes: Any) -> RunConfig:
        """Return the config with other values of some settings, those of a section as `learner={"remote": False}`."""
        for name, value in changes.items():
            if isinstance(value, Mapping):
                changes[name] = replace(getattr(self, name), **value)
        return replace(self, **changes)

    def located(self, start: str | Path = "") -> RunConfig:
        """Return the config with its places absolute, as `located`."""
        return RunConfig.from_mapping(located(self.to_mapping(), start))

    def digest(self) -> str:
        """Return 12 hex digits that differ between any two different configs."""
        return digest(self.to_mapping(), digits=12)


def located(run: Mapping[str, Any], start: str | Path = "") -> dict[str, Any]:
    """Return a run's mapping, whole or in parts, with its places absolute.

    Relative ones begin at `start`, or at the working directory of this process now.
    """
    result = settings.merge({}, run)
    for key in PLACES:
        *sections, name = key.split(".")
        section: Any = result
        for one in sections:
            section = section.get(one) if isinstance(section, dict) else None
        if isinstance(section, dict) and name in section:
            section[name] = located_value(key, section[name], start)
    return result


def located_value(key: str, value: Any, start: str | Path = "") -> Any:
    """Return the value of a setting, absolute where it is a place."""
    if key in PLACES and isinstance(value, list | tuple):
        return [located_value(key, one, start) for one in value]
    return PLACES[key](value, start) if key in PLACES and isinstance(value, str) else value


def _resolved(path: str, start: str | Path) -> str:
    return str(absolute(path, start).resolve())


def _scenes(name: str, start: str | Path) -> str:
    return name if name.startswith(RECORDED) else _resolved(name, start)


PLACES: dict[str, Callable[[str, str | Path], str]] = {
    "folder": lambda path, start: str(absolute(path, start)),
    "data.path": _resolved,
    "data.cache": _resolved,
    "agent.backbone.path": _resolved,
    "env.driving.scenes": _scenes,
    "env.driving.validation": _scenes,
    "tracking.tracking_uri": located_uri,
}
"""Every setting of a run that names a place, or several, and what makes its value absolute."""


def saved_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the config a checkpoint was written with; settings that came later as they were."""
    with entries_of(checkpoint):
        run = checkpoint.metadata["run"]
        run = {**run, "agent": of_older(run["agent"])}
        defaults = {"agent": settings.to_mapping(AgentConfig()), "env": settings.to_mapping(EnvConfig(id=""))}
        defaults |= {"training": {"clone_learner_steps": 0}, "evaluation": {"patience": 0}}
        return settings.merge({name: section for name, section in defaults.items() if name in run}, run)


def presets(*, sweeps: bool = False) -> dict[str, Path]:
    """Return the presets of runs, or those with a section `sweep`, that come with the project, by name."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted(PRESETS.glob("*.yaml"))}
    is_sweep = re.compile(r"^sweep:", re.MULTILINE).search
    return {path.stem: path for path, text in files.items() if (is_sweep(text) is not None) == sweeps}


def load(source: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's config from a preset's name, a YAML file or, for None, the defaults; else ConfigError.

    The overrides on top are dotted assignments such as `agent.beta=5`, whose values are YAML.
    """
    mapping = {} if source is None else read_yaml(source)
    if "sweep" in mapping:
        raise ConfigError(f"'{source}' is a sweep, no single run: start it with 'dipole sweep {source}'")
    try:
        return RunConfig.from_mapping(settings.apply_overrides(mapping, overrides))
    except ConfigError as error:
        raise ConfigError(f"{error} (in {source})" if source is not None and not overrides else str(error)) from None


def with_base(section: Any) -> dict[str, Any]:
    """Return a run's mapping on top of the preset or file that its key `from` names, where it has one."""
    mapping = dict(section or {})
    base = mapping.pop("from", None)
    return mapping if base is None else settings.merge(read_yaml(base), mapping)


def read_yaml(source: str | Path, known: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Return the mapping in the YAML file of a preset or path; a message offers the presets `known`, or runs' own."""
    path = {**presets(sweeps=True), **presets()}.get(str(source), Path(source))
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
