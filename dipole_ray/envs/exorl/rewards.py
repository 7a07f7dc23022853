"""The rewards of one task for all episodes of a folder: computed in parallel, kept on the disk, never twice.

They are kept beside, not in, the episodes: one small file for some episodes, under a digest of the recorded states, the
task, and the versions that could change a bit of them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dipole_ray.data.sources.exorl import episode_steps, physics_digest, read_arrays
from dipole_ray.envs.exorl.relabel import exorl_rewards
from dipole_ray.envs.exorl.tasks import PREFIX, domain_of
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import replacing
from dipole_ray.files.lock import FolderLock
from dipole_ray.parallel import map_tasks

RULES = 1  # version of this package's own part in the rewards
BLOCK_STEPS = 20_000  # of one Ray task and one file: seconds of work


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
        num_workers: Ray tasks at a time; 1 works in this process. None: the whole cluster, or this process if the work
            takes but a few seconds.
        progress: Whether to show progress.

    Raises:
        DatasetError: If an episode is malformed, damaged, or of another domain.
        ConfigError: If `env_id` is no ExORL task.
    """
    task = env_id.removeprefix(PREFIX)
    versions = "-".join(version(package) for package in ("dm_control", "mujoco"))
    folder = cache / "exorl-rewards" / physics_digest(files) / f"{task}-{RULES}-{versions}"
    blocks = _plan(env_id, files, folder)
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
        raise DatasetError(
            f"{file}: cannot be seen from here; a cluster's nodes need the episodes under the same path, or label them "
            "in one process with --workers 1"
        )
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
