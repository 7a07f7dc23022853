"""The reward of any task of a domain for states that were recorded under another one, exactly as a step gives it.

Those of a folder's episodes are computed in parallel, and kept on the disk beside them: one small file for some
episodes, under a digest of the recorded states, the task, and the versions that could change a bit of them.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.data.sources.exorl import episode_steps, physics_digest, read_arrays
from dipole_ray.envs.exorl.tasks import PREFIX, domain_of, load, task_ids
from dipole_ray.envs.gl import disable_rendering_by_default
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.durable import replacing
from dipole_ray.files.lock import FolderLock
from dipole_ray.files.place import absolute
from dipole_ray.parallel import map_tasks

RULES = 1  # version of this package's own part in the rewards
BLOCK_STEPS = 20_000  # of one Ray task and one file: seconds of work
LARGEST_STATE = 1e6  # magnitude in a state that is handed to MuJoCo; real ones stay below a few hundred


@lru_cache(maxsize=2)
def _simulation(env_id: str) -> Any:
    """Return the task's simulation, built once in a process: jaco's takes half a second."""
    disable_rendering_by_default()
    simulation = load(env_id)
    simulation.reset()  # jaco's target is put in its place here
    return simulation


def exorl_rewards(env_id: str, physics: np.ndarray) -> np.ndarray:
    """Return the reward (N,) of reaching each state, float64 (N, P) as in `info["physics"]` or an episode's file.

    It is bitwise what the environment's own steps into these states give; NaN where a state is not finite or none that
    the simulation could be in.

    Raises:
        ConfigError: If `env_id` is no ExORL task.
        DatasetError: If the states are not of this domain.
    """
    if env_id not in task_ids():
        raise ConfigError(f"'{env_id}' is no ExORL task: only those ({PREFIX}walker-walk, ...) reward recorded states")
    expected = domain_of(env_id).physics_dim
    if physics.ndim != 2 or physics.shape[1] != expected or physics.dtype != np.float64:
        raise DatasetError(
            f"cannot label states for '{env_id}': array 'physics' is {physics.dtype} of shape {physics.shape}, "
            f"expected float64 (rows, {expected}); the episodes are of another domain: name theirs with --env"
        )
    simulation = _simulation(env_id)
    from dm_control.rl.control import PhysicsError

    rewards = np.full(len(physics), np.nan)
    for row in np.flatnonzero((np.abs(physics) < LARGEST_STATE).all(axis=1)):  # a comparison with NaN is false
        with suppress(PhysicsError):
            rewards[row] = reward_of(simulation, physics[row])
    return rewards


def reward_of(simulation: Any, state: np.ndarray) -> float:
    """Return the reward of reaching a state (P,), in which the simulation stands afterwards."""
    with simulation.physics.reset_context():
        simulation.physics.set_state(state)
    return float(simulation.task.get_reward(simulation.physics))


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some consecutive episodes, to be rewarded for one task."""

    env_id: str
    files: tuple[Path, ...]  # the episodes
    kept: Path  # the file of their rewards

    def __str__(self) -> str:
        return f"{self.files[0].name} to {self.files[-1].name}"

    @property
    def steps(self) -> int:
        """Steps of all of them."""
        return sum(episode_steps(file) for file in self.files)


def label_episodes(
    env_id: str, files: Sequence[Path], cache: Path, *, num_workers: int | None = None, progress: bool = True
) -> list[Block]:
    """Have the rewards of every episode on the disk; an interrupted call is continued by the next, and a second waits.

    Args:
        env_id: The task, for example `exorl/walker-run`.
        files: The episodes, in order; Ray's workers must find them under the same paths.
        cache: Folder that keeps what was computed.
        num_workers: Ray tasks at a time; 1 works in this process. None: what the work is worth.
        progress: Whether to show progress.

    Raises:
        DatasetError: If an episode is malformed, damaged, or of another domain.
        ConfigError: If `env_id` is no ExORL task.
    """
    task = env_id.removeprefix(PREFIX)
    versions = "-".join(version(package) for package in ("dm_control", "mujoco"))
    folder = cache / "exorl-rewards" / physics_digest(files) / f"{task}-{RULES}-{versions}"
    blocks = _plan(env_id, list(map(absolute, files)), absolute(folder))
    if all(map(_saved, blocks)):
        return blocks
    with FolderLock(folder, math.inf):
        map_tasks(
            label,
            blocks,
            description=f"label {task}",
            max_in_flight=num_workers,
            unit="transitions",
            local=num_workers == 1,
            size=lambda block: block.steps,
            rate=domain_of(env_id).relabels_per_s,
            saved=_saved,
            save=_save,
            progress=progress,
        )
    return blocks


def rewards_of(blocks: Sequence[Block]) -> Iterator[np.ndarray]:
    """Yield the kept rewards of each episode, float32 (T,)."""
    for block in blocks:
        ends = np.cumsum([episode_steps(file) for file in block.files])
        yield from np.split(np.load(block.kept, allow_pickle=False), ends[:-1])


def label(block: Block) -> np.ndarray:
    """Return the rewards of all transitions of a block, float32 as a dataset holds them."""
    return np.concatenate([_label_episode(block.env_id, file) for file in block.files])


def _label_episode(env_id: str, file: Path) -> np.ndarray:
    if not file.is_file():
        remedy = "need the episodes under the same path, or label them in one process with --workers 1"
        raise DatasetError(f"{file}: cannot be seen from here; a cluster's nodes {remedy}")
    try:
        return exorl_rewards(env_id, read_arrays(file, ["physics"])["physics"][1:]).astype(np.float32)
    except DatasetError as error:
        raise error if str(file) in str(error) else DatasetError(f"{file}: {error}") from error


def _plan(env_id: str, files: Sequence[Path], folder: Path) -> list[Block]:
    groups: list[list[Path]] = []
    steps = BLOCK_STEPS
    for file in files:
        if steps >= BLOCK_STEPS:
            groups.append([])
            steps = 0
        groups[-1].append(file)
        steps += episode_steps(file)
    return [
        Block(env_id=env_id, files=tuple(group), kept=folder / f"rewards-{number:05d}.npy")
        for number, group in enumerate(groups)
    ]


def _saved(block: Block) -> Path | None:
    """Return the file of a block if it is whole; one that was damaged since is computed again."""
    try:
        kept = np.load(block.kept, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return block.kept if kept.shape == (block.steps,) and kept.dtype == np.float32 else None


def _save(block: Block, rewards: np.ndarray) -> Path:
    with replacing(block.kept) as temporary, temporary.open("wb") as file:
        np.save(file, rewards)
    return block.kept
