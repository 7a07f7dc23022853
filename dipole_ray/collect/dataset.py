"""Collecting a dataset: shards in parallel, then the files, all of them or none."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.collect.registry import PENDULUM, recipe
from dipole_ray.collect.shards import Shard, keep, kept, plan, play, read
from dipole_ray.columns import Schema
from dipole_ray.data.dataset import MANIFEST, read_manifest, write_dataset
from dipole_ray.data.schema import Rows, close_trajectory
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.durable import commit_file, read_json, write_json
from dipole_ray.files.lock import LOCK, FolderLock
from dipole_ray.parallel import map_tasks

Request = dict[str, Any]


def collect(
    name: str,
    transitions: int,
    seed: int,
    out: Path | str,
    num_workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> list[Path]:
    """Make the dataset `name`, or return it if this very request has been fulfilled in `out` before.

    The rows depend on `name`, `transitions` and `seed` alone. An interrupted call leaves its finished shards in a
    hidden folder of `out`; the same call takes them up.

    Args:
        name: An OGBench dataset such as `pointmaze-medium-navigate-v0`, written as OGBench's pair `{name}.npz` and
            `{name}-val.npz` (a tenth more) with `{name}.json` beside it; or `Pendulum-v1`, written as a dataset
            folder of this package.
        transitions: Transitions of the training file, >= 1.
        seed: Seed, >= 0.
        out: Folder to write into; made if needed.
        num_workers: Ray tasks at a time; 1 collects in this process. None: the whole cluster, or this process if
            the work takes but a few seconds.
        progress: Whether to show progress.
        overwrite: Whether to replace files of that name that were made by another request.

    Returns:
        The files, training data first; or the dataset folder.

    Raises:
        ConfigError: If `name` has no collector, or a number is out of range.
        DatasetError: If other files of that name are there, or `out` cannot be written.
    """
    how = recipe(name)
    for key, value, least in (("transitions", transitions, 1), ("seed", seed, 0), ("num_workers", num_workers, 1)):
        if value is not None and value < least:
            raise ConfigError(f"cannot collect '{name}': {key} is {value}; it must be at least {least}")
    request: Request = {"name": name, "collector": how.collector, "transitions": transitions, "seed": seed}
    out = Path(out)
    targets = files_of(name, out)
    work = out / f".{name}-{hashlib.sha256(json.dumps(request).encode()).hexdigest()[:8]}.partial"
    if not overwrite and _is_fulfilled(request, out, targets):
        return targets
    try:
        with FolderLock(out, math.inf, f".{name}{LOCK}"):
            if not overwrite and _is_fulfilled(request, out, targets):  # by a process that this one waited for
                return targets
            _check_target(out, name, targets, overwrite=overwrite or work.exists())
            work.mkdir(parents=True, exist_ok=True)
            shards = plan(name, transitions, seed)
            _play_all(shards, work, num_workers, progress)
            if name == PENDULUM:
                _write_folder(shards, work, targets[0], request)
            else:
                _write_pair(shards, work, targets, request)
            shutil.rmtree(work)
    except OSError as error:
        raise DatasetError(
            f"cannot collect '{name}' into {out}: {error.strerror or error}; free space there or choose a folder that "
            "can be written. Finished parts are kept, and the same call goes on from them"
        ) from error
    return targets


def files_of(name: str, out: Path) -> list[Path]:
    """Return what `collect` makes in `out`, whether it has been made or not."""
    return [out / name] if name == PENDULUM else [out / f"{name}.npz", out / f"{name}-val.npz"]


def _check_target(out: Path, name: str, targets: list[Path], *, overwrite: bool) -> None:
    taken = [path.name for path in targets if path.exists()]
    if taken and not overwrite:
        raise DatasetError(
            f"{out} already holds {' and '.join(taken)}, which other settings made ({_origin(out, name)}); choose "
            "another folder, or overwrite"
        )


def _play_all(shards: list[Shard], work: Path, num_workers: int | None, progress: bool) -> None:
    map_tasks(
        play,
        shards,
        description=f"collect {shards[0].name}",
        max_in_flight=num_workers,
        unit="transitions",
        local=num_workers == 1,
        size=lambda shard: shard.num_transitions,
        rate=recipe(shards[0].name).transitions_per_s,
        saved=lambda shard: kept(shard, work),
        save=lambda shard, episodes: keep(shard, episodes, work),
        progress=progress,
    )


def _write_pair(shards: list[Shard], work: Path, targets: list[Path], request: Request) -> None:
    """Write OGBench's two files, then the side file that says they are complete."""
    written = []
    for split, target in zip(("train", "val"), targets, strict=True):
        episodes = [part for shard in shards if shard.split == split for part in read(work / shard.file_name)]
        columns: dict[str, Any] = {key: np.concatenate([part[key] for part in episodes]) for key in episodes[0]}
        temporary = work / target.name
        with temporary.open("wb") as file:
            np.savez_compressed(file, **columns)
        written.append((temporary, target))
    side = targets[0].with_suffix(".json")
    side.unlink(missing_ok=True)
    for temporary, target in written:
        commit_file(temporary, target)
    sizes = {target.name: target.stat().st_size for target in targets}
    write_json(side, {"request": request, "bytes": sizes, "versions": _versions()})


def _write_folder(shards: list[Shard], work: Path, target: Path, request: Request) -> None:
    """Write a dataset folder of this package; its manifest carries the request."""
    first = read(work / shards[0].file_name)[0]
    schema = Schema(first["observations"].shape[1], first["actions"].shape[1])
    source = {"request": request, "versions": _versions()}
    write_dataset(target, _rows(shards, work), schema, source, overwrite=True)


def _rows(shards: list[Shard], work: Path) -> Iterator[Rows]:
    for shard in shards:
        for part in read(work / shard.file_name):
            yield close_trajectory(part["observations"], part["actions"], part["rewards"], part["masks"])


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("ogbench", "mujoco", "gymnasium", "numpy")}


def _is_fulfilled(request: Request, out: Path, targets: list[Path]) -> bool:
    """Whether `out` holds the complete answer to `request`."""
    record = _record(out, request["name"])
    if record is None or record.get("request") != request:
        return False
    sizes = record.get("bytes", {})
    return all(path.exists() and (path.is_dir() or path.stat().st_size == sizes.get(path.name)) for path in targets)


def _record(out: Path, name: str) -> dict[str, Any] | None:
    """Return what is written down about the dataset `name` in `out`, or None."""
    if (out / name / MANIFEST).is_file():
        return read_manifest(out / name).source
    side = out / f"{name}.json"
    if not side.is_file():
        return None
    try:
        record = read_json(side)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _origin(out: Path, name: str) -> str:
    """Say in words what request made the files that are there."""
    record = _record(out, name)
    if record is None or not isinstance(record.get("request"), dict):
        return "there is no record of them"
    return ", ".join(f"{key} {value}" for key, value in record["request"].items() if key != "name")
