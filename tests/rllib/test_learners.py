"""Two learner actors, gradients averaged over gloo, are one learner on the joined batch; a run moves between them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dipole_ray import DIPOLE
from dipole_ray.evaluation.report import FILE_NAME, read_evaluation
from tests.cli.commands import dipole_here, write_config
from tests.rllib.small import config, train_until

SETTINGS = {"offline_learner_steps": 150, "learner_steps_per_iteration": 50}


def build(dataset: Path, learners: int, **settings: Any) -> DIPOLE:
    """Return an algorithm that samples the same batches whatever the number of its learners."""
    return config(dataset, learners=learners, **{**SETTINGS, **settings}).build_algo()


def learned(algorithm: DIPOLE, steps: int) -> dict[str, Tensor]:
    """Return the agent's complete state after `steps` updates."""
    train_until(algorithm, lambda a: a.learner_steps >= steps)
    state = algorithm.checkpoint_contents()[0]["agent"]
    assert int(state["learner_steps"]) == steps
    return state


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Every number of two agents' states is equal to 1e-5, and their noise generators bit for bit."""
    assert left.keys() == right.keys()
    gaps = {name: float((left[name].double() - right[name].double()).abs().max()) for name in left}
    print(f"largest difference: {max(gaps.values()):.1e}")
    assert {name: gap for name, gap in gaps.items() if gap > 1e-5} == {}
    assert torch.equal(left["generator"], right["generator"])


def states_of_all(algorithm: DIPOLE) -> list[dict[str, Tensor]]:
    """Return the state of each learner."""
    found = algorithm.learner_group.foreach_learner(lambda learner: learner.agent_state())
    return [result.get() for result in found.result_or_errors]


@pytest.fixture(scope="module")
def alone(cluster: None, pendulum: Path) -> Iterator[DIPOLE]:
    """DIPOLE with observations of the dataset's scale and the running deviation of the advantage, in one process."""
    algorithm = build(pendulum, 0)
    yield algorithm
    algorithm.stop()


@pytest.fixture(scope="module")
def pair(cluster: None, pendulum: Path) -> Iterator[DIPOLE]:
    """The same with two learner actors."""
    algorithm = build(pendulum, 2)
    yield algorithm
    algorithm.stop()


@pytest.mark.slow
def test_dipole_on_two_learners_and_a_run_that_moves_between_one_and_two(
    alone: DIPOLE, pair: DIPOLE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, found = learned(alone, 100), learned(pair, 100)
    assert float(expected["statistics.running_variance"]) > 0
    assert_close(expected, found)
    for name in ("critic/loss", "actor/loss_positive", "actor/weight_q95", "actor/advantage_std"):
        assert pair.group_metrics[name] == pytest.approx(alone.group_metrics[name], rel=1e-3), name
    both = states_of_all(pair)
    assert len(both) == 2 and all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())

    saved_alone, saved_pair = alone.save_to_path(tmp_path / "alone"), pair.save_to_path(tmp_path / "pair")
    went_on = learned(alone, 150)
    learned(pair, 150)
    with caplog.at_level(logging.WARNING):
        pair.restore_from_path(saved_alone)
    assert "num_learners: 0 -> 2" in caplog.text
    assert all(torch.equal(state[name], tensor) for state in states_of_all(pair) for name, tensor in expected.items())
    assert_close(went_on, learned(pair, 150))
    alone.restore_from_path(saved_pair)
    assert_close(went_on, learned(alone, 150))


def test_online_the_first_learner_publishes_what_all_have_learned(pair: DIPOLE) -> None:
    version = pair.learner.policy.version
    train_until(pair, lambda a: a.env_steps >= 120)
    pair.publish_weights()
    assert pair.learner.policy.version > version
    published = pair.learner.policy.state
    for state in states_of_all(pair):
        assert all(torch.equal(tensor, state[f"networks.{name}"]) for name, tensor in published.items())


@pytest.mark.slow
def test_dipole_train_with_two_learners(cluster: None, pendulum: Path, tmp_path: Path) -> None:
    """By one word on the command line, with evaluation, checkpoints and pictures at the end."""
    run = write_config(
        tmp_path / "run.yaml", data={"path": str(pendulum)}, training={"online_env_steps": 60}, folder="runs"
    )
    done = dipole_here("train", run, "learner.num_learners=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_evaluation(folder / FILE_NAME).keys() == {"offline", "online"}
