"""The replay's process lives, and is restarted, on the node that has the ring's file: the driver's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from dipole_ray.columns import Schema
from dipole_ray.rllib.replay_actor import ReplayClient
from tests.chaos.kit import kill, pid_of
from tests.synthetic import random_trajectory

pytestmark = pytest.mark.chaos


def node_of(replay: ReplayClient) -> str:
    return str(ray._private.state.actors(replay._replay._actor_id.hex())["Address"]["NodeID"])


@pytest.mark.usefixtures("ray_folder")
def test_the_replay_stays_with_its_file(tmp_path: Path) -> None:
    """Ray would spread actors that need no CPU over all nodes: of five, about half."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=4)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        here = ray.get_runtime_context().get_node_id()
        replays = [
            ReplayClient(schema=Schema(3, 2), online=tmp_path / f"{number}.arrow", capacity=100) for number in range(5)
        ]
        assert [node_of(replay) for replay in replays] == [here] * 5
        last = replays[-1]
        last.insert(random_trajectory(np.random.default_rng(0), 10), 0, 0, 0)
        kill(pid_of(last._replay))
        assert last.sizes()["online"] == 10 and node_of(last) == here
    finally:
        ray.shutdown()
        cluster.shutdown()
