"""Workers that judge plans die and stall as those that step environments do: the others go on, and no row is lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("shapely")

from dipole_ray import DIPOLE, DIPOLEConfig
from dipole_ray.collect.scenes import scene_dataset
from dipole_ray.envs.scenes import DrivingConfig
from tests.chaos.kit import AGENT, LOOP, kill, ring_rows, train_until, wait_until, worker_pids
from tests.driving.folders import made_folder

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("cluster")]

STALL_S = 20.0
"""Starting takes long where tests share two cores; the first scene is the first sign of life."""


def build(place: Path) -> DIPOLE:
    """Return an algorithm with two scorers and a learner of its own."""
    driving = {"scenes": [str(made_folder(place / "scenes", 6))], "plans": 3}
    data = scene_dataset(DrivingConfig(scenes=tuple(driving["scenes"]), plans=3), place / "cache")
    agent = {**AGENT, "num_candidates": 1, "advantage": "group"}
    made: Any = (
        DIPOLEConfig()
        .environment("drive", env_config={"driving": driving})
        .offline_data(input_=str(data))
        .training(replay_directory=str(place / "replay"), **{**agent, **LOOP, "env_steps_per_iteration": 48})
        .env_runners(
            num_env_runners=2,
            num_envs_per_env_runner=2,
            rollout_fragment_length=3,
            num_cpus_per_env_runner=0.5,
            stall_s=STALL_S,
        )
        .learners(num_learners=1, num_threads=1)
        .evaluation(episodes=4, omegas=(1.0,), candidates=(1,))
        .build_algo()
    )
    return made


def hang(worker: Any) -> None:
    """Let a worker never come back from its next scene."""
    worker._judged = lambda noise: time.sleep(1e6)


def test_scorers_that_die_or_stall_are_replaced_and_every_group_stays_whole(tmp_path: Path) -> None:
    algorithm = build(tmp_path)
    train_until(algorithm, lambda a: a.env_steps >= 96 and len(worker_pids(a)) == 2)
    kill(worker_pids(algorithm)[1])
    before = algorithm.env_steps
    train_until(algorithm, lambda a: a.env_steps >= before + 96)  # the other one goes on
    wait_until(lambda: bool(algorithm.train()) and len(worker_pids(algorithm)) == 2, 180.0, "the scorer is back")
    failures = algorithm.group_metrics["rollout/failures"]
    algorithm.env_runner_group.foreach_env_runner(hang, local_env_runner=False, remote_worker_ids=[2])
    train_until(algorithm, lambda a: a.group_metrics["rollout/failures"] > failures)
    assert algorithm.evaluate()["env_runners"]["num_episodes"] == 4
    rows = ring_rows(algorithm.replay_directory / "online.arrow")
    kept = rows["remaining"] > 0
    assert kept.sum() == algorithm.env_steps == algorithm.replay.sizes()["online"]
    numbers, advantages = (rows[name][kept].reshape(-1, 4) for name in ("observations", "rewards"))
    assert (numbers == numbers[:, :1]).all() and abs(advantages.mean(axis=1)).max() < 1e-5
    algorithm.stop()
