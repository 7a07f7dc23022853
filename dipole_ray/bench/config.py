"""The settings of a suite: its own (`suite:`), and what may stand beside a run's keys in a task and in a method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dipole_ray.errors import ConfigError

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """What one process of a suite reserves; its runs have no rollout workers and no learner besides it."""

    cpus: float = 1.0
    """CPU cores, > 0; its whole part is the learner's threads, at least one."""
    gpus: float = 0.0
    """GPUs; 0.25 lets four processes share one, 0 computes on the CPU."""
    stacked: int = 1
    """Most runs in one process: of one task, differing in nothing but `seed` and `agent.beta`, `shift`, `expectile`,
    `learning_rate`, `omega` and `num_candidates`. On a GPU all take one stacked step; on CPUs they train in turn, which
    saves memory and no time. Each evaluates and, online, steps its environments in turn with the others."""

    def __post_init__(self) -> None:
        """Reject reservations of nothing."""
        if not self.cpus > 0 or self.gpus < 0:
            needed = "cores must be above 0, GPUs not negative; fractions let several runs share one"
            raise ConfigError(f"suite.resources: cpus={self.cpus}, gpus={self.gpus}: {needed}")
        if self.stacked < 1:
            raise ConfigError(f"suite.resources.stacked is {self.stacked}: at least 1 run is in a process")


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteConfig:
    """How the runs of a suite are made and compared."""

    name: str = "suite"
    """Name of the suite; its runs lie in `<folder of the runs>/bench/<name>`, its report is called so."""
    question: str = ""
    """What the suite answers; the report begins with it."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of training; each also has evaluation episodes of its own, the same for all methods."""
    metric: Literal["success", "return"] = "success"
    """What a score is: the success rate in per cent, or the undiscounted return."""
    evaluations: int = 3
    """A run's score is the mean over this many last evaluations of a phase. Paper: 3."""
    baseline: str | None = None
    """Method that the others are compared with; null = the first one."""
    full_score: float | None = None
    """Score of a perfect policy, by which tasks are made comparable; null = 100 for success, none for returns."""
    zero_score: float = 0.0
    """Score that counts as 0 per cent where tasks are made comparable, such as that of a random policy."""
    axis: str | None = None
    """What `methods.NAME.x` is, such as `beta`; adds a picture of scores against it."""
    paper: str | None = None
    """Table of `paper_numbers.yaml` to print beside ours."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """What a run reserves, or several that are stacked in one process."""

    def __post_init__(self) -> None:
        """Reject names that make no folder and counts of nothing."""
        require_name("suite.name", self.name)
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"suite.seeds is {list(self.seeds)}: different whole numbers >= 0 are needed")
        if self.evaluations < 1:
            raise ConfigError(f"suite.evaluations is {self.evaluations}: at least 1 is needed")
        self.span(TaskConfig())

    def span(self, task: TaskConfig, where: str = "suite") -> tuple[float, float] | None:
        """Return the scores that count as 0 and as 100 per cent in a task, None where nobody named the latter.

        ConfigError where they are the wrong way round; `where` says whose they are.
        """
        full = self.full_score if task.full_score is None else task.full_score
        if full is None:
            return (0.0, 100.0) if self.metric == "success" else None
        zero = self.zero_score if task.zero_score is None else task.zero_score
        if not full > zero:
            raise ConfigError(f"{where}.full_score is {full}: a number above zero_score, {zero}, is needed, or null")
        return zero, full


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """What a task has besides the keys of a run, which it sets on top of `base:`."""

    group: str | None = None
    """Tasks of one group are averaged in the report, as the five tasks of an OGBench category."""
    full_score: float | None = None
    """Score of a perfect policy in this task; null = the suite's."""
    zero_score: float | None = None
    """Score that counts as 0 per cent in this task; null = the suite's."""
    only: tuple[str, ...] = ()
    """Methods that this task is run with; empty = all."""
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keys of a run on top of a method's, for this task alone: `{dipole: {agent: {omega: 4}}}`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """What a method has besides the keys of a run, which it sets on top of the task's."""

    label: str | None = None
    """Name in tables and pictures; null = the key."""
    runs_of: str | None = None
    """Method whose runs these are: another way of acting needs no training of its own."""
    candidates: tuple[int, ...] = ()
    """Numbers of candidates that are shown; empty = all that were evaluated."""
    omega: float | None = None
    """The one omega that is shown, named beforehand; null = the run's own, and all for curves and tuning."""
    series: str | None = None
    """Curve that the method is a point of, in the picture over `suite.axis`."""
    x: float | None = None
    """Where on that axis."""
    axis: str | None = None
    """What `x` is for this series, if not `suite.axis`; it has pictures of its own."""


def require_name(key: str, name: str) -> None:
    """Raise ConfigError unless `name` makes a folder's name."""
    if not name or name.startswith(".") or set(name) - NAME_CHARACTERS:
        raise ConfigError(f"{key} is '{name}': letters, digits, '.', '_', '+' and '-' make a folder's name")
