"""ExORL's tasks as gymnasium environments: `exorl/walker-walk`, `exorl/jaco-reach_top_left` and nine more."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np

from dipole_ray.envs.exorl.tasks import Simulation, domain_of


class ExorlEnv(gymnasium.Env):
    """One task. Episodes are truncated after 1000 steps (jaco 250) and never terminate.

    Observations are the task's arrays, flattened and joined in dm_control's order, float32, which is how ExORL's files
    hold them. Actions are in the task's own bounds. `info["physics"]` is the state of the simulation, float64, from
    which the reward of every task of the domain can be computed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - gymnasium's own convention

    def __init__(self, env_id: str, max_episode_steps: int | None = None) -> None:
        """Load the task `env_id`, with `max_episode_steps` steps an episode (None: as many as ExORL's)."""
        self._simulation = Simulation(env_id)
        self._env = self._simulation.env
        self.max_episode_steps = max_episode_steps or domain_of(env_id).episode_steps
        self._steps = 0
        spec = self._env.action_spec()
        low = np.broadcast_to(spec.minimum, spec.shape).astype(np.float32)
        high = np.broadcast_to(spec.maximum, spec.shape).astype(np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        size = sum(math.prod(array.shape) for array in self._env.observation_spec().values())
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.render_mode = "rgb_array"

    @property
    def model(self) -> Any:
        """The task's `mujoco.MjModel`."""
        return self._simulation.physics.model

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; `seed` starts the task's random stream anew."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._simulation.seed(seed)
        self._steps = 0
        return _flat(self._env.reset().observation), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance one control step with `action` in the task's own bounds."""
        step = self._env.step(action)
        self._steps += 1
        return _flat(step.observation), float(step.reward), False, self._steps >= self.max_episode_steps, self._info()

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Return an RGB picture from the task's first camera, uint8 (240, 320, 3)."""
        return np.asarray(self._simulation.physics.render(height=240, width=320, camera_id=0))

    def close(self) -> None:
        """Free the physics."""
        self._env.close()

    def _info(self) -> dict[str, Any]:
        return {"physics": self._simulation.physics.state()}


def _flat(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in observation.values()]).astype(np.float32)
