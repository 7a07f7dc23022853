"""What users of RLlib call on `algo.learner_group` works, here and with actors, or says what to call instead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core.learner.learner_group import LearnerGroup

from dipole_ray import DIPOLE
from dipole_ray.errors import ConfigError
from tests.rllib.small import config, train_until
from tests.rllib.test_publishing import acts_newest, batches

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module", params=[0, 1], ids=["in one process", "an actor"])
def algorithm(request: pytest.FixtureRequest, cluster: None, pendulum: Path) -> Iterator[DIPOLE]:
    built = config(pendulum, learners=request.param).build_algo()
    built.train()
    yield built
    built.stop()


def test_rllibs_own_questions_are_answered(algorithm: DIPOLE) -> None:
    group = algorithm.learner_group
    assert isinstance(group, LearnerGroup) and group is algorithm.learner
    assert group.is_remote == (not group.is_local) == bool(len(group))
    assert group.get_stats()["actor_manager_num_outstanding_async_reqs"] == 0
    (pid,) = [result.get() for result in group.foreach_learner(lambda learner, add: os.getpid() + add, add=1)]
    assert (pid == os.getpid() + 1) == group.is_local


def test_weights_go_out_and_in(algorithm: DIPOLE) -> None:
    group = algorithm.learner_group
    weights = algorithm.get_weights()
    assert {type(array) for array in weights["default_policy"].values()} == {np.ndarray}
    version = algorithm.learner.policy.version
    group.set_weights({"default_policy": {name: array + 1.0 for name, array in weights["default_policy"].items()}})
    changed = group.get_weights()["default_policy"]
    assert all(np.array_equal(changed[name], array + 1.0) for name, array in weights["default_policy"].items())
    assert algorithm.learner.policy.version == version + 1, "workers would go on with the old weights"
    group.set_weights(weights)


def test_the_state_of_the_algorithm_holds_all_that_the_agent_has(algorithm: DIPOLE) -> None:
    state, before = algorithm.get_state(), algorithm.learner.agent_state()
    algorithm.train()
    assert not all(torch.equal(tensor, before[name]) for name, tensor in algorithm.learner.agent_state().items())
    algorithm.learner_group.set_state(state["learner_group"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in algorithm.learner.agent_state().items())


def test_what_would_not_do_what_it_says_names_what_does(algorithm: DIPOLE, tmp_path: Path) -> None:
    group = algorithm.learner_group
    with pytest.raises(ConfigError, match=r"call algo\.train\(\)"):
        group.update(batch={})
    with pytest.raises(ConfigError, match="one agent"):
        group.add_module(module_id="second", module_spec=None)
    for call in (group.save_to_path, group.restore_from_path, group.load_module_state):
        with pytest.raises(ConfigError, match=r"call algo\.save_to_path\(FOLDER\)"):
            call(tmp_path)


def test_without_workers_no_clock_decides_which_policy_acts(algorithm: DIPOLE) -> None:
    """So that a resumed run goes on exactly: a learner here publishes once it is asked, an actor with each call."""
    group = algorithm.learner_group
    group.drain()
    first = group.policy.version
    for call in range(6):
        group.submit(batches(), publish=True)
        expected = max(0, call - 1) if group.is_remote else call + 1  # two calls are in flight
        assert group.policy.version - first == expected
    group.drain()
    assert group.policy.version - first == 6 and acts_newest(group)


def test_a_learner_class_that_is_none_of_ours_is_refused(pendulum: Path) -> None:
    made = config(pendulum).learners(learner_class=dict)
    with pytest.raises(ConfigError, match="learner_class is dict: it must derive from DIPOLELearner"):
        made.build_algo()


@pytest.mark.slow
def test_an_evaluation_survives_the_death_of_the_learner(pendulum: Path) -> None:
    algorithm = config(pendulum, learners=1).build_algo()
    try:
        algorithm.train()
        ray.kill(algorithm.learner.learners[0])
        assert algorithm.evaluate()["env_runners"]["episode_return_mean"] < 0
        assert algorithm.learner_restarts == 1
    finally:
        algorithm.stop()


@pytest.mark.slow
def test_an_iteration_that_the_learners_death_ended_is_finished_by_the_next(pendulum: Path, tmp_path: Path) -> None:
    """No update that the environment steps are owed is forgotten, and iterations end where they always do."""
    algorithm = config(pendulum, learners=1, learner_steps_per_call=2).build_algo()
    try:
        train_until(algorithm, lambda a: a.env_steps == 60)
        algorithm.save_to_path(tmp_path / "saved")
        ray.kill(algorithm.learner.learners[0])
        train_until(algorithm, lambda a: a.learner_restarts == 1)
        assert algorithm.is_within_iteration
        train_until(algorithm, lambda a: not a.is_within_iteration)
        assert algorithm.env_steps == 120
        assert algorithm.learner_steps + algorithm.lost_updates == 40 + 120 * 0.3
    finally:
        algorithm.stop()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the learner would be on the GPU, which may have it")
def test_a_precision_that_the_learners_device_lacks_is_refused_when_a_run_starts(pendulum: Path) -> None:
    made = config(pendulum).learners(matmul_precision="tf32")
    with pytest.raises(ConfigError, match=r"learner.matmul_precision: tf32 is a GPU's, .* set bf16 or float32"):
        made.build_algo()
    with pytest.raises(ConfigError, match="choose one of float32, tf32, bf16"):
        made.learners(matmul_precision="fp8")
