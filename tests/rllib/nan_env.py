"""A point that sometimes gives NaN, as a simulator that blew up does: `tests.rllib.nan_env:NanSteps-v0` and others."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

STEPS_BETWEEN = 100


class NanSteps(gymnasium.Env[np.ndarray, np.ndarray]):
    """Moves by a tenth of the action; every 100th step of its life gives NaN, in turn as reward and as observation."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self) -> None:
        self.position = np.zeros(2, np.float32)
        self.steps = self.resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.resets += 1
        self.position = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.position = (self.position + 0.1 * np.asarray(action)).astype(np.float32)
        observation, reward = self.position.copy(), -float(np.linalg.norm(self.position))
        if self.steps % STEPS_BETWEEN == 0:
            is_reward = (self.steps // STEPS_BETWEEN) % 2
            reward, observation = (np.nan, observation) if is_reward else (reward, observation * np.inf)
        return observation, reward, False, False, {}


class NanResets(NanSteps):
    """Every third reset of its life gives NaN."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        observation, info = super().reset(seed=seed)
        return (observation * np.nan if self.resets % 3 == 0 else observation), info


class NanAlways(NanSteps):
    """Never gives a finite reward, once it is broken; one that is so from its first step on is refused before a run."""

    is_broken = False

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan") if self.is_broken else 0.0, terminated, truncated, info


gymnasium.register("NanSteps-v0", NanSteps, max_episode_steps=50)
gymnasium.register("NanResets-v0", NanResets, max_episode_steps=7)
gymnasium.register("NanAlways-v0", NanAlways, max_episode_steps=50)
