"""Where the parts of a run live: the learner with driver and replay, the rollout workers evenly over other nodes.

Left to itself Ray fills the driver's node first, where driver, replay and learner need the cores; a batch for a
learner elsewhere then crosses the network. All of it is a wish: what does not fit there is placed where there is room.
Inside Tune the trial's placement group decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.rllib.algorithms import algorithm as rllib_algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dipole_ray.rllib.placement import free_by_node, learner_resources, take

LEARNER_WAIT_S = 30.0
"""Longest wait for the learner's place, which `require_room` has found to exist."""


def nodes_for_workers(config: AlgorithmConfig) -> list[str]:
    """Return a node for each rollout worker, fewer where the cluster's free resources end.

    The learners' share is set aside first, on this node if it fits; workers come to this node last.
    """
    if not ray.is_initialized() or get_current_placement_group() is not None:
        return []
    here = ray.get_runtime_context().get_node_id()
    free = free_by_node()
    taken: Counter[str] = Counter()
    for _ in range(config.num_learners):
        take(free, learner_resources(config), lambda node: node != here)
    worker = {
        "CPU": config.num_cpus_per_env_runner,
        "GPU": config.num_gpus_per_env_runner,
        **(config.custom_resources_per_env_runner or {}),
    }
    nodes: list[str] = []
    for _ in range(config.num_env_runners):
        node = take(free, worker, lambda node: (node == here, taken[node]))
        if node is None:
            break
        taken[node] += 1
        nodes.append(node)
    return nodes


def workers_beside_driver(config: AlgorithmConfig) -> int:
    """Return how many rollout workers share this machine's cores with the learner, as far as can be told now."""
    nodes = nodes_for_workers(config)
    if not nodes:
        return int(config.num_env_runners)
    here = ray.get_runtime_context().get_node_id()
    return int(config.num_env_runners) - len(nodes) + nodes.count(here)


def place_beside_driver(config: AlgorithmConfig) -> PlacementGroup | None:
    """Return the learners' place, all on one node and this one if it has room; None where RLlib shall find one.

    It goes with the learner group that is given it.
    """
    if not config.num_learners or not ray.is_initialized() or get_current_placement_group() is not None:
        return None
    here = ray.get_runtime_context().get_node_id()
    needed = learner_resources(config)
    room = {here: free_by_node().get(here, {})}
    if config.num_learners > 1 and not all(take(room, needed) for _ in range(config.num_learners)):
        return None
    place = placement_group([needed] * config.num_learners, strategy="STRICT_PACK", _soft_target_node_id=here)
    if place.wait(LEARNER_WAIT_S):
        return place
    remove_placement_group(place)
    return None


class SpreadEnvRunnerGroup(EnvRunnerGroup):
    """RLlib's group of rollout workers, each on the node that `nodes_for_workers` found for it.

    A worker whose node dies, or is full when the worker starts again, comes back on another.
    """

    def _setup(self, **how: Any) -> None:
        self._nodes = nodes_for_workers(self._remote_config)
        super()._setup(**how)

    def _make_worker(self, *, worker_index: int, **how: Any) -> Any:
        if 0 < worker_index <= len(self._nodes):
            node = self._nodes[worker_index - 1]
            self._remote_args["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                node, soft=True, _spill_on_unavailable=True
            )
        else:
            self._remote_args.pop("scheduling_strategy", None)
        return super()._make_worker(worker_index=worker_index, **how)


@contextmanager
def spread_workers() -> Iterator[None]:
    """Have RLlib's `Algorithm.setup` make its rollout workers by nodes; RLlib has no setting for where they go."""
    before = rllib_algorithm.EnvRunnerGroup
    rllib_algorithm.EnvRunnerGroup = SpreadEnvRunnerGroup
    try:
        yield
    finally:
        rllib_algorithm.EnvRunnerGroup = before
