"""The loop of both phases takes another source of experience as it takes stepped environments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from dipole_ray import DIPOLE
from dipole_ray.data.schema import close_trajectory, concatenate
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult
from dipole_ray.files.checkpoint import read_checkpoint
from dipole_ray.rllib.experience import Experience, FragmentReport, PublishedPolicy, SourceState
from tests.rllib.small import assert_same_tensors, config, train_until

pytestmark = pytest.mark.usefixtures("cluster")

GROUP = 4
"""Plans that are judged together for one scene."""


def judged(observations: np.ndarray, plans: np.ndarray) -> np.ndarray:
    """Score plans (G, 1) for a scene (G, 3): the best one is the scene's first number."""
    scores: np.ndarray = -np.abs(plans - observations[:, :1]).sum(axis=1)
    return scores


class Scorer:
    """Samples a group of plans for a scene, judges them, and gives each as an episode of one step."""

    def __init__(self, group: EnvRunnerGroup) -> None:
        self._policy = group.local_env_runner.module.policy
        self._generator = torch.Generator().manual_seed(3)
        self._sequence = self._life = 0
        self.is_stopped = False

    num_workers = 1
    interrupted: Sized = ()

    def _scenes(self, count: int) -> torch.Tensor:
        return torch.rand((count, 3), generator=self._generator) * 2 - 1

    def _plans(self, scenes: torch.Tensor, policy: PublishedPolicy) -> np.ndarray:
        self._policy.load_policy_state(policy.state)
        plans: np.ndarray = self._policy.sample_actions(scenes, generator=self._generator, explore=True).numpy()
        return plans

    def came_back(self) -> list[int]:
        return []

    def gather(self, policy: Callable[[], PublishedPolicy]) -> Iterator[FragmentReport]:
        while True:
            newest = policy()
            scenes = self._scenes(1).repeat(GROUP, 1)
            plans = self._plans(scenes, newest)
            scores = judged(scenes.numpy(), plans)
            advantages = (scores - scores.mean()) / (scores.std() + 1e-6)
            self._sequence += 1
            rows = [
                close_trajectory(scenes[[i, i]].numpy(), plans[[i]], advantages[[i]], np.zeros(1)) for i in range(GROUP)
            ]
            yield FragmentReport(
                rows=concatenate(rows),
                worker=0,
                incarnation=self._life,
                sequence=self._sequence,
                env_steps=GROUP,
                dropped_env_steps=0,
                returns=scores.tolist(),
                lengths=[1] * GROUP,
                successes=[],
                policy_version=newest.version,
                busy_s=0.0,
            )

    def evaluate(self, cells: Sequence[Cell], policy: PublishedPolicy, **how: Any) -> Iterator[CellResult]:
        for cell in reversed(cells):
            scenes = self._scenes(how["episodes"])
            scores, ones = judged(scenes.numpy(), self._plans(scenes, policy)), np.ones(len(scenes), np.int64)
            yield CellResult(cell, scores, None, ones, (), None, np.zeros(len(ones)))

    plays_beside = False

    def metrics(self) -> dict[str, float]:
        return {"rollout/scorers": 1.0}

    def state(self) -> SourceState | None:
        return {"generator": self._generator.get_state()}, {"sequence": self._sequence, "life": self._life}

    def restore(self, state: SourceState | None, life: int) -> None:
        if state is None:
            self._generator.manual_seed(life)
            self._sequence, self._life = 0, life
        else:
            self._generator.set_state(state[0]["generator"])
            self._sequence, self._life = state[1]["sequence"], state[1]["life"]

    def stop(self) -> None:
        self.is_stopped = True


class Judged(DIPOLE):
    """DIPOLE whose experience is judged plans."""

    def make_experience(self, group: EnvRunnerGroup) -> Experience:
        return Scorer(group)


def build() -> Judged:
    return Judged(config=config(None, offline_learner_steps=0, updates_per_env_step=0.5, env_steps_per_iteration=40))


def test_the_loop_learns_from_judged_plans_and_steps_no_environment(tmp_path: Path) -> None:
    algorithm = build()
    train_until(algorithm, lambda a: a.env_steps >= 200)
    assert algorithm.env_steps == 200 and algorithm.learner_steps == 100
    batch = algorithm.replay.sample(64, 4)
    assert not batch["masks"].any() and abs(batch["rewards"].mean()) < 0.3, "one step each, and its advantage as given"
    metrics = algorithm.group_metrics
    assert metrics["rollout/scorers"] == 1.0 and metrics["rollout/length"] == 1.0 and metrics["rollout/return"] <= 0
    assert math.isfinite(metrics["critic/loss"]) and "rollout/workers" not in metrics
    evaluated = algorithm.evaluate()["env_runners"]
    assert evaluated["episode_len_mean"] == 1.0 and algorithm.score == evaluated["episode_return_mean"] <= 0
    assert algorithm.env_runner_group.local_env_runner.env is None
    source = algorithm.experience
    algorithm.stop()
    assert isinstance(source, Scorer) and source.is_stopped


def test_a_checkpoint_continues_another_source_bitwise(tmp_path: Path) -> None:
    algorithm = build()
    train_until(algorithm, lambda a: a.env_steps >= 80)
    path = algorithm.save_to_path(tmp_path / "saved")
    algorithm.train()
    expected = algorithm.checkpoint_contents()[0]
    algorithm.stop()
    resumed = build()
    resumed.restore_contents(read_checkpoint(Path(path)))
    resumed.train()
    assert resumed.env_steps == 120
    assert_same_tensors(resumed.checkpoint_contents()[0], expected)
    resumed.stop()
