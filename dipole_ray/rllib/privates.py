"""Every private name of Ray that the package uses, each behind a function that says why no public one serves.

Each has a probe in `tests/rllib/test_ray_privates.py`, which names the version of Ray that breaks it.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.rllib.algorithms import algorithm as rllib_algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.tune.schedulers import ASHAScheduler
from ray.tune.trainable import trainable
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

BEATS = "dipole_ray.heartbeat"  # namespace in the cluster's key-value store


def free_resources_by_node() -> dict[str, dict[str, float]]:
    """Return the free resources of each living node: `ray.available_resources` has their sum only."""
    living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    free = ray._private.state.available_resources_per_node()
    return {node: dict(resources) for node, resources in free.items() if node in living}


def prefer_node(node: str) -> NodeAffinitySchedulingStrategy:
    """Return the wish to be on `node`, or elsewhere while it is full: the public options wait for a full node."""
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)


def actor_id(actor: Any) -> str:
    """Return Ray's id of an actor, which a restart does not change: only the actor itself can ask for it publicly."""
    return str(actor._actor_id.hex())


def write_beat(actor: str, beat: str) -> None:
    """Note a heartbeat in the cluster's key-value store: an actor that held them would be one more that may die."""
    internal_kv._internal_kv_put(actor, beat, namespace=BEATS)


def read_beat(actor: str) -> bytes | None:
    """Return the last heartbeat that `write_beat` noted."""
    beat: bytes | None = internal_kv._internal_kv_get(actor, namespace=BEATS)
    return beat


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


def admits_strangers(address: str) -> bool:
    """Return whether the Ray at `address` lets a process in that has no token: `ray.init` would start a job there."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        service = ray._raylet.GcsClient(address=canonicalize_bootstrap_address_or_die(address))
        service.internal_kv_keys(b"", namespace=None, timeout=10)
    except ray.exceptions.AuthenticationError:
        return False
    return True


def stop_ray() -> None:
    """Leave Ray, and end the processes of a local one that `parallel.ray_session` started.

    They do not hear SIGTERM, and `ray.shutdown` waits a second for each of them. One is enough for the first, the
    raylet, to end its workers after their driver has left.
    """
    node = ray._private.worker._global_node
    if node is not None:
        end = node.kill_all_processes

        def end_at_once(**_: Any) -> None:
            node._kill_process_type("raylet", check_alive=False, allow_graceful=True)
            end(check_alive=False)

        node.kill_all_processes = end_at_once
    ray.shutdown()
