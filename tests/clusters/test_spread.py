"""On several nodes the learner lives with driver and replay, and rollout workers are spread over the other nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from dipole_ray import DIPOLE
from dipole_ray.rllib.placement import node_for_learners, nodes_for_workers
from tests.chaos.kit import config, kill, learner_pid, train_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and two other nodes of two CPU slots each."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("r")
        (folder / "ray").mkdir()
        patch.setenv("RAY_TMPDIR", str(folder))  # where this cluster writes its address, apart from any other Ray
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def here(cluster: Cluster) -> str:
    """The driver's node."""
    return str(ray.get_runtime_context().get_node_id())


def node_of(actor: Any) -> str:
    return str(ray._private.state.actors(actor._actor_id.hex())["Address"]["NodeID"])


def settled(**settings: Any) -> Any:
    """Return a config as it is when an algorithm is built from it."""
    made = config(**settings)
    made.validate()
    return made


def test_the_drivers_node_takes_workers_last_and_keeps_the_learners_share(here: str) -> None:
    """Half a CPU each: four fit on either other node, and two beside a learner; the eleventh fits nowhere."""
    counts = Counter(nodes_for_workers(settled(workers=4)))
    assert here not in counts and sorted(counts.values()) == [2, 2]
    counts = Counter(nodes_for_workers(settled(workers=11)))
    assert counts.pop(here) == 2 and sorted(counts.values()) == [4, 4]
    counts = Counter(nodes_for_workers(settled(workers=12, learners=0)))
    assert counts[here] == 4


def test_automatic_threads_leave_cores_to_the_workers_of_this_node_only(
    here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dipole_ray.rllib.config.usable_cores", lambda: 16)

    def threads(workers: int) -> int:
        made = config(workers=workers)
        made.learner_num_threads = None
        made.validate()
        return int(made.learner_num_threads)

    assert threads(8) == 15, "all workers are elsewhere"
    assert threads(10) == 14, "two have to be here"
    assert threads(12) == 12, "and two that fit nowhere may come here as well"


def test_several_learners_that_do_not_fit_here_are_left_to_ray(here: str) -> None:
    assert node_for_learners(settled(learners=4)) is None
    assert node_for_learners(settled(learners=2)) == here


def test_learner_and_replay_are_here_and_workers_there_also_after_the_learner_died(here: str) -> None:
    algorithm = config(workers=4).build_algo()
    try:
        assert_together(algorithm, here)
        workers = Counter(node_of(actor) for actor in algorithm.env_runner_group._worker_manager.actors().values())
        assert here not in workers and sorted(workers.values()) == [2, 2]
        train_until(algorithm, lambda a: a.learner_steps > 0)
        kill(learner_pid(algorithm))
        train_until(algorithm, lambda a: a.learner_restarts == 1)
        assert_together(algorithm, here)
    finally:
        algorithm.stop()


def assert_together(algorithm: DIPOLE, here: str) -> None:
    assert node_of(algorithm.replay._replay) == here
    assert node_of(algorithm.learner.learners[0]) == here
