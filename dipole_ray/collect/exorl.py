"""Data in ExORL's own files, collected on the spot: by uniform noise, or by an explorer that seeks new states.

`{out}/{domain}/{algorithm}/buffer/episode_{index:06d}_{steps}.npz` holds T+1 rows: `observation`, `action`, `reward`,
`discount` and the state of the simulation, `physics`. Row 0 is the start, with an action of zeros; row i holds action i
and what it led to. The reward is that of the domain's first task; importing the data labels it for the task at hand.
"""

from __future__ import annotations

import difflib
import math
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.collect.episode import Columns, env_seed
from dipole_ray.envs.exorl.tasks import DOMAINS, Domain, primary_task
from dipole_ray.envs.make import make_env
from dipole_ray.envs.standard import StandardEnv
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.durable import read_json, replacing, write_json
from dipole_ray.files.lock import LOCK, FolderLock
from dipole_ray.parallel import map_tasks

ALGORITHMS = {"random": "uniform-1", "rnd": "rnd-1"}
"""How actions are chosen, with its version: files change only when this does."""

_SIMULATION = ("dm_control", "mujoco", "numpy")
VERSIONS = {"random": _SIMULATION, "rnd": (*_SIMULATION, "torch")}
"""What is written down of the packages behind the episodes."""

BLOCK_STEPS = 5000
"""Steps of one Ray task of the uniform collector: seconds."""

RECORD = "collect.json"


def collect_exorl(
    domain: str,
    algorithm: str,
    steps: int,
    seed: int,
    out: Path | str,
    num_workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Collect whole episodes of at least `steps` steps, or go on with what an earlier call left in `out`.

    The files depend on domain, algorithm and seed alone: a run that was interrupted, or asked for fewer steps, is
    continued as if it had never stopped.

    Args:
        domain: `walker`, `quadruped`, `cheetah` or `jaco`.
        algorithm: `random`, uniform noise, in parallel through Ray; or `rnd`, an explorer, in this process.
        steps: Steps, >= 1; rounded up to whole episodes.
        seed: Seed, >= 0.
        out: Folder above `{domain}/{algorithm}`; made if needed.
        num_workers: `random` only: Ray tasks at a time; 1 collects in this process. None: the whole cluster, or this
            process if the work takes but a few seconds.
        progress: Whether to show progress.
        overwrite: Whether to start from the beginning, replacing whatever episodes are there.

    Returns:
        The folder `{out}/{domain}/{algorithm}`.

    Raises:
        ConfigError: If domain or algorithm is unknown, or a number is out of range.
        DatasetError: If other episodes are there, or some that other versions of the simulation would have to go on
            with, or `out` cannot be written.
    """
    task = _checked(domain, algorithm, steps, seed, num_workers)
    folder = Path(out) / domain / algorithm
    request = {"domain": domain, "collector": ALGORITHMS[algorithm], "seed": seed}
    count = -(-steps // task.episode_steps)
    wanted = [episode_file(folder, index, task.episode_steps) for index in range(count)]
    if not overwrite and _recorded(folder).get("request") == request and all(map(Path.exists, wanted)):
        return folder
    try:
        with FolderLock(folder.parent, math.inf, f".{algorithm}{LOCK}"):
            if overwrite and folder.exists():
                shutil.rmtree(folder)
            found = _claim(folder, request, {package: version(package) for package in VERSIONS[algorithm]})
            if all(map(Path.exists, wanted)):  # by a process that this one waited for
                return folder
            _check_versions(folder, found)
            if algorithm == "random":
                _collect_random(task, count, seed, folder, num_workers, progress)
            else:
                from dipole_ray.collect.exploration import explore

                explore(task, count, seed, folder, progress=progress)
    except OSError as error:
        raise DatasetError(
            f"cannot collect {domain} into {folder}: {error.strerror or error}; free space there or choose a folder "
            "that can be written. Finished episodes are kept, and the same call goes on from them"
        ) from error
    return folder


def _checked(domain: str, algorithm: str, steps: int, seed: int, num_workers: int | None) -> Domain:
    """Return the domain of a request that can be fulfilled."""
    for value, names, what in ((domain, list(DOMAINS), "domain"), (algorithm, list(ALGORITHMS), "algorithm")):
        if value not in names:
            near = difflib.get_close_matches(value, names, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"no exorl {what} '{value}' can be collected; {hint}there are {', '.join(names)}")
    for key, number, least in (("steps", steps, 1), ("seed", seed, 0), ("num_workers", num_workers, 1)):
        if number is not None and number < least:
            raise ConfigError(f"cannot collect exorl {domain}: {key} is {number}; it must be at least {least}")
    if algorithm == "rnd" and num_workers is not None and num_workers > 1:
        raise ConfigError(
            f"cannot collect exorl {domain}: rnd explores in one process, each step after the other; for more data in "
            "the same time, start several seeds with --out DIR/seed0, DIR/seed1 and so on, and train with data.path=DIR"
        )
    return DOMAINS[domain]


def _claim(folder: Path, request: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
    """Write down what the folder's episodes are, or check that it is the same; return the versions that made them."""
    buffer, record = folder / "buffer", folder / RECORD
    if not record.is_file() and not (buffer.is_dir() and any(buffer.iterdir())):
        buffer.mkdir(parents=True, exist_ok=True)
        write_json(record, {"request": request, "versions": versions})
    found = _recorded(folder)
    told = found.get("request")
    if told != request:
        known = ", ".join(f"{key} {value}" for key, value in told.items()) if isinstance(told, dict) else ""
        raise DatasetError(
            f"{folder} already holds other episodes ({known or 'there is no record of them'}); choose another folder, "
            "or overwrite them"
        )
    made = found.get("versions")
    return made if isinstance(made, dict) else {}


def _recorded(folder: Path) -> dict[str, Any]:
    """Return what is written down of a folder's episodes; nothing where there is no record, or none of ours."""
    try:
        found = read_json(folder / RECORD)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_versions(folder: Path, made: dict[str, Any]) -> None:
    """Refuse to go on with episodes that another simulation, or another network library, began."""
    for package in ("mujoco", "dm_control", "torch"):
        if package in made and made[package] != version(package):
            raise DatasetError(
                f"{folder}: its episodes were made with {package} {made[package]}, installed is {version(package)}; "
                f"both would be mixed: install {package}=={made[package]}, choose another folder, or overwrite them"
            )


# ---- one episode and its file ----


class Recorder:
    """Gathers the rows of one episode of `env`."""

    def __init__(self, env: StandardEnv, seed: np.random.SeedSequence) -> None:
        """Start an episode."""
        self._env = env
        self.observation, info = env.reset(seed=env_seed(seed))
        assert env.action_space.shape is not None
        self._rows = [(self.observation, np.zeros(env.action_space.shape, np.float32), 0.0, info["physics"])]

    def step(self, action: np.ndarray) -> np.ndarray:
        """Take `action`, float32 (A,), and return the observation it leads to."""
        self.observation, reward, _, _, info = self._env.step(action)
        self._rows.append((self.observation, action, reward, info["physics"]))
        return self.observation

    def columns(self) -> Columns:
        """Return the T+1 rows in ExORL's types."""
        observations, actions, rewards, physics = zip(*self._rows, strict=True)
        return {
            "observation": np.asarray(observations, np.float32),
            "action": np.asarray(actions, np.float32),
            "reward": np.asarray(rewards, np.float32)[:, None],
            "discount": np.ones((len(rewards), 1), np.float32),
            "physics": np.asarray(physics, np.float64),
        }


def episode_file(folder: Path, index: int, steps: int) -> Path:
    """Return the place of an episode."""
    return folder / "buffer" / f"episode_{index:06d}_{steps}.npz"


def write_episode(path: Path, columns: Columns) -> None:
    """Write an episode, whole or not at all."""
    arrays: dict[str, Any] = dict(columns)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def episode_seed(seed: int, index: int) -> np.random.SeedSequence:
    """Return the seed of an episode's start and, for uniform noise, of its actions."""
    return np.random.SeedSequence(seed, spawn_key=(index,))


# ---- uniform noise ----


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some consecutive episodes of uniform noise."""

    domain: Domain
    """Where they are played."""

    seed: int
    """Seed of the request."""

    episodes: tuple[int, ...]
    """Their numbers."""

    def __str__(self) -> str:
        return f"{self.domain.name} episodes {self.episodes[0]}-{self.episodes[-1]}"

    @property
    def steps(self) -> int:
        """Steps of all of them."""
        return len(self.episodes) * self.domain.episode_steps


def play_uniform(block: Block) -> list[Columns]:
    """Play the episodes of `block`; each depends on the seed and its own number alone."""
    env = make_env(primary_task(block.domain.name))
    try:
        return [_uniform_episode(env, episode_seed(block.seed, index), block.domain) for index in block.episodes]
    finally:
        env.close()


def _uniform_episode(env: StandardEnv, seed: np.random.SeedSequence, domain: Domain) -> Columns:
    rng = np.random.default_rng(seed)
    recorder = Recorder(env, seed)
    for action in rng.uniform(-1.0, 1.0, (domain.episode_steps, domain.action_dim)).astype(np.float32):
        recorder.step(action)
    return recorder.columns()


def _collect_random(
    domain: Domain, count: int, seed: int, folder: Path, num_workers: int | None, progress: bool
) -> None:
    size = max(1, BLOCK_STEPS // domain.episode_steps)
    blocks = [
        Block(domain=domain, seed=seed, episodes=tuple(range(first, min(first + size, count))))
        for first in range(0, count, size)
    ]
    files = {block: [episode_file(folder, index, domain.episode_steps) for index in block.episodes] for block in blocks}

    def saved(block: Block) -> int | None:
        return len(block.episodes) if all(path.exists() for path in files[block]) else None

    def save(block: Block, episodes: list[Columns]) -> int:
        for path, columns in zip(files[block], episodes, strict=True):
            write_episode(path, columns)
        return len(episodes)

    map_tasks(
        play_uniform,
        blocks,
        description=f"collect exorl {domain.name}",
        max_in_flight=num_workers,
        unit="steps",
        local=num_workers == 1,
        size=lambda block: block.steps,
        rate=domain.steps_per_s,
        saved=saved,
        save=save,
        progress=progress,
    )
