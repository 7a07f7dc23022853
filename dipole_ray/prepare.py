"""From what the config names to a dataset: one imported, data to be converted first, or one made on the spot."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dipole_ray.config import DataConfig
from dipole_ray.data.dataset import MANIFEST, open_dataset, write_dataset
from dipole_ray.data.schema import Schema
from dipole_ray.data.sources.d4rl import SUFFIXES, d4rl_schema, read_d4rl
from dipole_ray.data.sources.exorl import exorl_schema, find_episodes, is_exorl, read_exorl
from dipole_ray.data.sources.minari import is_minari, minari_files, minari_schema, read_minari
from dipole_ray.data.sources.ogbench import read_ogbench
from dipole_ray.data.sources.pieces import ImportReport
from dipole_ray.envs.collect import collect, files_of
from dipole_ray.envs.exorl.rewards import label_episodes, rewards_of
from dipole_ray.envs.make import EnvConfig, env_dims
from dipole_ray.envs.registry import family
from dipole_ray.envs.relabel import ogbench_relabel
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.lock import LOCK, FolderLock

_log = logging.getLogger(__name__)
Conversion = tuple[Path, Callable[[], Path]]
_TASK = re.compile(r"-singletask(-task\d+)?(?=-v\d+$)")


def prepare_dataset(data: DataConfig, env: EnvConfig) -> Path | None:
    """Return the folder of the run's offline dataset, collecting or converting it first where needed.

    What was collected or converted once is found in `data.cache` the next time.

    Args:
        data: Where the transitions come from.
        env: The environment, whose task labels OGBench files with rewards.

    Raises:
        ConfigError: There is no collector for the environment.
        DatasetError: The data cannot be read, or a file of it is damaged and `data.strict` is true.
    """
    path = _place(data, env, make=True)
    if path is not None:
        open_dataset(path, strict=data.strict)  # verifies it, and says what is wrong in a sentence
    return path


def find_dataset(data: DataConfig, env: EnvConfig) -> Path | None:
    """Return the folder that `prepare_dataset` would, if it is there already; makes, converts and verifies nothing."""
    try:
        path = _place(data, env, make=False)
    except DatasetError:  # what would be converted is missing
        return None
    return path if path is not None and (path / MANIFEST).is_file() else None


def _place(data: DataConfig, env: EnvConfig, *, make: bool) -> Path | None:
    """Return the folder of the dataset, not yet verified; where `make` is false, whether it is there or not."""
    cache = Path(data.cache).expanduser()
    if data.path is not None:
        path = Path(data.path).expanduser()
    elif data.collect_transitions:
        name = dataset_name(env.id)
        folder = cache / "collected" / f"{name}-{data.collect_transitions}-seed{data.collect_seed}"
        files = collect(name, data.collect_transitions, data.collect_seed, folder) if make else files_of(name, folder)
        path = files[0]
    else:
        return None
    if path.suffix == ".npz":
        convert = _converted
    elif not (path / MANIFEST).exists() and (is_minari(path) or path.suffix in SUFFIXES):
        convert = _converted_hdf5
    elif not (path / MANIFEST).exists() and is_exorl(path):
        convert = _converted_exorl
    else:
        return path
    out, write = convert(path, env, cache)
    return _made_once(out, write) if make else out


def _made_once(out: Path, make: Callable[[], Path]) -> Path:
    """Return the cached dataset at `out`; of several processes that want it one makes it, and the others wait."""
    if (out / MANIFEST).is_file():
        return out
    try:
        with FolderLock(out.parent, math.inf, f".{out.name}{LOCK}"):
            if not (out / MANIFEST).is_file():
                make()
    except OSError as error:
        raise DatasetError(
            f"{out}: cannot be made ({error.strerror or error}); free space there or set data.cache to another place"
        ) from error
    return out


def dataset_name(env_id: str) -> str:
    """Return the dataset an environment's task is learned from, such as `cube-single-play-v0`."""
    return _TASK.sub("", env_id)


def require_dimensions(path: Path, found: Schema, expected: Schema, env_id: str, remedy: str) -> None:
    """Raise DatasetError unless data have the dimensions of an environment."""
    if found != expected:
        raise DatasetError(
            f"{path}: observations have {found.observation_dim} and actions {found.action_dim} dimensions, '{env_id}' "
            f"has {expected.observation_dim} and {expected.action_dim}; {remedy}"
        )


def import_ogbench(source: Path, env: EnvConfig, out: Path, *, overwrite: bool = False) -> Path:
    """Convert an OGBench file into a dataset folder, rewarded for one task.

    Args:
        source: The .npz file.
        env: The single task its rows are labelled for.
        out: The folder to make.
        overwrite: Replace a dataset that stands there.

    Raises:
        DatasetError: The file is malformed or belongs to another environment.
    """
    dims = env_dims(env)
    pieces = read_ogbench(source, relabel=lambda arrays: ogbench_relabel(env.id, arrays))
    schema = Schema(dims.observation_dim, dims.action_dim)
    about = {"format": "ogbench", "file": source.name, "env": env.id}
    write_dataset(out, pieces, schema, about, overwrite=overwrite)
    return out


def _converted(source: Path, env: EnvConfig, cache: Path) -> Conversion:
    """Return the cached dataset folder of an OGBench file and task, and what converts the file."""
    if not source.is_file():
        raise DatasetError(f"{source}: no such file; give an OGBench .npz or a dataset folder with data.path")
    status = source.stat()
    key = f"{source.resolve()}:{status.st_size}:{status.st_mtime_ns}:{env.id}"
    out = cache / "converted" / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return out, lambda: import_ogbench(source, env, out)


def import_exorl(source: Path, env: EnvConfig, out: Path, cache: Path) -> Path:
    """Convert ExORL's episodes into a dataset folder, rewarded for one task; the rewards are kept in `cache`.

    Args:
        source: The folder of episodes, or one above some of one domain.
        env: The task.
        out: The folder to make.
        cache: Folder for the rewards, which another import of the same episodes for this task finds.

    Raises:
        ConfigError: The environment is none of ExORL's.
        DatasetError: An episode is malformed or of another domain.
    """
    if family(env.id) != "exorl":
        raise ConfigError(
            f"{source} holds ExORL's episodes, which are rewarded for a task of theirs, and env.id is '{env.id}'; set "
            "env.id=exorl/walker-walk or its like"
        )
    files, dims = find_episodes(source), env_dims(env)
    schema, expected = exorl_schema(files), Schema(dims.observation_dim, dims.action_dim)
    require_dimensions(files[0], schema, expected, env.id, "set env.id to a task of the data's domain")
    labels, report = rewards_of(label_episodes(env.id, files, cache)), ImportReport()
    rows = read_exorl(files, labels, report=report)
    write_dataset(out, rows, schema, {"format": "exorl", "file": str(source), "env": env.id})
    _tell(source, report)
    return out


def _converted_exorl(source: Path, env: EnvConfig, cache: Path) -> Conversion:
    """Return the cached dataset folder of ExORL's episodes and a task, and what converts them."""
    digest = hashlib.sha256(f"{source.resolve()}:{env.id}".encode())
    for file in find_episodes(source):
        status = file.stat()
        digest.update(f"{file.name}:{status.st_size}:{status.st_mtime_ns}".encode())
    out = cache / "converted" / f"{env.id.replace('/', '-')}-{digest.hexdigest()[:12]}"
    return out, lambda: import_exorl(source, env, out, cache)


def import_hdf5(source: Path, env: EnvConfig, out: Path) -> Path:
    """Convert a D4RL file or a Minari dataset into a dataset folder.

    Args:
        source: The .hdf5 file, or the folder that holds Minari's `data`.
        env: The environment whose data it is; its time limit ends trajectories in a D4RL file without timeouts, the
            bounds of its actions scale those of data that brings none.
        out: The folder to make.

    Raises:
        DatasetError: The data is malformed, of another environment, or needs a choice that only the import offers.
    """
    dims, report = env_dims(env), ImportReport()
    kind = "minari" if is_minari(source) else "d4rl"
    schema, expected = (
        (minari_schema if kind == "minari" else d4rl_schema)(source),
        Schema(dims.observation_dim, dims.action_dim),
    )
    require_dimensions(source, schema, expected, env.id, "set env.id to the environment of this data")
    low, high = map(np.asarray, dims.action_bounds)
    if kind == "minari":
        rows = read_minari(source, action_bounds=(low, high), report=report)
    else:
        limit = dims.max_episode_steps
        rows = read_d4rl(source, max_episode_steps=limit, action_bounds=(low, high), report=report)
    write_dataset(out, rows, schema, {"format": kind, "file": str(source), "env": env.id})
    if report.unfollowed_transitions:
        report.notes.append(
            f"{report.unfollowed_transitions} transitions are left out because nothing says what they led to"
        )
    _tell(source, report)
    return out


def _tell(source: Path, report: ImportReport) -> None:
    for note in report.notes:
        _log.warning("%s: %s", source, note)


def _converted_hdf5(source: Path, env: EnvConfig, cache: Path) -> Conversion:
    """Return the cached dataset folder of D4RL's or Minari's data, and what converts it."""
    if not source.exists():
        raise DatasetError(f"{source}: no such file; give D4RL's .hdf5 or a dataset folder with data.path")
    bounds = env_dims(env).action_bounds
    digest = hashlib.sha256(f"{source.resolve()}:{env.id}:{env.max_episode_steps}:{bounds}".encode())
    for file in minari_files(source) if is_minari(source) else [source]:
        status = file.stat()
        digest.update(f"{file.name}:{status.st_size}:{status.st_mtime_ns}".encode())
    out = cache / "converted" / f"{source.stem}-{digest.hexdigest()[:12]}"
    return out, lambda: import_hdf5(source, env, out)
