"""The `play` and `noisy` data of OGBench's cube, scene and puzzle environments, by its scripted oracles.

`play` follows planned arm paths with smooth noise; `noisy` follows a closed-loop rule with white noise and a share of
random actions, which covers more states with less skill. Either does one random sub-task after another.
"""

from typing import Any

import numpy as np

from dipole_ray.collect.episode import Columns, OgbenchCollector
from dipole_ray.envs.registry import VISUAL
from dipole_ray.envs.standard import Info
from dipole_ray.errors import EnvironmentUnavailable

PLAN_NOISE = {"noise": 0.1, "noise_smoothing": 0.5}
MIN_NORM = 0.4
MAX_ACTION_NOISE = 0.1
# Noise of `noisy` data per action (x, y, z, yaw, gripper), in multiples of the episode's level.
ACTION_NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])

# Ranges of an episode's chance to stack a cube, as in OGBench's own data.
P_STACK = {"single": (0, 0), "double": (0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5), "octuple": (0, 0.35)}

MAX_ATTEMPTS = 50  # before giving up on a healthy episode; about one in a hundred scenes loses its cube


class ManipulationCollector(OgbenchCollector):
    """Plays one sub-task after another with OGBench's oracles, which know the state where observations are images."""

    def __init__(self, env_id: str, kind: str, **kwargs: Any) -> None:
        """Open `env_id`, such as `cube-single-v0`, with arguments of its own; `kind` is `play` or `noisy`."""
        super().__init__(env_id, **{"mode": "data_collection", "visualize_info": False, **kwargs})
        self._domain, self._variant, *_ = env_id.removeprefix(VISUAL).split("-")
        self._is_noisy = kind == "noisy"
        self._random_action_fraction = 0.2 if self._domain == "puzzle" else 0.1  # of noisy data
        self._oracles = _oracles(self._env, self._domain, self._is_noisy)

    def episode(self, seed: np.random.SeedSequence, num_transitions: int) -> Columns:
        """Return one episode of `num_transitions`, T+1 rows.

        Raises:
            EnvironmentUnavailable: If the simulation loses the cube again and again.
        """
        for attempt in seed.spawn(MAX_ATTEMPTS):
            columns = super().episode(attempt, num_transitions)
            if self._domain != "scene" or _cube_stays_visible(columns["qpos"]):
                return columns
        raise EnvironmentUnavailable(
            f"{MAX_ATTEMPTS} scene episodes in a row lost the cube: the physics is not OGBench's; install the mujoco "
            "version that dipole_ray asks for (>=3.1.6,<3.5)"
        )

    def _begin(self, rng: np.random.Generator, seed: int) -> tuple[np.ndarray, Info]:
        observation, info = self._env.reset(seed=seed)
        self._p_stack = rng.uniform(*P_STACK[self._variant]) if self._domain == "cube" else 0.5
        self._noise = rng.uniform(0.0, MAX_ACTION_NOISE) * ACTION_NOISE_SHAPE
        self._take_sub_task(observation, info)
        return observation, info

    def _go_on(self, rng: np.random.Generator, observation: np.ndarray, info: Info) -> Info:
        if self._oracle.done:
            _, info = self._simulation.set_new_target(p_stack=self._p_stack)
            self._take_sub_task(observation, info)
        return info

    def _take_sub_task(self, observation: np.ndarray, info: Info) -> None:
        self._oracle = self._oracles[info["privileged/target_task"]]
        self._oracle.reset(observation, info)

    def _action(self, rng: np.random.Generator, observation: np.ndarray, info: Info) -> np.ndarray:
        if self._is_noisy and rng.random() < self._random_action_fraction:
            return rng.uniform(-1.0, 1.0, 5).astype(np.float32)
        action: np.ndarray = np.asarray(self._oracle.select_action(observation, info))
        if self._is_noisy:
            action = action + rng.normal(0.0, self._noise)
        clipped: np.ndarray = np.clip(action, -1.0, 1.0)
        return clipped.astype(np.float32)


def _oracles(env: Any, domain: str, is_noisy: bool) -> dict[str, Any]:
    """Return the oracle of each sub-task of `domain`."""
    settings: dict[str, Any] = {"min_norm": MIN_NORM} if is_noisy else dict(PLAN_NOISE)
    if domain == "puzzle":
        settings["gripper_always_closed"] = True  # nothing to grasp: the fingers stay closed to press with
    if is_noisy:
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle as Button
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle as Cube
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle as Drawer
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle as Window
    else:
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle as Button
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle as Cube
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle as Drawer
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle as Window
    oracles = {"cube": Cube, "button": Button, "drawer": Drawer, "window": Window}
    tasks = {"cube": ["cube"], "puzzle": ["button"]}.get(domain, list(oracles))
    return {task: oracles[task](env=env, **settings) for task in tasks}


def _cube_stays_visible(qpos: np.ndarray) -> bool:
    """Whether the cube of a scene never lies beyond the table's edge, except inside the drawer."""
    y, z = qpos[:, 15], qpos[:, 16]
    is_in_drawer = (z >= 0.06) & (z <= 0.08)
    return not bool(np.any(y >= 0.29) or np.any((y <= -0.3) & ~is_in_drawer))
