"""One ExORL episode: its rows while it is played, and its file."""

from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.collect.episode import Columns, env_seed
from dipole_ray.envs.standard import StandardEnv
from dipole_ray.files.durable import replacing


class Recorder:
    """Gathers the rows of one episode of `env`."""

    def __init__(self, env: StandardEnv, seed: np.random.SeedSequence) -> None:
        self._env = env
        self.observation, info = env.reset(seed=env_seed(seed))
        assert env.action_space.shape is not None
        # Row 0 is the start, which no action led to.
        self._rows = [(self.observation, np.zeros(env.action_space.shape, np.float32), 0.0, info["physics"])]

    def step(self, action: np.ndarray) -> np.ndarray:
        """Take `action`, float32 (A,), and return the observation it leads to."""
        self.observation, reward, _, _, info = self._env.step(action)
        self._rows.append((self.observation, action, reward, info["physics"]))
        return self.observation

    def columns(self) -> Columns:
        """Return the T+1 rows in ExORL's types."""
        observations, actions, rewards, physics = zip(*self._rows, strict=True)
        return {
            "observation": np.asarray(observations, np.float32),
            "action": np.asarray(actions, np.float32),
            "reward": np.asarray(rewards, np.float32)[:, None],
            "discount": np.ones((len(rewards), 1), np.float32),
            "physics": np.asarray(physics, np.float64),
        }


def episode_file(folder: Path, index: int, steps: int) -> Path:
    """Return the place of an episode."""
    return folder / "buffer" / f"episode_{index:06d}_{steps}.npz"


def write_episode(path: Path, columns: Columns) -> None:
    """Write an episode, whole or not at all."""
    arrays: dict[str, Any] = dict(columns)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def episode_seed(seed: int, index: int) -> np.random.SeedSequence:
    """Return the seed of an episode's start and, for uniform noise, of its actions."""
    return np.random.SeedSequence(seed, spawn_key=(index,))
