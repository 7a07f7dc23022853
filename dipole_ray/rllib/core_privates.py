"""Every private name of Ray's core that the package uses; those of RLlib and Tune stand in `privates.py`.

They are apart because importing RLlib takes seconds, and the doctor, who asks the cluster as a stranger, needs none.
"""

from typing import Any

import ray
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
