"""FQL and IQL go through the same loop as DIPOLE: both phases, a checkpoint in between, evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dipole_ray import DIPOLE
from tests.rllib.small import assert_same_tensors, config, train_until

pytestmark = pytest.mark.usefixtures("cluster")

OTHERS: dict[str, dict[str, Any]] = {
    "fql": {"algorithm": "fql", "bootstrap": "policy", "advantage_normalization": "none", "alpha": 3.0, "omega": 0.0},
    "iql": {"algorithm": "iql", "omega": 0.0},
}


@pytest.mark.parametrize("algorithm", OTHERS)
def test_trains_offline_and_online_goes_on_from_a_checkpoint_and_is_evaluated(
    algorithm: str, pendulum: Path, tmp_path: Path
) -> None:
    first = config(pendulum, **OTHERS[algorithm]).build_algo()
    train_until(first, lambda a: a.env_steps >= 60)
    path = first.save_to_path(tmp_path / "saved")
    resumed = DIPOLE.from_checkpoint(path)
    for one in (first, resumed):
        one.train()
    assert_same_tensors(first.checkpoint_contents()[0], resumed.checkpoint_contents()[0])
    assert resumed.learner.agent_state()["skipped_updates"].item() == 0
    found = resumed.evaluate()
    assert -2000 < found["env_runners"]["episode_return_mean"] < 0
    cells = {"omega_0_candidates_1", "omega_0_candidates_2"}
    assert cells <= found.keys() and all(math.isfinite(found[name]["return"]) for name in cells)
    first.stop()
    resumed.stop()


def test_rollouts_of_iql_draw_where_its_evaluation_takes_the_mode() -> None:
    settings = {**OTHERS["iql"], "num_candidates": 1, "learning_rate": 1e-5, "offline_learner_steps": 0}
    algorithm = config(None, **settings).build_algo()
    train_until(algorithm, lambda a: a.env_steps >= 60)
    actions = algorithm.replay.sample(16, 4)["actions"]
    assert actions.std() > 0.4, "the deviation begins at 1 and has hardly moved; the mean begins near 0"
    agent = algorithm.learner.learners[0].agent
    assert float(agent.sample_actions(algorithm.replay.sample(16, 4)["observations"]).std()) < 0.2
    algorithm.stop()
