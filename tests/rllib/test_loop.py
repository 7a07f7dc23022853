"""The loop of both phases in one process: what is counted is exact."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from dipole_ray import DIPOLE
from dipole_ray.agents import flow
from dipole_ray.data.dataset import open_dataset
from dipole_ray.errors import ConfigError
from tests.rllib.nan_env import NanSteps
from tests.rllib.small import config, train_until

pytestmark = pytest.mark.usefixtures("cluster")

WAITS = ("time/learner_wait_fraction", "time/rollout_wait_fraction")


@pytest.mark.parametrize("ratio", [0.3, 1, 2.5])
def test_updates_per_env_step_hold_exactly_and_across_a_restart(ratio: float, pendulum: Path, tmp_path: Path) -> None:
    exact = Fraction(ratio).limit_denominator(1000)
    algorithm = config(pendulum, updates_per_env_step=ratio, offline_learner_steps=20).build_algo()
    version = 0
    for iteration in range(9):
        if iteration in (4, 6):  # the first restart is in the middle of an odd number of steps
            path = algorithm.save_to_path(tmp_path / str(iteration))
            algorithm.stop()
            algorithm = DIPOLE.from_checkpoint(path)
        algorithm.train()
        if algorithm.env_steps:
            assert algorithm.learner_steps == 20 + math.floor(exact * algorithm.env_steps)
        assert algorithm.replay.sizes()["online"] == algorithm.env_steps
        assert algorithm.learner.agent_state()["learner_steps"].item() == algorithm.learner_steps
        assert algorithm.learner.policy.version >= version
        version = algorithm.learner.policy.version
    assert algorithm.env_steps == 7 * 60
    assert algorithm.group_metrics["replay/updates_per_env_step"] == pytest.approx(ratio, abs=1 / algorithm.env_steps)
    algorithm.stop()


def test_rollouts_take_denoise_steps_of_their_own_and_evaluations_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, generate = [], flow.generate

    def noted(*given: Any) -> Any:
        taken.append(given[4])
        return generate(*given)

    monkeypatch.setattr(flow, "generate", noted)
    algorithm = config(None, offline_learner_steps=0, denoise_steps=3, rollout_denoise_steps=1).build_algo()
    algorithm.train()
    in_rollouts = set(taken)
    taken.clear()
    algorithm.evaluate()
    algorithm.stop()
    assert in_rollouts == {1} and set(taken) == {3}


def test_offline_phase_ends_exactly_at_its_count(pendulum: Path) -> None:
    """33 updates are neither a whole number of calls (8) nor of iterations (16)."""
    algorithm = config(pendulum, offline_learner_steps=33).build_algo()
    steps, phases = [], []
    for _ in range(4):
        phases.append(algorithm.phase)
        algorithm.train()
        steps.append((algorithm.learner_steps, algorithm.env_steps))
    assert phases == ["offline", "offline", "offline", "online"]
    assert steps[:3] == [(16, 0), (32, 0), (33, 0)] and steps[3] == (33 + 18, 60)
    algorithm.stop()


def test_results_carry_rllibs_keys_and_ours(pendulum: Path) -> None:
    algorithm = config(pendulum, env_steps_per_iteration=420, online_env_steps=420).build_algo()
    first = algorithm.train()
    assert "score" not in first, "there is none before the first evaluation"
    assert (first["learner_steps"], first["env_steps"]) == (16, 0)
    assert "rollout/return" not in algorithm.group_metrics
    train_until(algorithm, lambda a: a.env_steps >= 420)
    result = algorithm.train()
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == algorithm.env_steps == 840
    # Pendulum's episodes have 200 steps, and none of its returns is positive.
    assert result["env_runners"]["episode_len_mean"] == 200
    assert -2000 < result["env_runners"]["episode_return_mean"] < 0
    losses = result["learners"]["default_policy"]
    assert math.isfinite(losses["critic"]["loss"]) and losses["replay"]["online"] == 840
    metrics = algorithm.group_metrics
    assert all(0 <= metrics[name] <= 1 for name in WAITS)
    assert metrics["rollout/episodes"] == 4 and metrics["rollout/policy_lag"] >= 0
    evaluated = algorithm.evaluate()["env_runners"]
    assert -2000 < evaluated["episode_return_mean"] < 0 and algorithm.score == evaluated["episode_return_mean"]
    assert algorithm.train()["score"] == algorithm.score
    algorithm.stop()


def test_same_seed_same_course_other_seed_another(pendulum: Path) -> None:
    ends = []
    for seed in (1, 1, 2):
        made = config(pendulum)
        made.debugging(seed=seed)
        algorithm = made.build_algo()
        train_until(algorithm, lambda a: a.env_steps >= 60)
        ends.append(np.concatenate([tensor.numpy().ravel() for tensor in algorithm.learner.policy.state.values()]))
        algorithm.stop()
    assert np.array_equal(ends[0], ends[1]) and not np.array_equal(ends[0], ends[2])


def test_pure_offline_goes_on_beyond_its_count(pendulum: Path, tmp_path: Path) -> None:
    algorithm = config(pendulum, online_env_steps=0).build_algo()
    for _ in range(4):
        algorithm.train()
    assert (algorithm.learner_steps, algorithm.env_steps, algorithm.phase) == (16 + 16 + 8 + 16, 0, "offline")
    assert algorithm.replay.sizes() == {"offline": 2000, "online": 0}
    path = algorithm.save_to_path(tmp_path / "saved")
    algorithm.train()
    expected = algorithm.learner.agent_state()
    algorithm.stop()
    resumed = DIPOLE.from_checkpoint(path)
    resumed.train()
    assert all((resumed.learner.agent_state()[name] == tensor).all() for name, tensor in expected.items())
    assert math.isfinite(resumed.evaluate()["env_runners"]["episode_return_mean"])
    resumed.stop()


def test_pure_online_learns_from_its_own_steps() -> None:
    algorithm = config(None, offline_learner_steps=0, updates_per_env_step=1.0).build_algo()
    train_until(algorithm, lambda a: a.env_steps >= 400)
    assert algorithm.replay.sizes() == {"offline": 0, "online": algorithm.env_steps}
    assert algorithm.learner_steps == algorithm.env_steps == 420
    algorithm.stop()


def test_every_batch_holds_its_exact_share_of_offline_rows(pendulum: Path) -> None:
    algorithm = config(pendulum, offline_fraction=0.25).build_algo()
    train_until(algorithm, lambda a: a.env_steps >= 60)
    held = {row.tobytes() for segment in open_dataset(pendulum).segments for row in segment.columns["observations"]}
    batches = algorithm.replay.sample(16, 5)["observations"].reshape(5, 16, 3)
    assert all([row.tobytes() in held for row in batch] == [True] * 4 + [False] * 12 for batch in batches)
    algorithm.stop()


def test_ring_holds_more_steps_than_it_has_rows(pendulum: Path) -> None:
    """A small ring keeps the newest; the counts of the run go on."""
    algorithm = config(pendulum, replay_capacity=130, env_steps_per_iteration=90).build_algo()
    train_until(algorithm, lambda a: a.env_steps >= 360)
    assert 0 < algorithm.replay.sizes()["online"] < algorithm.env_steps == 360
    assert algorithm.replay.state()["env_steps_inserted"] == 360
    algorithm.stop()


def test_a_ring_that_cannot_hold_one_delivery_is_refused_before_the_training() -> None:
    with pytest.raises(ConfigError, match=r"replay_capacity is 31, and a worker delivers 32 rows .*set at least 60"):
        config(None, offline_learner_steps=0, replay_capacity=31).build_algo()


class ShortEpisodes(NanSteps):
    """Ends by itself after every second step, which no time limit tells in advance."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        super().step(action)
        return self.position.copy(), -1.0, self.steps % 2 == 0, False, {}


def test_a_ring_without_a_set_capacity_has_room_for_every_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of episodes of two steps; a run that is made longer keeps the ring that it has, and says so."""
    gymnasium.register("ShortEpisodes-v0", entry_point=ShortEpisodes, max_episode_steps=200)
    short = config(None, offline_learner_steps=0).environment("ShortEpisodes-v0")
    algorithm = short.build_algo()
    train_until(algorithm, lambda a: a.env_steps >= 400)
    held = algorithm.replay.sizes()["online"]
    assert held == algorithm.env_steps == 420
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    algorithm.stop()
    longer = config(None, offline_learner_steps=0, online_env_steps=4000).environment("ShortEpisodes-v0").build_algo()
    assert not [text for text in caplog.messages if "online ring" in text]
    longer.restore_from_path(path)
    assert longer.replay.sizes()["online"] == held
    assert [text for text in caplog.messages if "the online ring keeps the 1040 rows that it was made with" in text]
    longer.train()
    longer.stop()
