"""The settings of a sweep (`sweep:`), beside its search space (`space:`) and the run that it varies (`run:`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.report import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig:
    """What every trial is scored on at every rung; none of it costs training."""

    omegas: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Greediness of the guided policy, each >= -1."""
    candidates: tuple[int, ...] = (1, 16)
    """Actions sampled per step, each >= 1."""
    select_episodes: int = 20
    """Episodes per cell of omega and candidates at every rung; they choose the cell, the trial, and who is stopped."""
    select_seed: int = 1000
    """Seed of those episodes' start states and noise."""
    report_episodes: int = 50
    """Episodes of a finished trial's chosen cell that nothing is chosen by: the figure to quote."""
    report_seed: int = 2000
    """Seed of those, another one than `select_seed`."""

    def __post_init__(self) -> None:
        """Reject what gives no grid, or a report on the episodes that selected."""
        for name in ("select_episodes", "report_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sweep.evaluation.{name} is {getattr(self, name)}: at least 1 is needed")
        if self.select_seed == self.report_seed:
            why = "a policy chosen on some episodes looks better on them than it is; give two different seeds"
            raise ConfigError(f"sweep.evaluation.select_seed and report_seed are both {self.report_seed}: {why}")
        if not self.omegas or any(not math.isfinite(omega) or omega < -1 for omega in self.omegas):
            raise ConfigError(f"sweep.evaluation.omegas is {list(self.omegas)}: finite numbers >= -1 are needed")
        if not self.candidates or any(count < 1 for count in self.candidates):
            raise ConfigError(f"sweep.evaluation.candidates is {list(self.candidates)}: counts >= 1 are needed")


@dataclass(frozen=True, kw_only=True, slots=True)
class AshaConfig:
    """Asynchronous successive halving: at growing rungs the worse trials are stopped."""

    grace_rungs: int = 1
    """Rungs that every trial is given, at least 1."""
    reduction_factor: float = 2.0
    """Of as many trials at a rung one goes on, > 1; rungs that compare are grace_rungs times its powers."""

    def __post_init__(self) -> None:
        """Reject what stops everything or nothing."""
        if self.grace_rungs < 1 or not 1 < self.reduction_factor < math.inf:
            found = f"grace_rungs is {self.grace_rungs} and reduction_factor {self.reduction_factor}"
            raise ConfigError(f"sweep.asha: {found}: at least 1 and a finite number above 1 are needed")


@dataclass(frozen=True, kw_only=True, slots=True)
class PbtConfig:
    """Population based training: the worst trials go on from the state of the best, with mutated settings."""

    interval_rungs: int = 1
    """Rungs between two comparisons of a trial with the others, at least 1."""
    quantile: float = 0.25
    """Share of the population that is replaced, and that is copied, in (0, 0.5]."""
    resample_probability: float = 0.25
    """Chance that a setting is drawn anew; otherwise it is multiplied by 0.8 or 1.2, or moved by one in its list."""

    def __post_init__(self) -> None:
        """Reject shares that cannot be."""
        if self.interval_rungs < 1 or not 0 < self.quantile <= 0.5 or not 0 <= self.resample_probability <= 1:
            found = f"interval_rungs={self.interval_rungs}, quantile={self.quantile}"
            found += f", resample_probability={self.resample_probability}"
            raise ConfigError(f"sweep.pbt: {found}: at least 1, a share in (0, 0.5] and one in [0, 1] are needed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """What one trial reserves; rollout workers reserve `rollout.cpus_per_worker` each, as in a run."""

    trial_cpus: float = 1.0
    """CPU cores of the trial's own process, > 0; fractions let several trials share a core."""
    learner_cpus: float = 1.0
    """CPU cores of the learner where `learner.remote` gives it a process of its own and it has no GPU."""
    learner_gpus: float | None = None
    """GPUs of the learner, 0.25 lets four trials share one; null = one where the cluster has one, else none."""
    max_concurrent: int | None = None
    """Most processes of trials at a time; null = as many as fit."""
    stacked: int = 1
    """Most trials in one process, which reserves what one does: trials that differ in nothing but `seed` and
    `agent.beta`, `shift`, `expectile` and `learning_rate`. On a GPU all take one stacked step; on CPUs they train in
    turn, which saves memory and no time. Not with Optuna, ASHA or PBT, which decide trial by trial."""

    def __post_init__(self) -> None:
        """Reject reservations of nothing."""
        if not self.trial_cpus > 0 or not self.learner_cpus > 0 or (self.learner_gpus or 0) < 0:
            found = f"trial_cpus={self.trial_cpus}, learner_cpus={self.learner_cpus}, learner_gpus={self.learner_gpus}"
            needed = "cores must be above 0 (fractions are fine), GPUs must not be negative"
            raise ConfigError(f"sweep.resources: {found}: {needed}")
        if self.stacked < 1:
            raise ConfigError(f"sweep.resources.stacked is {self.stacked}: at least 1 trial is in a process")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ConfigError(f"sweep.resources.max_concurrent is {self.max_concurrent}: at least 1, or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """How the trials are chosen, scored and run."""

    name: str = "sweep"
    """Name of the sweep; its folder is `<folder of the runs>/<name>-<digest of everything that shapes its result>`."""
    metric: Literal["score", "success", "return", "length"] = "score"
    """What is compared; `score` is the success rate where the task defines one, else the return."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better."""
    num_samples: int = 1
    """Trials to draw; with grids in the space, draws for each of their combinations. PBT: size of the population."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid` takes all combinations, `random` draws, `optuna` proposes by what earlier trials gave (TPE)."""
    seed: int = 0
    """Seed of what is drawn; the trials' own seed is the setting `seed`, which may be in the space."""
    rungs: int = 4
    """Evaluations of a trial, evenly spread over its updates and environment steps, each with a checkpoint."""
    evaluation: GridConfig = field(default_factory=GridConfig)
    """The grid of omega and candidates, and the two sets of episodes."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """Who is stopped early (`asha`) or replaced by a better one's copy (`pbt`)."""
    asha: AshaConfig = field(default_factory=AshaConfig)
    """Settings of `asha`."""
    pbt: PbtConfig = field(default_factory=PbtConfig)
    """Settings of `pbt`."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """What a trial reserves."""
    max_failures: int = 2
    """How often a trial whose process fails is continued from its checkpoint before it is given up."""

    def __post_init__(self) -> None:
        """Reject counts and combinations that cannot be run."""
        if not self.name or set(self.name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"):
            raise ConfigError(f"sweep.name is '{self.name}': letters, digits, '.', '_' and '-' make a folder's name")
        for name, least in (("num_samples", 1), ("rungs", 1), ("max_failures", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"sweep.{name} is {getattr(self, name)}: at least {least} is needed")
        if self.search == "grid" and self.num_samples != 1:
            found = f"{self.num_samples} and sweep.search is 'grid', which takes each combination once"
            remedy = "set sweep.search=random, or repeat trials with seed: {grid: [0, 1]} in the space"
            raise ConfigError(f"sweep.num_samples is {found}: {remedy}")
        if self.resources.stacked > 1 and (self.search == "optuna" or self.scheduler != "none"):
            found = f"{self.resources.stacked} with sweep.search {self.search} and sweep.scheduler {self.scheduler}"
            remedy = "set it to 1, or sweep.search=grid (or random) and sweep.scheduler=none"
            raise ConfigError(f"sweep.resources.stacked is {found}, which decide trial by trial: {remedy}")
        if self.scheduler == "pbt" and (self.search != "random" or self.num_samples < 2):
            found = f"'pbt' with search '{self.search}' and num_samples {self.num_samples}: a population is drawn"
            remedy = "set sweep.search=random and sweep.num_samples to its size, at least 2"
            raise ConfigError(f"sweep.scheduler is {found}; {remedy}")
        if self.scheduler == "asha" and self.asha.grace_rungs >= self.rungs:
            found = f"sweep.asha.grace_rungs is {self.asha.grace_rungs} of {self.rungs} rungs"
            remedy = "lower it, raise sweep.rungs, or set sweep.scheduler=none"
            raise ConfigError(f"{found}, so nothing is ever stopped: {remedy}")

    def measure(self, row: Row) -> str:
        """Return what is compared in this task: a `score` is the success rate where there is one, else the return."""
        if self.metric == "score":
            return "return" if row["success"] is None else "success"
        if self.metric == "success" and row["success"] is None:
            what = "sweep.metric is 'success', which this environment does not define"
            raise ConfigError(f"{what}: set sweep.metric=return")
        return self.metric

    def score(self, row: Row) -> float:
        """Return the compared number of a row."""
        return float(row[self.measure(row)])  # type: ignore[literal-required]

    def gain(self, score: float) -> float:
        """Return a score so that more is better."""
        return score if self.mode == "max" else -score

    def best(self, rows: Sequence[Row]) -> Row:
        """Return the best cell: ties go to the higher return, then to the cheaper and less greedy one."""

        def rank(row: Row) -> tuple[float, float, int, float]:
            return -self.gain(self.score(row)), -row["return"], row["candidates"], abs(row["omega"] or 0.0)

        return min(rows, key=rank)
