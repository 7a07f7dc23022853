"""Environments that are seen as images: `tests.pixel_envs:Square-v0` and others; the pictures are drawn with numpy."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

STEPS = 9
SHAPE = (12, 16, 3)
PICTURES = gymnasium.spaces.Box(0, 255, SHAPE, np.uint8)


class Square(gymnasium.Env[Any, np.ndarray]):
    """A square that a policy moves; the reward is its nearness to the picture's middle."""

    observation_space: gymnasium.Space = PICTURES
    action_space: gymnasium.Space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.place, self.colour = self.np_random.uniform(-1, 1, 2), self.np_random.integers(50, 255, 3)
        return self.observed(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = np.clip(self.place + 0.4 * action, -1, 1)
        distance = float(np.abs(self.place).max())
        return self.observed(), -distance, distance < 0.05, False, {"success": distance < 0.05}

    def picture(self) -> np.ndarray:
        canvas = np.zeros(SHAPE, np.uint8)
        row, column = np.rint((self.place + 1) / 2 * (np.array(SHAPE[:2]) - 3)).astype(int)
        canvas[row : row + 3, column : column + 3] = self.colour
        return canvas

    def observed(self) -> Any:
        return self.picture()


class Named(Square):
    """The same with what a robot knows of itself beside the picture."""

    observation_space = gymnasium.spaces.Dict(camera=PICTURES, place=gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64))

    def observed(self) -> Any:
        return {"camera": self.picture(), "place": self.place}


class Float(Square):
    """Gives pictures as floats although its space says whole numbers."""

    def observed(self) -> Any:
        return self.picture() / np.float32(255)


def rendered(**kwargs: Any) -> gymnasium.Env:
    """Return a pendulum of MuJoCo's, seen through gymnasium's own wrapper."""
    from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

    env = InvertedPendulumEnv(render_mode="rgb_array", width=32, height=24)
    return gymnasium.wrappers.AddRenderObservation(env, **kwargs)


for one in (Square, Named, Float):
    gymnasium.register(f"{one.__name__}-v0", f"{__name__}:{one.__name__}", max_episode_steps=STEPS)
gymnasium.register("Rendered-v0", f"{__name__}:rendered", max_episode_steps=STEPS)
