"""Settings of the training loop and of who works in it: the sections `training`, `rollout` and `learner` of a run."""

import math
from dataclasses import dataclass

from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.precision import PRECISIONS, SETTING
from dipole_ray.envs.scenes import DRIVE, DrivingConfig
from dipole_ray.errors import ConfigError, warn_once


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """The one loop of all phases (paper: 1M updates, then 1M steps with one update each)."""

    clone_learner_steps: int = 0
    """Updates that clone the dataset into the backbone of adapters, before the offline phase; 0 = none."""
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
    """Rows of the online ring, which keeps the newest; None = room for all `online_env_steps`, however early episodes
    end: two rows a step, since each trajectory has a closing row. A resumed run keeps the ring that it has."""
    offline_fraction: float | None = None
    """Exact share of offline rows in every batch, in [0, 1]; None = uniform over offline and online rows together."""

    def __post_init__(self) -> None:
        """Reject counts that cannot be run."""
        for name in ("learner_steps_per_call", "learner_steps_per_iteration", "env_steps_per_iteration"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: at least 1 is needed")
        for name in ("clone_learner_steps", "offline_learner_steps", "online_env_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: use 0 to leave the phase out")
        if self.updates_per_env_step < 0:
            raise ConfigError(f"training.updates_per_env_step is {self.updates_per_env_step}: it cannot be negative")
        if self.offline_fraction is not None and not 0.0 <= self.offline_fraction <= 1.0:
            raise ConfigError(f"training.offline_fraction is {self.offline_fraction}: give a share in [0, 1], or null")

    @property
    def learner_steps_before_online(self) -> int:
        """Updates of the phases that the online phase follows."""
        return self.clone_learner_steps + self.offline_learner_steps

    def end_of(self, phase: str) -> int:
        """Return the updates after which `clone` or `offline` ends."""
        return self.clone_learner_steps if phase == "clone" else self.learner_steps_before_online


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
        if not 1.0 <= self.stall_s < math.inf:
            raise ConfigError(f"rollout.stall_s is {self.stall_s}: give at least 1 (1e9: wait for ever)")


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
    matmul_precision: str = "float32"
    """What updates round the factors of their matrix products to: `float32` (nothing), on a CPU with AVX512-BF16
    `bf16`, on a GPU `tf32`. Sums, losses, weights and moments stay float32, and so does acting."""

    @property
    def actors(self) -> int:
        """Learner actors of a run; 0 where the training process itself computes the updates."""
        return self.num_learners if self.remote or self.num_learners > 1 else 0

    def __post_init__(self) -> None:
        """Reject no learner, an empty thread pool and a precision that nobody knows."""
        if self.num_learners < 1:
            remedy = "learner.remote=false runs it in the training process"
            raise ConfigError(f"learner.num_learners is {self.num_learners}: at least 1 ({remedy})")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"learner.num_threads is {self.num_threads}: at least 1, or null for automatic")
        if self.matmul_precision not in PRECISIONS:
            raise ConfigError(f"{SETTING} is '{self.matmul_precision}': choose one of {', '.join(PRECISIONS)}")


def require_equal_shares(batch_size: int, num_learners: int) -> None:
    """Raise ConfigError unless the learners, if there are several, can share out the rows of every batch equally."""
    if num_learners > 1 and batch_size % num_learners:
        raise ConfigError(
            f"agent.batch_size is {batch_size}, which does not divide by {num_learners} learners: make it "
            f"{batch_size - batch_size % num_learners or num_learners} or another multiple, or change num_learners"
        )


def require_judged(agent: AgentConfig, training: TrainingConfig, env_id: str) -> None:
    """Raise ConfigError where advantages come with rows and nobody gives them, or nobody reads those that are given."""
    is_judged = env_id == DRIVE
    if is_judged and agent.advantage != "group":
        found = f"agent.advantage is '{agent.advantage}', and the plans of '{DRIVE}' come with their advantage"
        raise ConfigError(f"{found}; set agent.advantage=group, and agent.num_candidates=1 or agent.learned_score=true")
    if not is_judged and agent.advantage == "group" and training.online_env_steps:
        found = f"agent.advantage is 'group', and environment '{env_id}' judges no actions of one state together"
        raise ConfigError(f"{found}; set agent.advantage=critic, or training.online_env_steps=0")
    if not is_judged and agent.learned_score:
        found = f"agent.learned_score is true, and environment '{env_id}' judges no actions to learn it from"
        raise ConfigError(f"{found}; set agent.learned_score=false")


def require_own_plans(
    agent: AgentConfig, training: TrainingConfig, driving: DrivingConfig, matmul_precision: str
) -> None:
    """Raise ConfigError where a policy gradient would get plans whose likelihood nobody knows, or too old ones."""
    if agent.weight_scheme != "dppo":
        return
    scheme = "agent.weight_scheme is 'dppo', which learns from plans of its own policy"
    if driving.scenes and driving.logged_plan:
        raise ConfigError(f"env.driving.logged_plan: {scheme}, and no policy drew the driver's; set it to false")
    if driving.noise:
        found = f"env.driving.noise is {driving.noise}: {scheme}, and it has no likelihood of shaken ones"
        raise ConfigError(f"{found}; set env.driving.noise=0 env.driving.noise_rounds=0")
    if not training.online_env_steps:
        found = f"training.online_env_steps is 0: {scheme}, and clones those of the dataset"
        raise ConfigError(f"{found}; give it some, or set agent.weight_scheme=bc")
    if training.replay_capacity is None:
        rows = 2 * training.env_steps_per_iteration
        found = f"training.replay_capacity is null: {scheme} of now, and the ring would hold those of all rounds"
        raise ConfigError(f"{found}; set it to the rows of a round or two, such as {rows}")
    if matmul_precision != "float32":
        raise ConfigError(f"{SETTING} is {matmul_precision}: {scheme} by likelihoods in float32; set float32")


def require_backbone(agent: AgentConfig, training: TrainingConfig) -> None:
    """Raise ConfigError where adapters would lie on an untrained backbone, or a backbone be cloned without adapters."""
    adapters, backbone = getattr(agent, "adapters", None), getattr(agent, "backbone", None)
    has_adapters = adapters is not None and adapters.rank > 0
    if training.clone_learner_steps and not has_adapters:
        raise ConfigError(
            f"training.clone_learner_steps is {training.clone_learner_steps}, and there is no backbone to clone the "
            "dataset into; set agent.adapters.rank above 0, or training.clone_learner_steps=0"
        )
    if backbone is not None and backbone.path is not None and agent.observation_normalization == "dataset":
        warn_once(
            f"agent.backbone.path: {backbone.path} does not say what its observations were normalized with, and here "
            "they are by this dataset's statistics; unless it was trained on the same dataset, set "
            "training.clone_learner_steps to train it further, or agent.observation_normalization=none"
        )
    if has_adapters and backbone is not None and backbone.path is None and not training.clone_learner_steps:
        raise ConfigError(
            f"agent.adapters.rank is {getattr(adapters, 'rank', 0)}, and the backbone below the adapters is untrained; "
            "set training.clone_learner_steps, or agent.backbone.path to a trained one"
        )
