"""From what the config names to a dataset: one imported, data to be converted first, or one made on the spot."""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from dipole_ray import columns, settings
from dipole_ray.collect import collect, files_of
from dipole_ray.collect.convert import converted
from dipole_ray.data.dataset import MANIFEST, losses_of, open_dataset, read_manifest
from dipole_ray.data.sources.actions import range_warnings, scale_of_dataset
from dipole_ray.data.sources.formats import FORMATS, dataset_kind
from dipole_ray.envs.make import EnvConfig, env_dims
from dipole_ray.envs.scenes import DRIVE
from dipole_ray.errors import ConfigError, DatasetError, warn_once
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
    if env.id == DRIVE:
        from dipole_ray.collect.scenes import scene_dataset  # needs the extra `driving`

        return scene_dataset(env.driving, cache, make=make)
    if data.path is not None:
        path = Path(data.path).expanduser()
    elif data.collect_transitions:
        name = _TASK.sub("", env.id)  # what the task is learned from, such as cube-single-play-v0
        own = f"-{digest(env.kwargs)}" if env.kwargs else ""
        folder = cache / "collected" / f"{name}-{data.collect_transitions}-seed{data.collect_seed}{own}"
        request = (name, data.collect_transitions, data.collect_seed, folder)
        path = (collect(*request, env_kwargs=env.kwargs) if make else files_of(name, folder))[0]
    else:
        return None
    return converted(path, env, cache, make=make)
