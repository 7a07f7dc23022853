"""dm_control's tasks as gymnasium environments: `dm_control/walker-walk` of its suite, ExORL's `exorl/walker-walk`."""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dipole_ray.envs.exorl import tasks as exorl
from dipole_ray.envs.standard import Info

PREFIX = "dm_control/"


def suite_ids() -> list[str]:
    """Return the id of every task of the suite, `dm_control/{domain}-{task}`."""
    from dm_control import suite

    return [f"{PREFIX}{domain}-{task}" for domain, task in suite.ALL_TASKS]


class ControlEnv(gymnasium.Env):
    """A dm_control task with its arrays flattened and joined, in their order, to one float32 vector.

    Actions are in the task's own bounds. `spec.max_episode_steps` truncates an episode, and an end that the task itself
    sets terminates it; ExORL's tasks set none. Their observations are those in ExORL's files, and `info["physics"]` is
    the state of the simulation, float64, from which the reward of every task of the domain can be computed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - gymnasium's own convention

    def __init__(self, env_id: str, max_episode_steps: int | None = None) -> None:
        """Load the task `env_id`, with `max_episode_steps` steps an episode (None: the task's own limit)."""
        self._is_exorl = env_id.startswith(exorl.PREFIX)
        if self._is_exorl:
            self.simulation = exorl.load(env_id)
            limit: float = exorl.domain_of(env_id).episode_steps
        else:
            from dm_control import suite

            domain, _, task = env_id.removeprefix(PREFIX).partition("-")
            # Tasks that draw their model at construction (lqr) draw the same one every time.
            self.simulation = suite.load(domain, task, task_kwargs={"random": 0})
            limit, self.simulation._step_limit = self.simulation._step_limit, math.inf  # steps are counted here
        self._limit = max_episode_steps or limit
        self.spec = EnvSpec(env_id, max_episode_steps=None if math.isinf(self._limit) else math.ceil(self._limit))
        self._steps = 0
        spec = self.simulation.action_spec()
        low, high = (np.broadcast_to(bound, spec.shape).astype(np.float32) for bound in (spec.minimum, spec.maximum))
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        size = sum(math.prod(array.shape) for array in self.simulation.observation_spec().values())
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Start an episode; `seed` starts the task's random stream anew."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            stream = np.random.RandomState(np.random.MT19937(seed))
            if hasattr(self.simulation, "_random_state"):  # jaco's keeps the stream itself
                self.simulation._random_state = stream
            else:
                self.simulation.task._random = stream
        self._steps = 0
        return self._observed(self.simulation.reset())

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Advance one control step with `action` in the task's own bounds."""
        step = self.simulation.step(action)
        self._steps += 1
        observation, info = self._observed(step)
        terminated = bool(step.last())  # by the task: dm_control itself knows no limit here
        return observation, float(step.reward), terminated, not terminated and self._steps >= self._limit, info

    def _observed(self, step: Any) -> tuple[np.ndarray, Info]:
        """Return the observation in a `dm_env.TimeStep`, and the info beside it."""
        observation = np.concatenate([np.ravel(array) for array in step.observation.values()]).astype(np.float32)
        return observation, {"physics": self.simulation.physics.state()} if self._is_exorl else {}

    @property
    def model(self) -> Any:
        """The task's `mujoco.MjModel`."""
        return self.simulation.physics.model

    def render(self) -> np.ndarray:  # type: ignore[override]  # gymnasium would have rendering modes return others
        """Return an RGB picture from the task's first camera, uint8 (240, 320, 3)."""
        return np.asarray(self.simulation.physics.render(height=240, width=320, camera_id=0))

    def close(self) -> None:
        """Free the physics."""
        self.simulation.close()
