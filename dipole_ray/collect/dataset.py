"""Collecting a dataset: shards of whole episodes in parallel, then the files, all of them or none.

A shard is fixed by the request alone, and an episode by the request's seed and its own number, so the rows are the
same for any number of workers and after any interruption.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.collect.episode import Columns, join_columns, write_columns
from dipole_ray.collect.registry import PENDULUM, recipe
from dipole_ray.collect.request import check_numbers, read_record, request_in_words, writing
from dipole_ray.columns import Schema
from dipole_ray.data.dataset import MANIFEST, read_manifest, write_dataset
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import commit_file, write_json
from dipole_ray.parallel import map_tasks

SHARD_TRANSITIONS = 10_000  # of a full shard: seconds to half a minute of work
_SPLITS = ("train", "val")
PACKAGES = ("ogbench", "mujoco", "gymnasium", "numpy")  # whose versions are written down


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Some consecutive episodes of one split."""

    name: str  # of the dataset
    split: str  # `train` or `val`
    first_episode: int  # its number within the split
    lengths: tuple[int, ...]  # transitions of each episode
    seed: int  # of the request
    kwargs: dict[str, Any]  # arguments of the environment

    def __str__(self) -> str:
        last = self.first_episode + len(self.lengths) - 1
        return f"{self.name} {self.split} episodes {self.first_episode}-{last}"

    @property
    def file_name(self) -> str:
        """Name of the file that keeps it."""
        return f"{self.split}-{self.first_episode:06d}.npz"


def plan(name: str, transitions: int, seed: int, kwargs: dict[str, Any] | None = None) -> list[Shard]:
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
            how_many: Any = {"first_episode": first, "lengths": some}
            shards.append(Shard(name=name, split=split, seed=seed, kwargs=kwargs or {}, **how_many))
    return shards


def play(shard: Shard) -> list[Columns]:
    """Play the episodes of `shard` in an environment of its own."""
    episodes = []
    with closing(recipe(shard.name).open(**shard.kwargs)) as collector:
        for number, length in enumerate(shard.lengths, shard.first_episode):
            seed = np.random.SeedSequence(shard.seed, spawn_key=(_SPLITS.index(shard.split), number))
            episodes.append(collector.episode(seed, length))
    return episodes


def collect(
    name: str,
    transitions: int,
    seed: int,
    out: Path | str,
    num_workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    env_kwargs: dict[str, Any] | None = None,
) -> list[Path]:
    """Make the dataset `name`, or return it if this very request has been fulfilled in `out` before.

    The rows depend on `name`, `transitions`, `seed` and `env_kwargs` alone. An interrupted call leaves its finished
    shards in a hidden folder of `out`; the same call takes them up.

    Args:
        name: An OGBench dataset such as `pointmaze-medium-navigate-v0`, written as OGBench's pair `{name}.npz` and
            `{name}-val.npz` (a tenth more) with `{name}.json` beside it; or `Pendulum-v1`, written as a dataset
            folder of this package.
        transitions: At least 1, in the training file.
        seed: At least 0.
        out: Folder to write into.
        num_workers: Ray tasks at a time; 1 collects in this process. None: what the work is worth.
        progress: Whether to show progress.
        overwrite: Whether to replace files of that name that were made by another request.
        env_kwargs: Arguments of the environment's constructor.

    Returns:
        The files, training data first; or the dataset folder.

    Raises:
        ConfigError: If `name` has no collector, or a number is out of range.
        DatasetError: If other files of that name are there, or `out` cannot be written.
    """
    how = recipe(name)
    check_numbers(f"'{name}'", transitions=transitions, seed=seed, num_workers=num_workers)
    request = {"name": name, "collector": how.collector, "transitions": transitions, "seed": seed}
    request |= {"env_kwargs": env_kwargs} if env_kwargs else {}
    out = Path(out)
    targets = files_of(name, out)
    digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()[:8]
    work = out / f".{name}-{digest}.partial"
    if not overwrite and _is_fulfilled(request, out, targets):
        return targets
    with writing(out / name, f"'{name}' into {out}", "parts"):
        if not overwrite and _is_fulfilled(request, out, targets):  # by a process that this one waited for
            return targets
        taken = [path.name for path in targets if path.exists()]
        # With its own parts still there, this request was stopped while it put its files in place.
        if taken and not overwrite and not work.exists():
            raise DatasetError(
                f"{out} already holds {' and '.join(taken)}, which other settings made "
                f"({request_in_words(_record(out, name))}); choose another folder, or overwrite"
            )
        work.mkdir(parents=True, exist_ok=True)
        shards = plan(name, transitions, seed, env_kwargs)
        _play_all(shards, work, num_workers, progress)
        record = {"request": request, "versions": {package: version(package) for package in PACKAGES}}
        write = _write_folder if name == PENDULUM else _write_pair
        write(shards, work, targets, record)
        shutil.rmtree(work)
    return targets


def files_of(name: str, out: Path) -> list[Path]:
    """Return what `collect` makes in `out`, whether it has been made or not."""
    return [out / name] if name == PENDULUM else [out / f"{name}.npz", out / f"{name}-val.npz"]


def _play_all(shards: list[Shard], work: Path, num_workers: int | None, progress: bool) -> None:
    map_tasks(
        play,
        shards,
        description=f"collect {shards[0].name}",
        max_in_flight=num_workers,
        unit="transitions",
        local=num_workers == 1,
        size=lambda shard: sum(shard.lengths),
        rate=recipe(shards[0].name).transitions_per_s,
        saved=lambda shard: (work / shard.file_name).exists() or None,
        save=lambda shard, episodes: _keep(shard, episodes, work),
        progress=progress,
    )


def _keep(shard: Shard, episodes: list[Columns], work: Path) -> None:
    arrays = {f"{i}/{name}": column for i, columns in enumerate(episodes) for name, column in columns.items()}
    write_columns(work / shard.file_name, arrays)


def _episodes(shards: list[Shard], work: Path, split: str) -> Iterator[Columns]:
    """Yield the kept episodes of one split, in order."""
    for shard in shards:
        if shard.split == split:
            episodes: dict[str, Columns] = {}
            with np.load(work / shard.file_name, allow_pickle=False) as file:
                for key in file.files:
                    number, _, name = key.partition("/")
                    episodes.setdefault(number, {})[name] = file[key]
            yield from episodes.values()


def _write_pair(shards: list[Shard], work: Path, targets: list[Path], record: dict[str, Any]) -> None:
    """Write OGBench's two files, then the side file that says they are complete."""
    for split, target in zip(_SPLITS, targets, strict=True):
        join_columns(work / target.name, [work / shard.file_name for shard in shards if shard.split == split])
    side = targets[0].with_suffix(".json")
    side.unlink(missing_ok=True)  # while it is gone, the files count as another request's
    for target in targets:
        commit_file(work / target.name, target)
    sizes = {target.name: target.stat().st_size for target in targets}
    write_json(side, {"request": record["request"], "bytes": sizes, "versions": record["versions"]})


def _write_folder(shards: list[Shard], work: Path, targets: list[Path], record: dict[str, Any]) -> None:
    """Write a dataset folder of this package; its manifest carries the record."""
    first = next(_episodes(shards, work, "train"))
    schema = Schema(first["observations"].shape[1], first["actions"].shape[1])
    write_dataset(targets[0], _episodes(shards, work, "train"), schema, record, overwrite=True)


def _is_fulfilled(request: dict[str, Any], out: Path, targets: list[Path]) -> bool:
    """Whether `out` holds the complete answer to `request`."""
    record = _record(out, request["name"])
    sizes = record.get("bytes", {})
    return record.get("request") == request and all(
        path.exists() and (path.is_dir() or path.stat().st_size == sizes.get(path.name)) for path in targets
    )


def _record(out: Path, name: str) -> dict[str, Any]:
    if (out / name / MANIFEST).is_file():
        return read_manifest(out / name).source
    return read_record(out / f"{name}.json")
