"""`tune.Tuner(DIPOLE, param_space=config)` sweeps our keys, and what it keeps can be continued."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from ray import tune
from ray.tune.utils import flatten_dict

from dipole_ray import DIPOLE, DIPOLEConfig
from dipole_ray.errors import ResourcesUnavailable
from tests.rllib.small import config

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.mark.slow
def test_tuner_tries_values_and_keeps_checkpoints(
    pendulum: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pendulum.parent)  # a trial works in a folder of its own
    space = config(Path(pendulum.name), beta=tune.grid_search([1.0, 3.0]), offline_learner_steps=16)
    space.evaluation(evaluation_interval=2)
    tuner = tune.Tuner(
        DIPOLE,
        param_space=space,
        run_config=tune.RunConfig(
            stop={"training_iteration": 2},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            storage_path=str(tmp_path),
            verbose=0,
        ),
    )
    results = tuner.fit()
    assert results.num_errors == 0
    assert sorted(result.config["beta"] for result in results) == [1.0, 3.0]
    rings = set()
    for result in results:
        metrics = flatten_dict(result.metrics)
        history = result.metrics_dataframe["score"].tolist()
        assert history[-1] == metrics["score"] and all(score < 0 for score in history), "a score from the first on"
        written = (Path(result.path) / "result.json").read_text()
        assert math.isfinite(sum(history)) and not re.search("NaN|Infinity", written)
        assert metrics["score"] == metrics["evaluation/env_runners/episode_return_mean"] < 0
        assert (metrics["learner_steps"], metrics["env_steps"]) == (16 + 18, 60)
        assert not list(Path(result.checkpoint.path).rglob("*.pkl")), "nothing of ours is pickled"
        algorithm = DIPOLE.from_checkpoint(result.checkpoint.path)
        assert (algorithm.learner_steps, algorithm.env_steps) == (34, 60)
        assert algorithm.config.agent_settings().beta == result.config["beta"]
        rings.add(algorithm.replay_directory)
        algorithm.train()
        assert (algorithm.learner_steps, algorithm.env_steps) == (16 + 36, 120)
        algorithm.stop()
    assert len(rings) == 2
    best = results.get_best_result("score", "max")
    assert best.metrics["score"] == max(result.metrics["score"] for result in results)


@pytest.mark.slow
def test_a_trial_with_actors_of_its_own_keeps_to_its_placement_group(pendulum: Path, tmp_path: Path) -> None:
    """One CPU for the trial, one for the learner and half a CPU for the worker: where they live is Tune's decision."""
    tuner = tune.Tuner(
        DIPOLE,
        param_space=config(pendulum, workers=1, learners=1, offline_learner_steps=16),
        run_config=tune.RunConfig(stop={"training_iteration": 2}, storage_path=str(tmp_path), verbose=0),
    )
    (result,) = tuner.fit()
    assert result.error is None and result.metrics["env_steps"] >= 60


def test_a_trial_that_never_fits_is_refused_with_the_arithmetic(pendulum: Path, tmp_path: Path) -> None:
    """Four CPUs: one for the trial and half a CPU for each of eight workers; Tune would leave it PENDING for ever."""
    run_config = tune.RunConfig(storage_path=str(tmp_path), verbose=0)
    tuner = tune.Tuner(DIPOLE, param_space=config(pendulum, workers=8), run_config=run_config)
    needed = r"needed 1 process of 1 CPU \+ 8 processes of 0.5 CPU; available 4 CPU"
    with pytest.raises(ResourcesUnavailable, match=needed):
        tuner.fit()


@pytest.mark.slow
def test_trials_are_compared_by_one_kind_of_score(tmp_path: Path) -> None:
    """The environment tells success only when it is solved, and one trial's never is."""
    space = DIPOLEConfig().environment("tests.odd_envs:WhenSolvable-v0")
    space.environment(env_config={"solvable": tune.grid_search([True, False])})
    space.training(preset="small", hidden_dims=[8, 8], batch_size=8, denoise_steps=2, offline_learner_steps=0)
    space.training(online_env_steps=16, env_steps_per_iteration=16)
    space.env_runners(num_envs_per_env_runner=1, rollout_fragment_length=8)
    space.resources(num_cpus_for_main_process=1)
    space.evaluation(evaluation_interval=1, episodes=3, omegas=[1.0], candidates=[1])
    run_config = tune.RunConfig(stop={"training_iteration": 1}, storage_path=str(tmp_path), verbose=0)
    results = tune.Tuner(DIPOLE, param_space=space, run_config=run_config).fit()
    assert [result.metrics["score"] for result in results] == [-4.0, -4.0]
