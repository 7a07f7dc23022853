"""An environment that raises, as a user's own may: `tests.rllib.breaking_env:Breaks-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Breaks(gymnasium.Env[np.ndarray, np.ndarray]):
    """Raises at the tenth step of its life, so that the first checks of an environment still pass."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps >= 10:
            raise ValueError("the gripper is on fire")
        return np.zeros(3, np.float32), 0.0, False, False, {}


gymnasium.register("Breaks-v0", Breaks, max_episode_steps=100)
