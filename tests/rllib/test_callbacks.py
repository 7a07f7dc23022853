"""RLlib's callbacks are called with what RLlib promises, in the driver and in the workers."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from dipole_ray import DIPOLE, DIPOLEConfig
from dipole_ray.errors import CallbackFailed, ConfigError
from tests.rllib.small import config, train_until

ONLINE = {"offline_learner_steps": 0, "online_env_steps": 1000, "env_steps_per_iteration": 810}


class Counting(RLlibCallback):
    """Checks what it is given, and logs how often it was called."""

    def __init__(self) -> None:
        self.driver: dict[str, int] = {}
        self.steps: dict[str, int] = {}

    def _count(self, name: str, metrics_logger: Any) -> None:
        metrics_logger.log_value(f"my_{name}", 1, reduce="sum")

    def on_algorithm_init(self, *, algorithm: DIPOLE, metrics_logger: Any, **kwargs: Any) -> None:
        assert algorithm.learner_steps == 0 and algorithm.replay.sizes() is not None, "all is built"
        self.driver["init"] = 1

    def on_train_result(self, *, algorithm: DIPOLE, result: dict[str, Any], **kwargs: Any) -> None:
        result["mine"] = algorithm.env_steps

    def on_evaluate_start(self, *, algorithm: DIPOLE, **kwargs: Any) -> None:
        self.driver["evaluate"] = self.driver.get("evaluate", 0) + 1

    def on_evaluate_end(self, *, evaluation_metrics: dict[str, Any], **kwargs: Any) -> None:
        evaluation_metrics["mine"] = evaluation_metrics["env_runners"]["episode_return_mean"]

    def on_checkpoint_loaded(self, *, algorithm: DIPOLE, **kwargs: Any) -> None:
        self.driver["loaded"] = algorithm.learner_steps

    def on_environment_created(
        self, *, env_runner: Any, metrics_logger: Any, env: Any, env_context: Any, **_: Any
    ) -> None:
        assert env.num_envs == len(env.envs) and env_context.worker_index == env_runner.worker_index
        assert env.envs[0].unwrapped.spec.id == "Pendulum-v1"
        self._count("created", metrics_logger)

    def on_episode_created(self, *, episode: SingleAgentEpisode, env_index: int, **kwargs: Any) -> None:
        assert not episode.is_reset

    def on_episode_start(
        self, *, episode: SingleAgentEpisode, env_runner: Any, env: Any, rl_module: Any, **_: Any
    ) -> None:
        assert len(episode) == 0 and episode.get_observations(0).shape == (3,)
        assert rl_module is env_runner.module and env.num_envs == 2
        self.steps[episode.id_] = 0

    def on_episode_step(self, *, episode: SingleAgentEpisode, env: Any, env_index: int, **kwargs: Any) -> None:
        self.steps[episode.id_] += 1
        assert len(episode) == self.steps[episode.id_]

    def on_episode_end(
        self,
        *,
        episode: SingleAgentEpisode,
        prev_episode_chunks: list[Any],
        metrics_logger: Any,
        env_runner: Any,
        **_: Any,
    ) -> None:
        assert episode.is_done and prev_episode_chunks == [] and self.steps.pop(episode.id_) == len(episode) == 200
        metrics_logger.log_value("my_return", episode.get_return(), reduce="mean")
        metrics_logger.log_value("my_evaluation", float(env_runner.config.in_evaluation), reduce="mean")
        self._count("ends", metrics_logger)

    def on_sample_end(self, *, samples: list[SingleAgentEpisode], metrics_logger: Any, **kwargs: Any) -> None:
        for episode in samples:
            episode.set_rewards(new_data=np.full(len(episode), 7.0, np.float32))
        metrics_logger.log_value("my_steps", sum(len(episode) for episode in samples), reduce="lifetime_sum")


def assert_told_of_a_worker_that_comes_back(algorithm: DIPOLE, told: list[Any]) -> None:
    group = algorithm.env_runner_group
    group.foreach_env_runner(lambda worker: os._exit(1), local_env_runner=False, timeout_seconds=0.0)
    train_until(algorithm, lambda _: bool(told), most=50)
    assert told[0]["env_runner_indices"] == [1] and not told[0]["is_evaluation"]
    assert told[0]["env_runner_group"] is group


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("cluster")
def test_callbacks_are_called_with_what_rllib_promises(tmp_path: Path, workers: int) -> None:
    made = config(None, workers=workers, **ONLINE).callbacks(Counting)
    seen: list[int] = []
    told: list[Any] = []
    made.callbacks(
        on_train_result=lambda **given: seen.append(given["result"]["mine"]),
        on_env_runners_recreated=lambda **given: told.append(given),
    )
    made.evaluation(episodes=2, omegas=(1.0,), candidates=(1,))
    algorithm = made.build_algo()
    try:
        result = algorithm.train()
        assert result["mine"] == algorithm.env_steps == seen[0], "the class is called before the functions"
        logged = result["env_runners"]
        assert logged["my_created"] == 1 and logged["my_ends"] == 4, "two environments, two episodes each"
        assert logged["my_return"] == pytest.approx(logged["episode_return_mean"], rel=1e-4)
        assert logged["my_steps"] >= algorithm.env_steps and logged["my_evaluation"] == 0.0
        played = algorithm.evaluate()
        assert played["mine"] == played["env_runners"]["episode_return_mean"]
        assert played["env_runners"]["my_evaluation"] == 1.0
        assert played["env_runners"]["my_return"] == pytest.approx(played["mine"], rel=1e-4)
        (counting,) = algorithm.callbacks
        assert counting.driver == {"init": 1, "evaluate": 1}
        path = algorithm.save_to_path(tmp_path / "mine")
        algorithm.restore_from_path(path)
        assert counting.driver["loaded"] == algorithm.learner_steps
        algorithm.train()
        if workers:
            assert_told_of_a_worker_that_comes_back(algorithm, told)
    finally:
        algorithm.stop()


def test_what_on_sample_end_makes_of_the_episodes_is_learned_from() -> None:
    algorithm = config(None, **ONLINE).callbacks(on_sample_end=Counting().on_sample_end).build_algo()
    try:
        algorithm.train()
        assert np.unique(algorithm.replay.sample(64, 1)["rewards"]).tolist() == [7.0]
    finally:
        algorithm.stop()


@pytest.mark.parametrize("name", ["on_sample_end", "on_episode_step"])
def test_callbacks_that_change_nothing_change_nothing(name: str) -> None:
    """The rows are the same bit for bit whether the episodes are built or not."""

    def rows(**callbacks: Any) -> Any:
        algorithm = config(None, **ONLINE).callbacks(**callbacks).build_algo()
        try:
            algorithm.train()
            return algorithm.replay.sample(64, 1), algorithm.env_steps
        finally:
            algorithm.stop()

    (plain, steps), (called, steps_called) = rows(), rows(**{name: lambda **given: None})
    assert steps == steps_called and plain.keys() == called.keys()
    assert all(np.array_equal(plain[key], called[key]) for key in plain)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("cluster")
def test_a_callback_that_raises_ends_the_run_with_its_own_line(workers: int) -> None:
    def broken(**given: Any) -> None:
        raise KeyError("mine")

    algorithm = config(None, workers=workers, **ONLINE).callbacks(on_episode_start=broken).build_algo()
    try:
        with pytest.raises(
            CallbackFailed, match=r"on_episode_start failed: KeyError: 'mine' \(.*test_callbacks.py, line"
        ):
            algorithm.train()
    finally:
        algorithm.stop()


def test_callbacks_that_nothing_calls_are_refused() -> None:
    for name in ("on_postprocess_trajectory", "on_learn_on_batch", "on_evaluate_offline_end", "on_create_policy"):
        with pytest.raises(ConfigError, match=name):
            DIPOLEConfig().callbacks(type("Mine", (RLlibCallback,), {name: lambda self, **given: None}))
    with pytest.raises(ConfigError, match="on_evaluate_offline_start"):
        DIPOLEConfig().callbacks(on_evaluate_offline_start=print)


def test_a_checkpoint_names_the_callbacks_that_it_does_not_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    algorithm = config(None, **ONLINE).callbacks(Counting, on_sample_end=Counting().on_sample_end).build_algo()
    path = algorithm.save_to_path(tmp_path / "mine")
    algorithm.stop()
    DIPOLE.from_checkpoint(path).stop()
    assert "callbacks: ['Counting', 'on_sample_end=Counting.on_sample_end'] -> (absent)" in caplog.text
