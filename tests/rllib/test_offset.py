"""What an import subtracted from observations, whoever acts subtracts too: workers, evaluation, one's own script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from dipole_ray import DIPOLE, DIPOLEConfig, Replay, make_env
from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.schema import Rows, concatenate
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import evaluate_cell
from dipole_ray.files.checkpoint import Checkpoint, read_checkpoint
from dipole_ray.runs.config import RunConfig
from dipole_ray.runs.start import resume_run, start_run
from dipole_ray.serving.policy import load_policy
from tests.cli.test_data_cli import dipole
from tests.rllib.small import config
from tests.synthetic import write_table

pytestmark = pytest.mark.usefixtures("cluster", "no_pictures")  # building an algorithm would start a Ray of its own
FAR = "tests.odd_envs:Far-v0"
OFFSET = {"1": 5.4e6}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of an environment whose observations float32 cannot tell apart."""
    env, random, rows = gymnasium.make(FAR), np.random.default_rng(0), []
    for episode in range(100):
        state, done = env.reset(seed=episode)[0], False
        while not done:
            action = random.uniform(-1, 1, 1).astype(np.float32)
            after, reward, done, _, _ = env.step(action)
            rows.append((state, action, reward, after, done, episode))
            state = after
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "episode")
    columns = {name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    return write_table(tmp_path_factory.mktemp("far") / "far.parquet", columns)


@pytest.fixture(scope="module")
def less(recorded: Path) -> Path:
    """The table as a dataset less the offset."""
    assert dipole("import", recorded, "--env", FAR, "--out", recorded.parent / "less", "--offset", "1=5400000") == 0
    return recorded.parent / "less"


def far(data: Path | None, offset: object = None, **settings: object) -> DIPOLEConfig:
    made = config(data, **{"observation_normalization": "none", **settings})
    return made.environment(FAR, env_config={"observation_offset": offset})


class Sees:
    """Acts at random, and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def sample_actions(self, observations: torch.Tensor, *_: object, **how: object) -> torch.Tensor:
        self.seen.append(observations.numpy().copy())
        return torch.rand(len(observations), 1) * 2 - 1


def places(rows: Rows) -> np.ndarray:
    return rows["observations"][:, 1]


def test_whoever_acts_on_data_less_an_offset_sees_observations_less_it(
    less: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = places(concatenate(list(open_dataset(less).iter_rows())))
    assert len(np.unique(stored)) > 300 and stored.min() > -1 and stored.max() < 21
    algorithm = far(less, offline_learner_steps=8, online_env_steps=60).build_algo()
    for _ in range(3):
        algorithm.train()
    rollouts = places(algorithm.replay.sample(256)), places(algorithm.env_runner_group.local_env_runner.sample())
    saved = algorithm.save_to_path(tmp_path / "saved")
    algorithm.stop()
    trained, sees = load_policy(saved), Sees()
    assert trained.env.observation_offset == OFFSET and "less the offset" in caplog.text
    evaluate_cell(sees, trained.env, Cell(), episodes=20, seed=0)
    for seen in (*rollouts, np.concatenate(sees.seen)[:, 1]):
        assert seen.min() > -1 and seen.max() < 21
    assert len(np.unique(np.concatenate(sees.seen)[:, 1])) == 80, "what float32 lost without an offset"
    np.testing.assert_array_equal(make_env(trained.env).observed(np.array([0, 5.4e6 + 0.25])), np.float32([0, 0.25]))
    again = DIPOLE.from_checkpoint(saved)
    assert again.config.env_settings().observation_offset == OFFSET
    again.stop()


def test_an_offset_that_is_not_the_datas_is_refused(
    less: Path, recorded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        ConfigError, match=r"is \{'1': 5000000.0\}, and.* less \{'1': 5400000.0\}; leave the setting out"
    ):
        far(less, {1: 5e6}).validate()
    dipole("import", recorded, "--env", FAR, "--out", tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"less \{\}; import the data with --offset"):
        far(tmp_path / "whole", {1: 5e6}).validate()
    far(less, {}).validate()
    assert "is taken to subtract that itself" in caplog.text
    schema = open_dataset(less).schema
    with pytest.raises(DatasetError, match="import both with the same --offset"):
        Replay(schema=schema, offline=[less, tmp_path / "whole"])
    for offset, found in (({2: 1.0}, "names dimension 2: observations have"), ({"x": 1.0}, "give the number of a")):
        with pytest.raises(ConfigError, match=found):
            far(None, offset, offline_learner_steps=0).validate()


def test_a_run_of_before_goes_on_as_it_was(less: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then only the environment itself could subtract."""
    small: dict[str, Any] = {
        "folder": str(tmp_path / "runs"),
        "env": {"id": FAR},
        "data": {"path": str(less)},
        "agent": {"preset": "small", "hidden_dims": [8, 8], "batch_size": 8, "denoise_steps": 2},
        "training": {"offline_learner_steps": 4, "online_env_steps": 8, "env_steps_per_iteration": 8},
        "rollout": {"num_workers": 0, "envs_per_worker": 1, "fragment_steps": 2},
        "learner": {"remote": False},
        "evaluation": {"episodes": 1, "omegas": [1.0], "candidates": [1], "bc": False},
        "tracking": {"mlflow": False},
    }
    run = start_run(RunConfig.from_mapping(small))
    assert run.algorithm.config.env_settings().observation_offset == OFFSET

    def of_before(path: Path) -> Checkpoint:
        checkpoint = read_checkpoint(path)
        del checkpoint.metadata["algorithm"]["env"]["observation_offset"]
        del checkpoint.metadata["run"]["env"]["observation_offset"]
        return checkpoint

    monkeypatch.setattr("dipole_ray.runs.start.read_checkpoint", of_before)
    resumed = resume_run(run.folder, ["training.online_env_steps=16"])
    assert resumed.finished and resumed.algorithm.config.env_settings().observation_offset == {}
    again = DIPOLEConfig.from_plain(of_before(resumed.newest).metadata["algorithm"])
    assert again.env_settings() == EnvConfig(id=FAR, observation_offset={})
