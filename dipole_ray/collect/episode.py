"""What the collectors share: a seeded environment, and the columns of one episode.

Shapes: `T` transitions of an episode, `O` observation, `A` action, `P` joint positions, `V` joint velocities.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from dipole_ray.envs.make import standard_ogbench
from dipole_ray.envs.registry import load_ogbench
from dipole_ray.envs.standard import StandardEnv

Columns = dict[str, np.ndarray]


class Collector(ABC):
    """Plays episodes of one environment."""

    def __init__(self, env: StandardEnv) -> None:
        self._env = env

    @abstractmethod
    def episode(self, seed: np.random.SeedSequence, num_transitions: int) -> Columns:
        """Return one episode of `num_transitions` that depends on its arguments alone."""

    def close(self) -> None:
        """Free the environment."""
        self._env.close()


class Recorder:
    """Gathers the T+1 rows of an OGBench episode: every state, its action, and the joints the tasks are judged by."""

    def __init__(self, env: StandardEnv) -> None:
        self._simulation: Any = env.unwrapped
        self._has_buttons = hasattr(self._simulation, "_cur_button_states")
        self._rows: dict[str, list[np.ndarray]] = {}

    def add(self, observation: np.ndarray, action: np.ndarray) -> None:
        """Add the current state, before `action` is taken in it."""
        data = self._simulation.data
        row = {"observations": observation, "actions": action, "qpos": data.qpos.copy(), "qvel": data.qvel.copy()}
        if self._has_buttons:
            row["button_states"] = self._simulation._cur_button_states.copy()
        for name, value in row.items():
            self._rows.setdefault(name, []).append(value)

    def columns(self) -> Columns:
        """Return the episode in OGBench's types: `terminals` marks the last row, which yields no transition."""
        columns = {
            name: np.asarray(rows, np.int64 if name == "button_states" else np.float32)
            for name, rows in self._rows.items()
        }
        columns["terminals"] = np.zeros(len(columns["observations"]), bool)
        columns["terminals"][-1] = True  # also where time ran out: OGBench's word for the end of a trajectory
        return columns


def open_ogbench(env_id: str, **kwargs: Any) -> StandardEnv:
    """Build the goal-conditioned OGBench environment `env_id`, in which data is collected."""
    load_ogbench()
    import gymnasium

    kwargs |= {"disable_env_checker": True, "terminate_at_goal": False}
    return standard_ogbench(lambda: gymnasium.make(env_id, **kwargs), env_id)


def env_seed(seed: np.random.SeedSequence) -> int:
    """Return the reset seed that belongs to `seed`."""
    return int(seed.generate_state(1)[0])
