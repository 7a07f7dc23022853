"""Environments of Pendulum's size that break, as a user's own may: `tests.broken_envs:Kills-v0` and others."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class Breaks(gymnasium.Env[np.ndarray, np.ndarray]):
    """Breaks at the tenth step of its life, so that the first checks of an environment still pass."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> Step:
        self.steps += 1
        return self.broken() if self.steps >= 10 else (np.zeros(3, np.float32), 0.0, False, False, {})

    def broken(self) -> Step:
        raise NotImplementedError


class Raises(Breaks):
    """Raises, as a user's mistake does."""

    def broken(self) -> Step:
        raise ValueError("the gripper is on fire")


class Kills(Breaks):
    """Ends its process, as a segmentation fault of a simulator does."""

    def broken(self) -> Step:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class NanReward(Breaks):
    """Gives a reward that is no number."""

    def broken(self) -> Step:
        return np.zeros(3, np.float32), float("nan"), False, False, {}


class NanObservation(Breaks):
    """Gives an observation that is no number."""

    def broken(self) -> Step:
        return np.full(3, np.nan, np.float32), 0.0, False, False, {}


for kind in (Raises, Kills, NanReward, NanObservation):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=40)
