"""Cutting a dataset into shards of whole episodes, playing one, and keeping it on disk.

A shard is fixed by the request alone, and an episode by the request's seed and its own number, so the rows are the
same for any number of workers and after any interruption.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dipole_ray.collect.episode import Columns, write_columns
from dipole_ray.collect.registry import recipe

SHARD_TRANSITIONS = 10_000  # of a full shard: seconds to half a minute of work
_SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Some consecutive episodes of one split."""

    name: str  # of the dataset
    split: str  # `train` or `val`
    first_episode: int  # its number within the split
    lengths: tuple[int, ...]  # transitions of each episode
    seed: int  # of the request

    def __str__(self) -> str:
        last = self.first_episode + len(self.lengths) - 1
        return f"{self.name} {self.split} episodes {self.first_episode}-{last}"

    @property
    def file_name(self) -> str:
        """Name of the file that keeps it."""
        return f"{self.split}-{self.first_episode:06d}.npz"


def plan(name: str, transitions: int, seed: int) -> list[Shard]:
    """Return the shards of a request in order, the validation split last; its last episode may be shorter."""
    how = recipe(name)
    totals = {"train": transitions}
    if how.validation_share:
        totals["val"] = max(1, transitions // how.validation_share)
    block = max(1, SHARD_TRANSITIONS // how.episode_steps)
    shards = []
    for split, total in totals.items():
        full, rest = divmod(total, how.episode_steps)
        lengths = (how.episode_steps,) * full + (rest,) * (rest > 0)
        for first in range(0, len(lengths), block):
            some = lengths[first : first + block]
            shards.append(Shard(name=name, split=split, first_episode=first, lengths=some, seed=seed))
    return shards


def play(shard: Shard) -> list[Columns]:
    """Play the episodes of `shard` in an environment of its own."""
    episodes = []
    with closing(recipe(shard.name).open()) as collector:
        for number, length in enumerate(shard.lengths, shard.first_episode):
            seed = np.random.SeedSequence(shard.seed, spawn_key=(_SPLITS.index(shard.split), number))
            episodes.append(collector.episode(seed, length))
    return episodes


def keep(shard: Shard, episodes: list[Columns], folder: Path) -> None:
    """Write the episodes of `shard` to its file in `folder`, whole or not at all."""
    arrays = {f"{i}/{name}": column for i, columns in enumerate(episodes) for name, column in columns.items()}
    write_columns(folder / shard.file_name, arrays)


def read(path: Path) -> list[Columns]:
    """Return the episodes of a kept shard, in order."""
    episodes: dict[int, Columns] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            number, _, name = key.partition("/")
            episodes.setdefault(int(number), {})[name] = file[key]
    return [episodes[number] for number in sorted(episodes)]
