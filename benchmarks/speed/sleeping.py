"""An environment whose steps only sleep, as a robot or a slow simulator elsewhere does: it takes time but no core."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Sleeping(gymnasium.Env[Any, Any]):
    def __init__(self, sleep_s: float = 0.02) -> None:
        self._sleep_s = sleep_s
        self.observation_space = Box(-1.0, 1.0, (28,), np.float32)
        self.action_space = Box(-1.0, 1.0, (5,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self._sleep_s)
        return self._observation(), 0.0, False, False, {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1.0, 1.0, 28).astype(np.float32)


gymnasium.register("Sleeping-v0", entry_point=Sleeping, max_episode_steps=1000)
