"""What dm_control's tasks have in common as gymnasium environments, whoever loads them and ends their episodes."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np


class ControlEnv(gymnasium.Env):
    """A dm_control environment with its task's arrays flattened and joined, in their order, to one float32 vector.

    Actions are in the task's own bounds. A subclass resets and steps it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - gymnasium's own convention

    def __init__(self, env: Any) -> None:
        """Take the spaces from `env`."""
        self._env = env
        spec = env.action_spec()
        low = np.broadcast_to(spec.minimum, spec.shape).astype(np.float32)
        high = np.broadcast_to(spec.maximum, spec.shape).astype(np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        size = sum(math.prod(array.shape) for array in env.observation_spec().values())
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.render_mode = "rgb_array"

    @property
    def model(self) -> Any:
        """The task's `mujoco.MjModel`."""
        return self._env.physics.model

    def render(self) -> np.ndarray:  # type: ignore[override]  # gymnasium would have rendering modes return others
        """Return an RGB picture from the task's first camera, uint8 (240, 320, 3)."""
        return np.asarray(self._env.physics.render(height=240, width=320, camera_id=0))

    def close(self) -> None:
        """Free the physics."""
        self._env.close()

    @staticmethod
    def _flatten(observation: dict[str, Any]) -> np.ndarray:
        return np.concatenate([np.ravel(array) for array in observation.values()]).astype(np.float32)
