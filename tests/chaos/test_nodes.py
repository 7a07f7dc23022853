"""C7: a node of the cluster is lost, with rollout workers and the learner on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from dipole_ray.errors import ResourcesUnavailable
from tests.chaos.conftest import Measured
from tests.chaos.kit import assert_every_row_once, config, train_until, worker_pids

pytestmark = pytest.mark.chaos

NODE = {"roll": 4, "learn": 1}
"""What a node offers beside its CPUs: room for all four workers and a learner, so that it can replace the other."""


@pytest.fixture
def nodes(ray_folder: Path, faults: Path) -> Iterator[Cluster]:
    """A head for the driver and the replay, and one node that can hold workers and learner."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=4, resources=NODE)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def spread_config(**settings: object) -> object:
    """Return a config whose workers and learner only fit on the nodes beside the head."""
    made = config(workers=4, learners=1, **settings)
    return made.env_runners(custom_resources_per_env_runner={"roll": 1}).learners(
        custom_resources_per_learner={"learn": 1}
    )


def test_a_node_with_workers_and_learner_is_lost(nodes: Cluster, tmp_path: Path, measured: Measured) -> None:
    """The run goes on with those of another node: no row lost, none twice, learner back at its checkpoint.

    When the last node is lost too, the run ends within a minute and says what is needed and what there is.
    """
    algorithm = spread_config().build_algo()
    train_until(algorithm, lambda a: a.learner_steps > 0)
    algorithm.save_to_path(tmp_path / "saved")
    first = next(node for node in nodes.list_all_nodes() if node is not nodes.head_node)
    other = nodes.add_node(num_cpus=4, resources=NODE)
    nodes.wait_for_nodes()
    train_until(algorithm, lambda a: a.learner_steps > 200)
    env_steps, before = algorithm.env_steps, worker_pids(algorithm)

    start = time.monotonic()
    nodes.remove_node(first, allow_graceful=False)
    train_until(algorithm, lambda a: a.learner_restarts == 1, 150.0)
    steps = algorithm.learner_steps
    train_until(algorithm, lambda a: a.learner_steps > steps, 150.0)
    measured(
        "C7",
        "node lost with learner and workers: updates again",
        time.monotonic() - start,
        "s",
        bar="as C4: 30 s, and detection",
    )
    train_until(algorithm, lambda a: len(worker_pids(a)) == 4, 150.0)
    measured("C7", "node lost: four workers again", time.monotonic() - start, "s", bar="as C1: 10 s, and detection")
    assert not set(before.values()) & set(worker_pids(algorithm).values())
    assert algorithm.env_steps >= env_steps
    assert_every_row_once(algorithm)

    start = time.monotonic()
    nodes.remove_node(other, allow_graceful=False)
    with pytest.raises(ResourcesUnavailable, match=r"no room on the cluster for the learner: needed .*1 learn; free "):
        train_until(algorithm, lambda a: False, 200.0)
    measured(
        "C7", "last node lost: error with the arithmetic", time.monotonic() - start, "s", bar="<= 60 s + detection"
    )
    algorithm.stop()
