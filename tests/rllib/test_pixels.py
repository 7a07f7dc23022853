"""A run on images, from the dataset and the environments over the replay into the learner, and on from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dipole_ray import DIPOLE, DIPOLEConfig
from dipole_ray.columns import Column, Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.data.schema import close_trajectory
from dipole_ray.envs.make import make_env
from dipole_ray.envs.observations import stacked
from dipole_ray.rllib.replay_actor import note_ring
from tests.rllib.small import assert_same_tensors, config

pytestmark = pytest.mark.usefixtures("cluster")

NAMED = "tests.pixel_envs:Named-v0"
SEEN: list[torch.dtype] = []


class Eye(nn.Module):
    """Means of the colours of a picture, beside what else is observed."""

    embedding_dim = 5

    def __init__(self, sizes: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        nn.init.xavier_uniform_(self.layer.weight, generator=generator)
        nn.init.zeros_(self.layer.bias)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        SEEN.append(observations["camera"].dtype)
        colours = observations["camera"].float().mean(dim=(1, 2)) / 255
        return torch.cat([torch.tanh(self.layer(colours)), observations["place"]], dim=1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random episodes, as a dataset of images and numbers."""
    env, random, pieces = make_env(NAMED), np.random.default_rng(0), []
    for seed in range(20):
        seen, actions, rewards, over = [env.reset(seed=seed)[0]], [], [], False
        while not over:
            actions.append(random.uniform(-1, 1, 2).astype(np.float32))
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            seen.append(observation)
            rewards.append(reward)
            over = terminated or truncated
        masks = np.ones(len(rewards))
        masks[-1] = not terminated
        pieces.append(close_trajectory(stacked(seen), np.array(actions), np.array(rewards), masks, env.schema))
    folder = tmp_path_factory.mktemp("pixels") / "data"
    write_dataset(folder, pieces, env.schema, {})
    return folder


def seeing(dataset: Path) -> DIPOLEConfig:
    """Return the smallest config that sees."""
    encoder = {"network": "tests.rllib.test_pixels:Eye"}
    made = config(dataset, observation_normalization="none", encoder=encoder, offline_learner_steps=16)
    return made.environment(NAMED)


def test_a_ring_of_images_says_what_it_takes_and_names_a_capacity_that_fits(caplog: pytest.LogCaptureFixture) -> None:
    image = Schema(Column((64, 64, 3), "uint8"), 5)
    with caplog.at_level("INFO", logger="dipole_ray"):
        note_ring(image, 1_000_000, memory=64e9)
    assert "12320 bytes a row; each observation is stored once" in caplog.text and "set training" not in caplog.text
    note_ring(image, 1_000_000, memory=8e9)
    capacity = int(caplog.text.partition("set training.replay_capacity=")[2].split()[0])
    assert 0.69 * 8e9 < capacity * image.row_bytes <= 0.7 * 8e9
    caplog.clear()
    note_ring(Schema(29, 8), 2_000_000, memory=1e6)
    assert not caplog.records, "vectors say nothing, as before"


def test_a_run_on_images_resumed_while_online_is_bitwise_the_uninterrupted_one(recorded: Path, tmp_path: Path) -> None:
    algorithm = seeing(recorded).build_algo()
    for _ in range(2):
        algorithm.train()
    assert algorithm.env_steps > 0, "online already"
    saved = algorithm.save_to_path(tmp_path / "saved")
    algorithm.train()
    batch = algorithm.replay.sample(16)
    assert batch["observations"]["camera"].dtype == np.uint8 and batch["is_offline"].min() == 0
    tensors, _ = algorithm.checkpoint_contents()
    algorithm.stop()
    assert {*SEEN} == {torch.uint8}, "an image is what it was until the encoder reads it"
    resumed = DIPOLE.from_checkpoint(saved)
    resumed.train()
    resumed.replay.sample(16)
    assert_same_tensors(resumed.checkpoint_contents()[0], tensors)
    assert resumed.evaluate()["env_runners"]["num_episodes"] == 2
    resumed.stop()
