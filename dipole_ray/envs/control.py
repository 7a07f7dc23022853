"""What dm_control's tasks have in common as gymnasium environments, whoever loads them and ends their episodes."""

import math
from abc import abstractmethod
from typing import Any

import gymnasium
import numpy as np


class ControlEnv(gymnasium.Env):
    """A dm_control environment with its task's arrays flattened and joined, in their order, to one float32 vector.

    Actions are in the task's own bounds. A subclass says how it is seeded and when an episode ends.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - gymnasium's own convention

    def __init__(self, env: Any) -> None:
        self._env = env
        self._steps = 0
        spec = env.action_spec()
        low = np.broadcast_to(spec.minimum, spec.shape).astype(np.float32)
        high = np.broadcast_to(spec.maximum, spec.shape).astype(np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        size = sum(math.prod(array.shape) for array in env.observation_spec().values())
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.render_mode = "rgb_array"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; `seed` starts the task's random stream anew."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._seed(seed)
        self._steps = 0
        return self._flatten(self._env.reset().observation), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance one control step with `action` in the task's own bounds."""
        step = self._env.step(action)
        self._steps += 1
        terminated, truncated = self._ends(step)
        return self._flatten(step.observation), float(step.reward), terminated, truncated, self._info()

    @abstractmethod
    def _seed(self, seed: int) -> None:
        """Start the task's random stream anew."""

    @abstractmethod
    def _ends(self, step: Any) -> tuple[bool, bool]:
        """Return whether a `dm_env.TimeStep`, the `_steps`-th, terminates its episode, and whether it truncates it."""

    def _info(self) -> dict[str, Any]:
        return {}

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
