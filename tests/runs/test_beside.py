"""Evaluations during training: workers play them while the learner goes on, with the weights of their step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dipole_ray.collect import collect
from dipole_ray.evaluation.cells import chosen_cell
from dipole_ray.evaluation.play import evaluate_cell
from dipole_ray.evaluation.table import rows_of
from dipole_ray.runs.config import RunConfig
from dipole_ray.runs.run import Run
from dipole_ray.runs.start import train_in
from dipole_ray.serving.policy import load_policy
from dipole_ray.tracking.metrics_file import read_metrics

pytestmark = pytest.mark.slow

EPISODES = 3


@pytest.fixture(scope="module")
def config(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run whose workers are processes, with a checkpoint wherever an evaluation is due."""
    folder = tmp_path_factory.mktemp("beside")
    data = collect("Pendulum-v1", 1000, 0, folder / "data", progress=False)[0]
    agent = {"preset": "small", "hidden_dims": [16, 16], "batch_size": 16, "denoise_steps": 2, "num_candidates": 2}
    training = {"offline_learner_steps": 80, "online_env_steps": 240, "learner_steps_per_iteration": 20}
    training |= {"updates_per_env_step": 0.5, "env_steps_per_iteration": 60, "learner_steps_per_call": 10}
    evaluation = {"episodes": 2, "omegas": [0.0], "candidates": [1], "every_learner_steps": 40}
    mapping: dict[str, Any] = {"env": {"id": "Pendulum-v1"}, "data": {"path": str(data)}, "agent": agent}
    mapping |= {"training": training, "evaluation": {**evaluation, "interval_episodes": EPISODES}}
    mapping |= {"rollout": {"num_workers": 2, "envs_per_worker": 2, "fragment_steps": 15, "cpus_per_worker": 0.5}}
    mapping |= {"learner": {"remote": True, "num_threads": 1}, "tracking": {"mlflow": False}}
    return RunConfig.from_mapping(mapping)


@dataclass
class Story:
    """A run that was asked to stop right after an evaluation began, and then went on to its end."""

    stopped: Run
    lines_at_the_stop: list[dict[str, Any]]
    ended: Run
    kept: dict[int, Path]
    """A checkpoint of the weights with which each evaluation of the second part began, by updates."""
    went_on: list[bool]
    """Of each of them, whether the learner made updates meanwhile."""


@pytest.fixture(scope="module")
def story(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Both parts of the run: each starts processes, which takes longer than all they do."""
    folder = tmp_path_factory.mktemp("story")
    kept: dict[int, Path] = {}
    went_on: list[bool] = []
    begin, take = Run._evaluate_if_due, Run._take_evaluation

    def stopping(self: Run, before: int) -> dict[str, float]:
        found = begin(self, before)
        if self._beside is not None:
            self.stops.numbers.append(15)  # as SIGTERM does
        return found

    def begin_and_keep(self: Run, before: int) -> dict[str, float]:
        earlier = self._beside
        found = begin(self, before)
        if self._beside is not None and self._beside is not earlier:
            kept[self.steps[0]] = Path(self.algorithm.save_to_path(folder / f"at-{self.steps[0]}"))
        return found

    def take_and_note(self: Run, *, wait: bool) -> None:
        one = self._beside
        take(self, wait=wait)
        if one is not None and self._beside is None:
            went_on.append(self.steps[0] > one.steps[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_evaluate_if_due", stopping)
        stopped = train_in(folder / "run", config)
        lines = read_metrics(stopped.folder)
        patch.setattr(Run, "_evaluate_if_due", begin_and_keep)
        patch.setattr(Run, "_take_evaluation", take_and_note)
        return Story(stopped, lines, train_in(folder / "run", config), kept, went_on)


def test_an_evaluation_tells_of_the_weights_of_its_step_and_the_learner_goes_on(
    config: RunConfig, story: Story
) -> None:
    assert story.ended.finished and any(story.went_on)
    logged = {line["learner_steps"]: line for line in read_metrics(story.ended.folder) if "eval/return" in line}
    cell = chosen_cell(config.agent)
    assert set(story.kept) == {60, 140, 170}, "80 and 200 are the ends of the phases"
    for steps, checkpoint in story.kept.items():
        trained = load_policy(checkpoint)
        alone = evaluate_cell(trained.policy, trained.env, cell, episodes=EPISODES, seed=0)
        (row,) = rows_of([alone], config.agent)
        assert logged[steps]["eval/return"] == pytest.approx(row["return"], rel=1e-12)


def test_a_stop_or_an_end_leaves_no_evaluation_out(story: Story) -> None:
    assert not story.stopped.finished and story.stopped.steps == (40, 0)
    assert not [line for line in story.lines_at_the_stop if "eval/return" in line]
    assert story.ended.finished
    steps = [line["learner_steps"] for line in read_metrics(story.ended.folder) if "eval/return" in line]
    assert steps == [60, 80, 140, 170, 200], "the one that was cut off comes after the next iteration"
