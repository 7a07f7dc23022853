"""The dm_control suite as gymnasium environments: `dm_control/walker-walk` and its kin."""

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
    """One dm_control suite task: its time limit truncates, and an episode that the task itself ends terminates."""

    def __init__(self, env_id: str, max_episode_steps: int | None = None) -> None:
        """Load the task `env_id`, with `max_episode_steps` control steps an episode (None: the suite's limit)."""
        from dm_control import suite

        domain, _, task = env_id.removeprefix(PREFIX).partition("-")
        # Tasks that draw their model at construction (lqr) draw the same one every time.
        env = suite.load(domain, task, task_kwargs={"random": 0})
        if max_episode_steps is not None:
            env._step_limit = max_episode_steps  # its own argument is a limit in seconds, which rounding may miss
        super().__init__(env)

    @property
    def max_episode_steps(self) -> int | None:
        """Control steps until the time limit; None if the task has none."""
        limit = self._env._step_limit
        return None if math.isinf(limit) else math.ceil(limit)

    def _seed(self, seed: int) -> None:
        self._env.task._random = np.random.RandomState(np.random.MT19937(seed))

    def _ends(self, step: Any) -> tuple[bool, bool]:
        # dm_control's own mark of an end that is no time limit is a discount of 0.
        terminated = bool(step.last() and step.discount == 0.0)
        return terminated, bool(step.last() and not terminated)
