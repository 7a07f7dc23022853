"""What the collectors share: the episode loops in OGBench's and in ExORL's environments, and the files of columns.

Shapes: `T` transitions of an episode, `O` observation, `A` action, `P` joint positions, `V` joint velocities.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import gymnasium
import numpy as np

from dipole_ray.data.sources.npz import read_headers
from dipole_ray.envs.gl import enable_rendering
from dipole_ray.envs.make import EnvConfig, constructing, standard_ogbench
from dipole_ray.envs.registry import is_visual, load_ogbench
from dipole_ray.envs.standard import Info, PrivateGlobalRandom, StandardEnv
from dipole_ray.files.durable import replacing

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


class OgbenchCollector(Collector):
    """Plays episodes in one of OGBench's goal-conditioned environments; a subclass says how they begin and go on."""

    def __init__(self, env_id: str, **options: Any) -> None:
        """Open `env_id`, for example `pointmaze-medium-v0`, with OGBench's own `options`."""
        load_ogbench()
        if is_visual(env_id):
            enable_rendering()
        options |= {"disable_env_checker": True, "terminate_at_goal": False}
        with constructing(EnvConfig(id=env_id, kwargs=options)):
            env = standard_ogbench(lambda: gymnasium.make(env_id, **options), env_id)
        super().__init__(env)
        self._simulation: Any = self._env.unwrapped

    def episode(self, seed: np.random.SeedSequence, num_transitions: int) -> Columns:
        """Return T+1 rows in OGBench's types: each state, its action, and the joints by which tasks are judged.

        `terminals` marks the last row, which yields no transition.
        """
        rng = np.random.default_rng(seed)
        rows: dict[str, list[np.ndarray]] = {}
        with PrivateGlobalRandom(seed).swapped_in():
            observation, info = self._begin(rng, env_seed(seed))
            for step in range(num_transitions + 1):
                action = self._action(rng, observation, info)
                for name, value in self._row(observation, action).items():
                    rows.setdefault(name, []).append(value)
                if step < num_transitions:
                    observation, _, _, _, info = self._env.step(action)
                    info = self._go_on(rng, observation, info)
        types: dict[str, Any] = {"button_states": np.int64}
        types["observations"] = self._env.schema.observed["observations"].dtype
        columns = {name: np.asarray(values, types.get(name, np.float32)) for name, values in rows.items()}
        # Also where time ran out: OGBench's word for the end of a trajectory.
        return columns | {"terminals": np.arange(num_transitions + 1) == num_transitions}

    def _row(self, observation: np.ndarray, action: np.ndarray) -> Columns:
        """Return the current state, before `action` is taken in it."""
        data, buttons = self._simulation.data, getattr(self._simulation, "_cur_button_states", None)
        row = {"observations": observation, "actions": action, "qpos": data.qpos.copy(), "qvel": data.qvel.copy()}
        return row if buttons is None else row | {"button_states": buttons.copy()}

    @abstractmethod
    def _begin(self, rng: np.random.Generator, seed: int) -> tuple[np.ndarray, Info]:
        """Reset the environment with `seed` to the start of an episode; return its observation and info."""

    @abstractmethod
    def _action(self, rng: np.random.Generator, observation: np.ndarray, info: Info) -> np.ndarray:
        """Return the action in the current state, float32 (A,) in [-1, 1]."""

    @abstractmethod
    def _go_on(self, rng: np.random.Generator, observation: np.ndarray, info: Info) -> Info:
        """Set the next goal where a step has reached the last one; return the info that is valid from then on."""


def play_exorl(
    env: StandardEnv, seed: np.random.SeedSequence, steps: int, act: Callable[[int, np.ndarray], np.ndarray]
) -> Columns:
    """Play an episode of one of ExORL's tasks; return its T+1 rows in ExORL's types.

    `act` returns the action (A,) in [-1, 1] of a step's number and observation (O,).
    """
    observation, info = env.reset(seed=env_seed(seed))
    assert env.action_space.shape is not None
    # Row 0 is the start, which no action led to.
    rows = [(observation, np.zeros(env.action_space.shape, np.float32), 0.0, info["physics"])]
    for step in range(steps):
        action = act(step, observation)
        observation, reward, _, _, info = env.step(action)
        rows.append((observation, action, reward, info["physics"]))
    observations, actions, rewards, physics = zip(*rows, strict=True)
    return {
        "observation": np.asarray(observations, np.float32),
        "action": np.asarray(actions, np.float32),
        "reward": np.asarray(rewards, np.float32)[:, None],
        "discount": np.ones((len(rewards), 1), np.float32),
        "physics": np.asarray(physics, np.float64),
    }


def exorl_file(folder: Path, index: int, steps: int) -> Path:
    """Return the place of an episode among ExORL's."""
    return folder / "buffer" / f"episode_{index:06d}_{steps}.npz"


def env_seed(seed: np.random.SeedSequence) -> int:
    """Return the reset seed that belongs to `seed`."""
    return int(seed.generate_state(1)[0])


def write_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write an npz archive, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]  # numpy knows one more keyword, a bool


def join_columns(path: Path, files: Sequence[Path]) -> None:
    """Write the episodes of `write_columns` files, `NUMBER/NAME` in each, one after another as one such file.

    Column by column and episode by episode, so that a million images need the memory of one episode.
    """
    found = [read_headers(file) for file in files]
    names = dict.fromkeys(key.partition("/")[2] for key in found[0])
    with replacing(path) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
        for name in names:
            keys = [[key for key in headers if key.partition("/")[2] == name] for headers in found]
            one = found[0][keys[0][0]]
            rows = sum(headers[key].shape[0] for headers, own in zip(found, keys, strict=True) for key in own)
            header = {"descr": one.dtype.str, "fortran_order": False, "shape": (rows, *one.shape[1:])}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for file, own in zip(files, keys, strict=True):
                    with np.load(file, allow_pickle=False) as arrays:
                        for key in own:
                            member.write(np.ascontiguousarray(arrays[key]).data)
