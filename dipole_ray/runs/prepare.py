"""From what the config names to a dataset: one imported, data to be converted first, or one made on the spot."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dipole_ray import columns, settings
from dipole_ray.collect import collect, files_of
from dipole_ray.data.dataset import MANIFEST, losses_of, open_dataset, read_manifest, write_dataset
from dipole_ray.data.sources.actions import range_warnings, scale_of_dataset
from dipole_ray.data.sources.formats import FORMATS, Format, dataset_kind
from dipole_ray.data.sources.reading import ImportReport, Reading
from dipole_ray.envs.exorl.rewards import label_episodes, rewards_of
from dipole_ray.envs.make import EnvConfig, EnvDims, env_dims
from dipole_ray.envs.registry import family
from dipole_ray.envs.relabel import ogbench_relabel
from dipole_ray.errors import ConfigError, DatasetError, warn_once
from dipole_ray.files.lock import LOCK, FolderLock
from dipole_ray.files.provenance import digest
from dipole_ray.runs.config import DataConfig, RunConfig

_log = logging.getLogger(__name__)
NUM_SAMPLES, SAMPLE_BYTES = 16, 1 << 16  # of a file, by which its content is told
_TASK = re.compile(r"-singletask(-task\d+)?(?=-v\d+$)")


def prepare_dataset(data: DataConfig, env: EnvConfig) -> Path | None:
    """Return the folder of the run's offline dataset, collecting or converting it first where needed.

    What was collected or converted once is found in `data.cache` the next time. The environment's task labels OGBench
    files with rewards.

    Raises:
        ConfigError: There is no collector for the environment.
        DatasetError: The data cannot be read, or a file of it is damaged and `data.strict` is true.
    """
    path = _place(data, env, make=True)
    if path is not None:
        dataset = open_dataset(path, strict=data.strict)  # verifies it, and says what is wrong in a sentence
        for text in losses_of(dataset):
            warn_once(f"{path}: {text}")
        source = dataset.source
        if "action_bounds" in source:
            for warning in range_warnings(scale_of_dataset(source), env_dims(env).action_bounds):
                _log.warning("%s: %s", path, warning)
    return path


def find_dataset(data: DataConfig, env: EnvConfig) -> Path | None:
    """Return the folder that `prepare_dataset` would, if it is there already; makes, converts and verifies nothing."""
    try:
        path = _place(data, env, make=False)
    except DatasetError:  # what would be converted is missing
        return None
    return path if path is not None and (path / MANIFEST).is_file() else None


def data_key(config: RunConfig) -> str:
    """Return what says where a run's data comes from, the same for runs that share it."""
    return json.dumps([settings.to_mapping(config.data), settings.to_mapping(config.env)])


def content_of(path: str) -> str:
    """Return a digest of the data at a path, the same wherever it lies; the path itself where nothing can be read.

    Of files that are not yet a dataset the names, the sizes and samples of the bytes count, for they may be large.
    """
    place = Path(path).expanduser()
    try:
        if (place / MANIFEST).is_file():
            return digest(read_manifest(place).content, digits=16)
        files = FORMATS[dataset_kind(place)].files(place)
        return digest([[file.name, file.stat().st_size, _samples_of(file)] for file in files], digits=16)
    except (OSError, KeyError, DatasetError):
        return path


def _samples_of(file: Path) -> str:
    """Return a digest of bytes from the whole length of a file."""
    size, found = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as stream:
        for part in range(NUM_SAMPLES):
            stream.seek(part * size // NUM_SAMPLES)
            found.update(stream.read(SAMPLE_BYTES))
    return found.hexdigest()


def prepare_datasets(configs: Iterable[RunConfig]) -> None:
    """Make the datasets of many runs, each once, before the runs ask for them; ConfigError where one does not fit."""
    for config in {data_key(config): config for config in configs}.values():
        require_fit(prepare_dataset(config.data, config.env), config.env)


def require_fit(dataset: Path | None, env: EnvConfig) -> None:
    """Raise ConfigError unless the dataset's numbers are as many as the environment's."""
    if dataset is not None:
        remedy, whom = "set env.id to the environment the data was collected in", f"'{env.id}'"
        found, expected = read_manifest(dataset).schema, env_dims(env).schema
        columns.require_fit(found, expected, what=dataset, whom=whom, remedy=remedy, error=ConfigError)


def _place(data: DataConfig, env: EnvConfig, *, make: bool) -> Path | None:
    """Return the folder of the dataset, not yet verified; where `make` is false, whether it is there or not."""
    cache = Path(data.cache).expanduser()
    if data.path is not None:
        path = Path(data.path).expanduser()
    elif data.collect_transitions:
        name = _TASK.sub("", env.id)  # what the task is learned from, such as cube-single-play-v0
        folder = cache / "collected" / f"{name}-{data.collect_transitions}-seed{data.collect_seed}"
        files = collect(name, data.collect_transitions, data.collect_seed, folder) if make else files_of(name, folder)
        path = files[0]
    else:
        return None
    row = _format_to_convert(path)
    if row is None:
        return path
    out = _converted(path, row, env, cache)
    return _made_once(out, lambda: _convert(path, row, env, out, cache)) if make else out


def _format_to_convert(path: Path) -> Format | None:
    """Return the format of what a run must convert first; None for a dataset, and for what cannot become one here."""
    if path.exists():
        row = FORMATS.get(dataset_kind(path))
        return row if row is not None and row.is_converted else None
    for row in FORMATS.values():
        if row.is_converted and path.suffix in row.suffixes:
            raise DatasetError(f"{path}: no such file; give {row.what} or a dataset folder with data.path")
    return None


def _made_once(out: Path, make: Callable[[], object]) -> Path:
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
    )


def _convert(source: Path, row: Format, env: EnvConfig, out: Path, cache: Path) -> None:
    """Make the dataset folder `out` of data in the format `row`, for one task; ExORL's rewards are kept in `cache`."""
    if "labels" in row.takes and family(env.id) != "exorl":
        raise ConfigError(
            f"{source} holds ExORL's episodes, which are rewarded for a task of theirs, and env.id is '{env.id}'; set "
            "env.id=exorl/walker-walk or its like"
        )
    dims, report = env_dims(env), ImportReport()
    reading = reading_for(env.id, dims, cache)
    if not row.is_rewarded(source, reading):  # by a task, whatever the name of the environment
        reading = replace(reading, relabel=partial(ogbench_relabel, env.id))
    if row.environment is not None or reading.relabel is None:
        where = row.files(source)[0] if "labels" in row.takes else source  # the one episode that gives the dimensions
        remedy, whom = f"set env.id to {row.environment or 'the environment of this data'}", f"'{env.id}'"
        columns.require_fit(row.schema(source, reading), dims.schema, what=where, whom=whom, remedy=remedy)
    rows = row.rows(source, reading, report)
    said = {"format": row.name, "file": row.remembered(source), "env": env.id, **row.choices(source, reading, report)}
    write_dataset(out, rows, dims.schema, said)
    if report.unfollowed_transitions:
        lost = report.share(report.unfollowed_transitions)
        report.notes.append(f"{lost} are left out because nothing says what they led to")
    for note in report.warnings + report.notes:
        _log.warning("%s: %s", source, note)


def _converted(source: Path, row: Format, env: EnvConfig, cache: Path) -> Path:
    """Return the folder of the converted data, which is another one when anything that it depends on is another.

    The names are those of all versions before, so that what was converted once is found.
    """
    stamps = [(file.name, file.stat()) for file in row.files(source)]
    depends = f"{source.resolve()}:{env.id}"
    bounds = env_dims(env).action_bounds
    if row.name in ("d4rl", "minari"):
        depends += f":{env.max_episode_steps}:{bounds}"
    depends += "".join(f"{name}:{status.st_size}:{status.st_mtime_ns}" for name, status in stamps)
    if row.name == "ogbench":
        depends = f"{source.resolve()}:{stamps[0][1].st_size}:{stamps[0][1].st_mtime_ns}:{env.id}"
        depends += "" if set(bounds[0]) == {-1.0} and set(bounds[1]) == {1.0} else f":{bounds}"
    depends += json.dumps(env.kwargs, sort_keys=True) if env.kwargs else ""
    name = env.id.replace("/", "-") if "labels" in row.takes else source.stem
    return cache / "converted" / f"{name}-{hashlib.sha256(depends.encode()).hexdigest()[:12]}"
