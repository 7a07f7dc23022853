"""Data that people bring, made into a dataset once and kept: what runs and RLlib's `offline_data` do with it.

The table of formats says what it is; an environment gives its time limit, bounds of actions and rewards.
"""

import hashlib
import json
import logging
import math
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray import columns
from dipole_ray.data.dataset import MANIFEST, write_dataset
from dipole_ray.data.inspection.summary import Summary
from dipole_ray.data.inspection.verdict import judge, verdict_of
from dipole_ray.data.schema import Rows
from dipole_ray.data.sources.formats import FORMATS, Format, dataset_kind
from dipole_ray.data.sources.reading import ImportReport, Reading
from dipole_ray.data.sources.table_files import SUFFIXES as TABLES
from dipole_ray.envs.exorl.rewards import label_episodes, rewards_of
from dipole_ray.envs.make import EnvConfig, EnvDims, env_dims
from dipole_ray.envs.registry import family
from dipole_ray.envs.relabel import ogbench_relabel
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.lock import LOCK, FolderLock

_log = logging.getLogger(__name__)
CACHE = Path("~/.cache/dipole_ray")
"""Where converted data is kept unless somebody says another place."""


def converted(path: Path, env: EnvConfig, cache: Path = CACHE, *, make: bool = True) -> Path:
    """Return the dataset folder of what lies at `path`: itself, or what it was or, with `make`, is converted to.

    Raises:
        DatasetError: The data cannot be read, or needs choices that only an import offers; names its command.
    """
    row, cache = _format_of(path), cache.expanduser()
    if row is None:
        return path
    out = _folder_of(path, row, env, cache)
    return made_once(out, lambda: _convert(path, row, env, out, cache)) if make else out


def _format_of(path: Path) -> Format | None:
    """Return the format of what must be converted first; None for a dataset, and where nothing is known to lie."""
    if path.exists():
        kind = dataset_kind(path)
        is_guessed = kind == "table" and path.is_dir() and not any(file.suffix in TABLES for file in path.iterdir())
        return None if is_guessed else FORMATS.get(kind)
    for row in FORMATS.values():
        if path.suffix in row.suffixes:
            raise DatasetError(f"{path}: no such file; give {row.what} or a dataset folder with data.path")
    return None


def made_once(out: Path, make: Callable[[], object]) -> Path:
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


def reading_for(
    env_id: str,
    dims: EnvDims,
    cache: Path,
    num_workers: int | None = None,
    on_labelled: Callable[[], object] = lambda: None,
) -> Reading:
    """Return what a task adds to data that does not say it: its rewards, time limit and bounds of actions.

    The rewards of ExORL's episodes are computed by `num_workers` Ray tasks at a time (None: all cores) and kept in
    `cache`, where another import of them for this task finds them; `on_labelled` is called once they are there.
    """

    def labels(files: list[Path]) -> Iterator[np.ndarray]:
        blocks = label_episodes(env_id, files, cache, num_workers=num_workers)
        on_labelled()
        return rewards_of(blocks)

    low, high = map(np.asarray, dims.action_bounds)
    return Reading(
        # Other environments' files bring their own rewards.
        relabel=partial(ogbench_relabel, env_id) if "singletask" in env_id else None,
        labels=labels,
        max_episode_steps=dims.max_episode_steps,
        action_bounds=(low, high),
        schema=dims.schema,
    )


def _convert(source: Path, row: Format, env: EnvConfig, out: Path, cache: Path) -> None:
    """Make the dataset folder `out` of data in the format `row`, for one task, and say what is to be known of it."""
    if "labels" in row.takes and family(env.id) != "exorl":
        raise ConfigError(
            f"{source} holds ExORL's episodes, which are rewarded for a task of theirs, and env.id is '{env.id}'; set "
            "env.id=exorl/walker-walk or its like"
        )
    dims, report, summary = env_dims(env), ImportReport(), Summary()
    reading = replace(reading_for(env.id, dims, cache), offset=offset_of(env))
    if row.environment is None and not row.is_rewarded(source, reading):  # by a task, whatever the environment's name
        reading = replace(reading, relabel=partial(ogbench_relabel, env.id))
    with _naming_an_import(source, row, env):
        schema = row.schema(source, reading)
    if row.environment is not None or reading.relabel is None:
        where = row.files(source)[0] if "labels" in row.takes else source  # the one episode that gives the dimensions
        remedy, whom = f"set env.id to {row.environment or 'the environment of this data'}", f"'{env.id}'"
        columns.require_fit(schema, dims.schema, what=where, whom=whom, remedy=remedy)
    with _naming_an_import(source, row, env):
        rows = _summed(row.rows(source, reading, report), summary)
        said: dict[str, Any] = {"format": row.name, "file": row.remembered(source), "env": env.id}
        said |= {"env_settings": settings} if (settings := env.overrides()) else {}
        write_dataset(out, rows, dims.schema, said | row.choices(source, reading, report))
    findings = judge(summary, report, has_rewards=True)
    for finding in findings:
        _log.warning("%s: %s: %s [%s]; %s", source, finding.level, finding.what, finding.where, finding.remedy)
    read = f"read: {report.columns_text}; " if report.columns else ""
    _log.warning("%s is now the dataset %s (%sverdict: %s)", source, out, read, verdict_of(findings))


@contextmanager
def _naming_an_import(source: Path, row: Format, env: EnvConfig) -> Iterator[None]:
    """Name, in the error of data that needs choices, the command that takes them."""
    try:
        yield
    except (ConfigError, DatasetError) as error:
        if not row.takes & {"mapping", "observations"}:
            raise
        words = ["dipole", "data", "import", str(source), "--env", env.id, *env.overrides(), "--out", "DIR"]
        remedy = f"its options are those of '{shlex.join(words)}', which makes a dataset for data.path=DIR"
        raise type(error)(f"{error}; {remedy}") from error


def offset_of(env: EnvConfig) -> tuple[tuple[int, float], ...]:
    """Return what is subtracted from an environment's observations as readers take it."""
    return tuple((int(dimension), number) for dimension, number in (env.observation_offset or {}).items())


def _summed(pieces: Iterable[Rows], summary: Summary) -> Iterator[Rows]:
    for rows in pieces:
        summary.add(rows)
        yield rows


def _folder_of(source: Path, row: Format, env: EnvConfig, cache: Path) -> Path:
    """Return the folder of the converted data, which is another one when anything that it depends on is another.

    The names are those of all versions before, so that what was converted once is found.
    """
    stamps = [(file.name, file.stat()) for file in row.files(source)]
    depends = f"{source.resolve()}:{env.id}"
    bounds = env_dims(env).action_bounds
    if row.name not in ("ogbench", "exorl"):
        depends += f":{env.max_episode_steps}:{bounds}"
    depends += "".join(f"{name}:{status.st_size}:{status.st_mtime_ns}" for name, status in stamps)
    if row.name == "ogbench":
        depends = f"{source.resolve()}:{stamps[0][1].st_size}:{stamps[0][1].st_mtime_ns}:{env.id}"
        depends += "" if set(bounds[0]) == {-1.0} and set(bounds[1]) == {1.0} else f":{bounds}"
    for setting in (env.kwargs, env.observation_offset):
        depends += json.dumps(setting, sort_keys=True) if setting else ""
    name = env.id.replace("/", "-") if "labels" in row.takes else source.stem
    return cache / "converted" / f"{name}-{hashlib.sha256(depends.encode()).hexdigest()[:12]}"
