"""Environments that people bring to RLlib's config, and the score of a run in them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from ray import tune

from dipole_ray import DIPOLE, DIPOLEConfig
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult
from tests.odd_envs import Always
from tests.rllib.small import config

pytestmark = pytest.mark.usefixtures("cluster")  # building an algorithm would start a Ray of its own


def brought(name: str, workers: int = 0, **env_config: Any) -> DIPOLEConfig:
    """Return a config without data on an environment."""
    made = config(None, workers=workers, offline_learner_steps=0)
    return made.environment(name, env_config=env_config)


def result(successes: list[bool] | None) -> CellResult:
    """Return what a cell gave: returns of -5, and success where it is told."""
    told = None if successes is None else np.array(successes)
    counts: Any = {"returns": np.full(2, -5.0), "lengths": np.full(2, 3), "at_bound": np.zeros(2)}
    return CellResult(cell=Cell(), successes=told, paths=(), maze=None, **counts)


@pytest.mark.parametrize(
    ("told", "scores"),
    [
        ([None, [True, False]], [-5.0, -5.0]),
        ([[True, False], None], [0.5, 0.0]),
        ([None, None], [-5.0, -5.0]),
    ],
)
def test_the_score_of_a_run_is_a_success_or_a_return_and_never_changes_over(
    told: list[list[bool] | None], scores: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    algorithm = brought("tests.odd_envs:WhenSolved-v0").build_algo()
    found = []
    for successes in told:
        (row,) = algorithm.rows([result(successes)])
        algorithm.note_score(row)
        found.append(algorithm.score)
        restored = DIPOLE.from_checkpoint(algorithm.save_to_path(tmp_path / str(len(found))))
        algorithm.stop()
        algorithm = restored  # the decision is in the checkpoint
    algorithm.stop()
    assert found == scores
    is_late = told[0] is None and told[1] is not None
    assert ("with env.success=true" in caplog.text) == is_late


def test_a_task_said_to_define_success_has_it_from_the_start() -> None:
    algorithm = brought("tests.odd_envs:WhenSolved-v0", success=True).build_algo()
    algorithm.note_score(algorithm.rows([result(None)])[0])
    algorithm.stop()
    assert algorithm.score == 0.0


@pytest.mark.parametrize("name", ["Always", "LastStep", "WhenSolved", "NoneUntilOver", "OneDict"])
def test_rollouts_and_evaluation_read_one_success(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    algorithm = brought(f"tests.odd_envs:{name}-v0").build_algo()
    for _ in range(2):
        algorithm.train()
    shares = [value or 0.0 for value in algorithm.recent.values["success"]]
    assert algorithm.group_metrics["rollout/success"] == pytest.approx(np.mean(shares)) and 0 < np.mean(shares) < 1
    algorithm.evaluate()
    algorithm.stop()
    assert 0 <= algorithm.score <= 1


def test_env_config_reaches_the_constructor_and_the_checkpoint(tmp_path: Path) -> None:
    algorithm = brought("tests.odd_envs:Massive-v0", mass=3.0, max_episode_steps=7).build_algo()
    env = algorithm.config.env_settings()
    assert (env.kwargs, env.max_episode_steps) == ({"mass": 3.0}, 7)
    again = DIPOLE.from_checkpoint(algorithm.save_to_path(tmp_path / "saved"))
    assert again.config.env_settings() == env
    algorithm.stop(), again.stop()


def test_a_name_of_tunes_registry_is_told_the_way() -> None:
    tune.register_env("brought", lambda _: Always())
    with pytest.raises(ConfigError, match=r"'brought' is a name of tune\.register_env.*'your_module:NAME'"):
        brought("brought").build_algo()


def test_an_id_that_no_worker_finds_is_refused_before_training() -> None:
    gymnasium.register("OfThisScript-v0", Always, max_episode_steps=10)
    with pytest.raises(ConfigError, match=r"'OfThisScript-v0' is registered in this script alone.*your_module:Of"):
        brought("OfThisScript-v0", workers=1).build_algo()
    brought("OfThisScript-v0").build_algo().stop()
