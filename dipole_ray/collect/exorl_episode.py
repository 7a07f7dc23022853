"""One ExORL episode: how it is played, and its file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dipole_ray.collect.episode import Columns, env_seed
from dipole_ray.envs.standard import StandardEnv


def play_episode(
    env: StandardEnv, seed: np.random.SeedSequence, steps: int, act: Callable[[int, np.ndarray], np.ndarray]
) -> Columns:
    """Play an episode and return its T+1 rows in ExORL's types.

    Args:
        env: One of ExORL's tasks.
        seed: Of the start.
        steps: T, of a whole episode.
        act: Returns the action, float32 (A,), of a step's number and observation (O,).
    """
    observation, info = env.reset(seed=env_seed(seed))
    assert env.action_space.shape is not None
    # Row 0 is the start, which no action led to.
    rows = [(observation, np.zeros(env.action_space.shape, np.float32), 0.0, info["physics"])]
    for step in range(steps):
        action = act(step, observation)
        observation, reward, _, _, info = env.step(action)
        rows.append((observation, action, reward, info["physics"]))
    observations, actions, rewards, physics = zip(*rows, strict=True)
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


def episode_seed(seed: int, index: int) -> np.random.SeedSequence:
    """Return the seed of an episode's start and, for uniform noise, of its actions."""
    return np.random.SeedSequence(seed, spawn_key=(index,))
