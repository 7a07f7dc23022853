"""Every private name of RLlib and Tune that the package uses, each behind a function that says why no public one does.

Each, as those of Ray's core in `core_privates.py`, has a probe in `tests/rllib/test_ray_privates.py`, which names the
version of Ray that breaks it.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.rllib.algorithms import algorithm as rllib_algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.tune.schedulers import ASHAScheduler
from ray.tune.trainable import trainable

from dipole_ray.rllib.core_privates import prefer_node

logger = logging.getLogger(__name__)


def manager_of(group: EnvRunnerGroup) -> FaultTolerantActorManager:
    """Return the manager of RLlib's rollout workers: the group's own methods hide tags, handles and errors."""
    return group._worker_manager


def requests_in_flight(manager: FaultTolerantActorManager) -> dict[Any, tuple[str, int]]:
    """Return tag and worker by the reference of the answer: RLlib itself waits for all answers, never for the first."""
    in_flight: dict[Any, tuple[str, int]] = manager._in_flight_req_to_actor_id
    return in_flight


class PlacedEnvRunnerGroup(EnvRunnerGroup):
    """RLlib's group of rollout workers, each near the node of `nodes_for`: RLlib has no setting for where they go.

    A worker whose node dies, or is full when the worker starts again, comes back on another.
    """

    nodes_for: Callable[[AlgorithmConfig], list[str]]  # of the first workers; the others are left to Ray

    def _setup(self, *, config: AlgorithmConfig, **how: Any) -> None:
        self.nodes = self.nodes_for(config)
        super()._setup(config=config, **how)

    def _make_worker(self, *, worker_index: int, **how: Any) -> Any:
        self._remote_args.pop("scheduling_strategy", None)
        if 0 < worker_index <= len(self.nodes):
            self._remote_args["scheduling_strategy"] = prefer_node(self.nodes[worker_index - 1])
        return super()._make_worker(worker_index=worker_index, **how)


@contextmanager
def rllibs_setup(group: type[EnvRunnerGroup]) -> Iterator[None]:
    """Have `Algorithm.setup` make its groups of this class, and leave on_algorithm_init to us: it hooks neither."""
    before = rllib_algorithm.EnvRunnerGroup, rllib_algorithm.make_callback
    rllib_algorithm.EnvRunnerGroup, rllib_algorithm.make_callback = group, lambda *args, **kwargs: None
    try:
        yield
    finally:
        rllib_algorithm.EnvRunnerGroup, rllib_algorithm.make_callback = before


@contextmanager
def writable_results() -> Iterator[None]:
    """Have an algorithm put its own folder elsewhere where `~/ray_results` cannot be written: it has no setting."""
    before = trainable.DEFAULT_STORAGE_PATH
    try:
        Path(before).mkdir(parents=True, exist_ok=True)
        is_writable = os.access(before, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        trainable.DEFAULT_STORAGE_PATH = str(Path(tempfile.gettempdir()) / "ray_results")
        logger.warning("%s cannot be written; RLlib's folder is in %s", before, trainable.DEFAULT_STORAGE_PATH)
    try:
        yield
    finally:
        trainable.DEFAULT_STORAGE_PATH = before


def give_learners(group: LearnerGroup, learners: Sequence[Any]) -> None:
    """Set whom RLlib's group calls, and hands to the offline data: it knows no learners but those that it started."""
    group._workers, group._learner = list(learners), learners[0]
    group._worker_manager = FaultTolerantActorManager(group._workers) if group.is_remote else None


def translated(config: AlgorithmConfig, key: str) -> str:
    """Return the attribute that RLlib sets for a key of Tune's, such as `input_` for `input`: no public name tells."""
    return str(config._translate_special_keys(key, warn_deprecated=False))


def is_registered_with_tune(env: str) -> bool:
    """Return whether `tune.register_env` gave an environment this name: no public function tells."""
    from ray.tune.registry import ENV_CREATOR, _global_registry

    return bool(_global_registry.contains(ENV_CREATOR, env))


def is_frozen(config: AlgorithmConfig) -> bool:
    """Return whether `freeze` was called: the config itself answers by raising only."""
    return bool(config._is_frozen)


def sync_no_states(config: AlgorithmConfig) -> None:
    """Keep RLlib from sending states to the workers after each iteration: its public switches leave the call itself."""
    config._dont_auto_sync_env_runner_states = True


def asha_rungs(scheduler: ASHAScheduler) -> list[tuple[int, dict[str, float]]]:
    """Return milestone and recorded results of each of ASHA's rungs: it takes results from running trials only."""
    rungs: list[tuple[int, dict[str, float]]] = scheduler._brackets[0]._rungs
    return rungs
