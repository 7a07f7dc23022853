"""Where the actors of a run live, and whether the cluster has room for them.

Left to itself Ray fills the driver's node first, where driver, replay and learner need the cores; a batch for a
learner elsewhere then crosses the network. So learners go to the driver's node and rollout workers evenly to the
others, and what does not fit there goes where there is room. What fits nowhere is an error with the arithmetic
instead of a silent wait. Inside Tune the trial's placement group decides.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.util.debug import log_once
from ray.util.placement_group import get_current_placement_group

from dipole_ray.cluster import refuse_client, start_ray
from dipole_ray.errors import ResourcesUnavailable
from dipole_ray.rllib.core_privates import free_resources_by_node
from dipole_ray.rllib.privates import PlacedEnvRunnerGroup

logger = logging.getLogger(__name__)

WAIT_S = 60.0  # for a growing cluster to bring the missing node, and for dead actors to give theirs back
POLL_S = 0.5
FIRST_TRIAL_S = 3.0  # for actors that were just ended
TRIAL_LESS = (
    "env_runners(num_env_runners=..., num_cpus_per_env_runner=...), learners(num_learners=0), "
    "resources(num_cpus_for_main_process=...)"
)

Resources = Mapping[str, float]
Actors = tuple[str, int, Resources]  # their name in messages, how many, and the resources of each


def learners_of(config: AlgorithmConfig) -> tuple[str, int, dict[str, float]]:
    """Return the learner actors of a run; each reserves what it does by RLlib's rules."""
    gpus = max(0, config.num_gpus_per_learner)
    cpus = int(not gpus) if config.num_cpus_per_learner == "auto" else config.num_cpus_per_learner
    return "learner", config.num_learners, {"CPU": cpus, "GPU": gpus, **(config.custom_resources_per_learner or {})}


def workers_of(config: AlgorithmConfig) -> Actors:
    """Return the rollout workers of a run."""
    amounts = {"CPU": config.num_cpus_per_env_runner, "GPU": config.num_gpus_per_env_runner}
    return "rollout workers", config.num_env_runners, {**amounts, **(config.custom_resources_per_env_runner or {})}


def evaluators_of(config: AlgorithmConfig) -> Actors:
    """Return the workers that only evaluate."""
    _, count, resources = workers_of(config.get_evaluation_config_object())
    return "evaluation workers", count, resources


def require_room(actors: Sequence[Actors], wait_s: float = WAIT_S) -> None:
    """Return once the cluster's free resources hold all `actors`; inside Tune the trial's own placement decides.

    A program that never started Ray joins or starts one here, which RLlib needs even without actors.

    Raises:
        ResourcesUnavailable: They could not be placed within `wait_s`; says what is needed and what is there.
        ConfigError: As `start_ray`, or the cluster is reached by Ray Client.
    """
    if not ray.is_initialized():
        start_ray()
    if not _is_ours_to_decide():
        return
    start, told = time.monotonic(), False
    while (unplaced := _first_unplaced(actors, free := free_resources_by_node())) is not None:
        text = f"no room on the cluster for the {unplaced}: {_arithmetic(actors, free, 'free')}"
        if time.monotonic() - start >= wait_s:
            raise ResourcesUnavailable(f"{text}; ask for less, free resources, or add a node to the cluster")
        if not told and time.monotonic() - start > POLL_S:
            logger.warning("%s; waiting up to %.0f s for room", text, wait_s)
            told = True
        time.sleep(POLL_S)


def require_capacity(actors: Sequence[Actors], what: str, remedy: str) -> None:
    """Raise ResourcesUnavailable where `what` could never be placed, even if the cluster had nothing else to do.

    `remedy` names the settings by which one asks for less.
    """
    nodes = {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}
    if _first_unplaced(actors, nodes) is not None:
        raise ResourcesUnavailable(
            f"{what} could never be placed: {_arithmetic(actors, nodes, 'available')}; ask for less ({remedy}), or add "
            "a node to the cluster"
        )


def require_trial(bundles: Sequence[Resources]) -> None:
    """Refuse a trial of Tune's that no state of the cluster could hold: Tune would leave it PENDING for ever.

    One that finds no room only now may wait for others to end; where it is the first one, the warning says for what.
    """
    counts = Counter(tuple(sorted(bundle.items())) for bundle in bundles)
    actors = [("process" if count == 1 else "processes", count, dict(items)) for items, count in counts.items()]
    require_capacity(actors, "a trial", TRIAL_LESS)
    if log_once("DIPOLE_room_for_the_first_trial"):
        try:
            require_room(actors, wait_s=FIRST_TRIAL_S)
        except ResourcesUnavailable as error:
            logger.warning("the first trial waits: %s; algo.stop() ends the actors of an algorithm", error)


def node_for_learners(config: AlgorithmConfig) -> str | None:
    """Return this node if it has room for all learners, None where Ray shall find a place."""
    if not _is_ours_to_decide():
        return None
    here = ray.get_runtime_context().get_node_id()
    room = {node: free for node, free in free_resources_by_node().items() if node == here}
    return here if _first_unplaced([learners_of(config)], room) is None else None


def nodes_for_workers(config: AlgorithmConfig) -> list[str]:
    """Return a node for each rollout worker, fewer where the cluster's free resources end.

    The learners' share is set aside first, on this node if it fits; workers come to this node last.
    """
    if not _is_ours_to_decide():
        return []
    here, free = ray.get_runtime_context().get_node_id(), free_resources_by_node()
    _, num_learners, learner = learners_of(config)
    for _ in range(num_learners):
        _take(free, learner, lambda node: node != here)
    _, num_workers, worker = workers_of(config)
    nodes: list[str] = []
    for _ in range(num_workers):
        node = _take(free, worker, lambda node: (node == here, nodes.count(node)))
        if node is None:
            break
        nodes.append(node)
    return nodes


def workers_beside_driver(config: AlgorithmConfig) -> int:
    """Return how many rollout workers share this machine's cores with the learner, as far as can be told now."""
    nodes = nodes_for_workers(config)
    elsewhere = [node for node in nodes if node != ray.get_runtime_context().get_node_id()]
    return int(config.num_env_runners) - len(elsewhere)


class SpreadEnvRunnerGroup(PlacedEnvRunnerGroup):
    """RLlib's group of rollout workers, spread over the nodes."""

    nodes_for = staticmethod(nodes_for_workers)


def _is_ours_to_decide() -> bool:
    """Return whether actors may be placed: Ray runs, and this is no trial of Tune's with a placement group."""
    refuse_client()
    return ray.is_initialized() and get_current_placement_group() is None


def _first_unplaced(actors: Sequence[Actors], nodes: Mapping[str, Resources]) -> str | None:
    """Return the name of the first actor that finds no node when all are placed one after the other, or None."""
    free = {node: dict(resources) for node, resources in nodes.items()}
    wanted = ((name, needed) for name, count, needed in actors for _ in range(count))
    return next((name for name, needed in wanted if _take(free, needed) is None), None)


def _take(
    free: Mapping[str, dict[str, float]], needed: Resources, order: Callable[[str], Any] = lambda node: 0
) -> str | None:
    """Take `needed` from the first node, in `order`, that has it, and return the node; None if none has."""
    fitting = [node for node, has in free.items() if all(has.get(k, 0.0) >= v - 1e-9 for k, v in needed.items())]
    node = min(fitting, key=order, default=None)
    if node is not None:
        for resource, amount in needed.items():
            free[node][resource] = free[node].get(resource, 0.0) - amount
    return node


def _arithmetic(actors: Sequence[Actors], nodes: Mapping[str, Resources], word: str) -> str:
    """Return the resources needed, and those of the nodes, in words."""
    needed = " + ".join(f"{count} {name} of {_text(resources)}" for name, count, resources in actors)
    names = sorted({resource for _, _, resources in actors for resource in resources})
    found = {node[:8]: {name: amounts.get(name, 0.0) for name in names} for node, amounts in nodes.items()}
    there = [f"{_text(amounts)} on {node}" for node, amounts in found.items()]
    return f"needed {needed}; {word} {', '.join(there) or 'nothing'}"


def _text(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"
