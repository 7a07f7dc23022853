"""The dm_control suite as gymnasium environments: `dm_control/walker-walk` and its kin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dipole_ray.envs.control import ControlEnv

PREFIX = "dm_control/"


def task_ids() -> list[str]:
    """Return the id of every task of the suite, `dm_control/{domain}-{task}`."""
    from dm_control import suite

    return [f"{PREFIX}{domain}-{task}" for domain, task in suite.ALL_TASKS]


class SuiteEnv(ControlEnv):
    """One dm_control suite task.

    Observations are the task's arrays, flattened and joined in the suite's own order, float32. Actions are in the
    task's own bounds. Reaching the time limit truncates and never terminates; an episode that the task itself ends
    (its discount is 0) terminates.
    """

    def __init__(self, env_id: str, max_episode_steps: int | None = None) -> None:
        """Load the task `env_id`, with `max_episode_steps` control steps an episode (None: the suite's limit)."""
        self._domain, _, self._task_name = env_id.removeprefix(PREFIX).partition("-")
        env = self._load(None)
        if max_episode_steps is not None:
            # Half a step less than the limit, so that rounding of seconds cannot add a step.
            env = self._load((max_episode_steps - 0.5) * env.control_timestep())
        super().__init__(env)

    def _load(self, time_limit_s: float | None) -> Any:
        from dm_control import suite

        # Tasks that draw their model at construction (lqr) draw the same one every time.
        task_kwargs: dict[str, Any] = {"random": 0}
        if time_limit_s is not None:
            task_kwargs["time_limit"] = time_limit_s
        return suite.load(self._domain, self._task_name, task_kwargs=task_kwargs)

    @property
    def max_episode_steps(self) -> int | None:
        """Control steps until the time limit; None if the task has none."""
        limit = self._env._step_limit
        return None if math.isinf(limit) else math.ceil(limit)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; `seed` starts the task's random stream anew."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._env.task._random = np.random.RandomState(np.random.MT19937(seed))
        return self._flatten(self._env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance one control step with `action` in the task's own bounds."""
        step = self._env.step(action)
        terminated = bool(step.last() and step.discount == 0.0)
        return self._flatten(step.observation), float(step.reward), terminated, bool(step.last() and not terminated), {}
