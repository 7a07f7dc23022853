"""Numbers that are not finite: an environment's never reach the replay, a loss's never reach the networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dipole_ray import DIPOLE, DIPOLEConfig
from dipole_ray.cli import main
from dipole_ray.columns import Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.errors import NonFiniteError
from tests.chaos.kit import ring_rows
from tests.cli.commands import write_config
from tests.rllib.nan_env import STEPS_BETWEEN, NanAlways
from tests.rllib.small import AGENT, LOOP
from tests.synthetic import random_trajectory

pytestmark = pytest.mark.usefixtures("cluster")

ENVS = 2
PENDULUM_DIMS = Schema(3, 1)


def config(name: str) -> DIPOLEConfig:
    """Return a config in one process, online from the start."""
    return (
        DIPOLEConfig()
        .environment(f"tests.rllib.nan_env:{name}-v0")
        .training(preset="small", **{**AGENT, **LOOP, "offline_learner_steps": 0, "online_env_steps": 2000})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=ENVS, rollout_fragment_length=15)
        .learners(num_learners=0, num_threads=1)
    )


def assert_only_real_transitions(algorithm: DIPOLE) -> None:
    """Every stored number is finite, and every stored step is one the environment made: nothing was spliced."""
    rows = ring_rows(algorithm.replay_directory / "online.arrow")
    for name, values in rows.items():
        assert np.isfinite(values).all(), name
    moving = np.flatnonzero(rows["remaining"] > 0)
    assert len(moving) == algorithm.env_steps == algorithm.replay.sizes()["online"]
    moved = rows["observations"][moving] + 0.1 * rows["actions"][moving]
    np.testing.assert_allclose(rows["observations"][moving + 1], moved, atol=1e-5)


def test_exactly_the_broken_steps_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    algorithm = config("NanSteps").build_algo()
    dropped = 0.0
    for _ in range(10):
        algorithm.train()
        dropped += algorithm.group_metrics["rollout/dropped_env_steps"]
    steps_each = (algorithm.env_steps + dropped) / ENVS
    assert dropped == ENVS * (steps_each // STEPS_BETWEEN) >= 6, "one row each, no more and no fewer"
    assert_only_real_transitions(algorithm)
    assert algorithm.group_metrics["system/skipped_updates"] == 0
    assert all(np.isfinite(value) for value in algorithm.recent.values["return"])
    assert [record.message for record in caplog.records].count(
        "worker 0: environment 'tests.rllib.nan_env:NanSteps-v0' gave NaN or infinity; such a step is left out "
        "(counted as rollout/dropped_env_steps) and a new episode begins"
    ) == 1
    algorithm.stop()


def test_an_episode_that_begins_with_nan_is_begun_again() -> None:
    algorithm = config("NanResets").build_algo()
    for _ in range(3):
        algorithm.train()
    assert algorithm.group_metrics["rollout/dropped_env_steps"] == 0
    assert_only_real_transitions(algorithm)
    algorithm.stop()


def test_an_environment_that_gives_nothing_else_is_an_error_and_no_endless_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    algorithm = config("NanAlways").build_algo()
    monkeypatch.setattr(NanAlways, "is_broken", True)
    with pytest.raises(NonFiniteError, match=r"NanAlways-v0': 100 steps or resets in a row gave NaN .* repair it"):
        algorithm.train()
    assert algorithm.replay.sizes()["online"] == 0
    algorithm.stop()


@pytest.fixture(scope="module")
def extreme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of finite rewards whose square overflows: it can be stored, and no update on it can be applied."""
    folder = tmp_path_factory.mktemp("extreme") / "data"
    pieces = [random_trajectory(np.random.default_rng(seed), 50, 3, 1) for seed in range(8)]
    for piece in pieces:
        piece["rewards"] = np.where(piece["remaining"] > 0, 1e30, 0.0).astype(np.float32)
    write_dataset(folder, pieces, PENDULUM_DIMS, {})
    return folder


def test_ten_bad_updates_end_the_training_with_our_error_and_the_batch(extreme: Path, tmp_path: Path) -> None:
    """In this process; from a learner of its own in tests/chaos/test_numbers.py."""
    algorithm = (
        DIPOLEConfig()
        .environment("Pendulum-v1")
        .offline_data(input_=str(extreme))
        .training(preset="small", **{**AGENT, **LOOP}, replay_directory=str(tmp_path / "run" / "replay"))
        .env_runners(num_env_runners=0)
        .learners(num_learners=0, num_threads=1)
        .build_algo()
    )
    weights = algorithm.learner.agent_state()
    with pytest.raises(
        NonFiniteError, match=r"10 updates in a row, none of them applied.*nonfinite-batch-10"
    ) as raised:
        for _ in range(3):
            algorithm.train()
    path = tmp_path / "run" / "failures" / "nonfinite-batch-10.safetensors"
    assert str(path) in str(raised.value)
    assert load_file(path)["rewards"].max() >= 1e30
    after = algorithm.learner.agent_state()
    kept = [name for name in weights if name.startswith(("networks.", "optimizer."))]
    assert kept and all(bool((weights[name] == after[name]).all()) for name in kept)
    algorithm.stop()


def test_dipole_train_says_it_in_a_sentence(
    extreme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path / "run.yaml", data={"path": str(extreme), "cache": str(tmp_path / "cache")})
    assert main(["train", str(path)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    (batch,) = (tmp_path / "runs").glob("*/failures/nonfinite-batch-10.safetensors")
    assert f"{batch.relative_to(tmp_path)}" in error and "agent.learning_rate" in error
