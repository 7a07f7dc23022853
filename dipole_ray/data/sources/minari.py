"""Read Minari's datasets: `NAME/data` with metadata.json and main_data.hdf5, or one Arrow or Parquet folder an episode.

An episode of T steps has T + 1 observations and T actions, rewards, terminations and truncations, so no transition is
without its next observation. `terminations` give mask 0; they, `truncations` and the episode's last step end a
trajectory. Actions are brought to [-1, 1], as the actions of environments are here, from the bounds of the action space
in metadata.json, or of the environment's where that has none. Dict observations need a choice of what to join. What is
not read (infos, entries that were not chosen) is listed.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dipole_ray.columns import Column, Schema
from dipole_ray.data.narrowing import to_float32
from dipole_ray.data.sources.guarantees import check_flags
from dipole_ray.data.sources.images import as_recorded, schema_of_parts
from dipole_ray.data.sources.minari_storage import (
    MAIN_FILE,
    STEPS,
    Shapes,
    arrow_contents_of_first,
    arrow_episodes,
    hdf5_contents_of_first,
    hdf5_episodes,
)
from dipole_ray.data.sources.reading import (
    ActionBounds,
    Arrays,
    Block,
    Contents,
    ImportReport,
    Reading,
    bad_array,
    parts_of,
    to_float,
)
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.durable import read_json

METADATA = "metadata.json"
_FORMATS = ("hdf5", "arrow", "parquet")


def is_minari(path: Path) -> bool:
    """Return whether `path` is a Minari dataset: the folder that holds `data`, `data` itself, or its main file."""
    return _find(path) is not None


def minari_files(path: Path) -> list[Path]:
    """Return the files that a Minari dataset's transitions come from, sorted by name."""
    folder = _folder(path)
    if (folder / MAIN_FILE).exists():
        return [file for file in (folder / MAIN_FILE, folder / METADATA) if file.exists()]
    return sorted(folder.rglob("*.*"))


def chosen_observations(pairs: Sequence[str]) -> tuple[str, ...]:
    """Return the entries that `observations=a,b` texts choose from dict observations."""
    chosen: list[str] = []
    for pair in pairs:
        name, _, entries = pair.partition("=")
        if name != "observations" or not all(entries.split(",")):
            raise ConfigError(
                f"--map {pair}: Minari's arrays have fixed names; only entries of dict observations can be chosen, as "
                "in --map observations=achieved_goal,desired_goal,observation"
            )
        chosen += entries.split(",")
    return tuple(chosen)


def contents(path: Path) -> Contents:
    """Return the arrays of the first episode."""
    folder = _folder(path)
    storage = _metadata(folder).storage
    return hdf5_contents_of_first(folder) if storage == "hdf5" else arrow_contents_of_first(folder, storage)


def uses(path: Path, reading: Reading) -> dict[str, tuple[str, ...]]:
    """Return the arrays that are read, by their meaning."""
    observed = tuple(f"observations/{name}" for name in reading.observations) or ("observations",)
    return {"observations": observed, "actions": ("actions",), **{name: (name,) for name in STEPS}}


def schema(path: Path, reading: Reading) -> Schema:
    """Return the dimensions of the first episode; there is one, or the dataset was refused."""
    _, _, arrays = next(_episodes(path, reading))
    return schema_of_parts(parts_of(arrays), arrays["actions"].shape[1])


def read(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    """Yield the episodes one by one."""
    dims: dict[str, tuple[int, ...]] = {}
    report.reads(uses(path, reading), contents(path))
    for where, name, arrays in _episodes(path, reading):
        dims = _checked_dims(where, arrays, dims)
        seen = {part: as_recorded(values) for part, values in parts_of(arrays).items()}
        terminations = arrays["terminations"].reshape(-1) != 0
        ends = terminations | (arrays["truncations"].reshape(-1) != 0)
        ends[-1] = True
        report.rows_read += 1  # the observation that the last step led to
        columns = {
            **{f"observations{part}": values[:-1] for part, values in seen.items()},
            "actions": arrays["actions"],
            "rewards": to_float(arrays["rewards"].reshape(-1)),
            "masks": 1 - to_float32(terminations),
            **{f"next_observations{part}": values[1:] for part, values in seen.items()},
            "ends": ends,
        }
        yield Block(path=where, columns=columns, place=name)


def _checked_dims(where: Path, arrays: Arrays, dims: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the dimensions of an episode, which must be those of the episodes before it."""
    steps = len(arrays["actions"])
    for name, values in arrays.items():
        needed = steps + name.startswith("observations")
        if len(values) != needed:
            what = f"has {len(values)} rows, {steps} actions need {needed}"
            raise bad_array(where, name, what, "get the dataset again, or a later version of it")
        if name in STEPS and values.size != steps:
            raise bad_array(where, name, f"has shape {values.shape}, expected ({steps},)", "flatten it")
        if name in ("terminations", "truncations"):
            check_flags(values.reshape(-1), f"'{name}'", where)
    if not steps:
        raise DatasetError(f"{where}: an episode without steps; delete it with Minari and get the rest again")
    found = {name: values.shape[1:] for name, values in arrays.items() if name not in STEPS}
    if dims and dims != found:
        now, before = (
            [str(Column(shape)) for shape in (each.pop("actions"), *each.values())] for each in (found, dims)
        )
        what = f"observations have {', '.join(now[1:])} and actions {now[0]} dimensions"
        what += f", earlier episodes {', '.join(before[1:])}, {before[0]}"
        raise DatasetError(f"{where}: {what}; the dataset is damaged, get it again")
    return found


def _find(path: Path) -> Path | None:
    """Return the folder of the data, or None if this is no Minari dataset."""
    if path.name == MAIN_FILE and path.is_file():
        return path.parent
    for folder in (path, path / "data"):
        if (folder / MAIN_FILE).is_file():
            return folder
        if (folder / METADATA).is_file() and any((folder / "0").glob("*.*")):
            return folder
    return None


def action_bounds(path: Path) -> ActionBounds | None:
    """Return the bounds of the dataset's action space, infinite where there are none; None if they are not known."""
    return _metadata(_folder(path)).bounds


def _folder(path: Path) -> Path:
    if (folder := _find(path)) is None:
        raise DatasetError(f"{path}: no Minari dataset; give the folder that holds data/{MAIN_FILE}")
    return folder


def _episodes(path: Path, reading: Reading) -> Iterator[tuple[Path, str, Arrays]]:
    folder = _folder(path)
    said, how = _metadata(folder), (reading.observations, reading.schema)
    if said.storage == "hdf5":
        return hdf5_episodes(folder, said.episodes, *how)
    return arrow_episodes(folder, said.storage, said.episodes, reading.observations, said.shapes, reading.schema)


class _Metadata(NamedTuple):
    """What metadata.json says, as far as it does."""

    storage: str
    episodes: int | None  # how many there are
    bounds: ActionBounds | None  # of the action space
    shapes: Shapes  # of the images in the observation space


def _metadata(folder: Path) -> _Metadata:
    path = folder / METADATA
    if not path.exists():  # old datasets have none
        return _Metadata("hdf5", None, None, {})
    try:
        found = read_json(path)
        storage, count, space = found.get("data_format", "hdf5"), found.get("total_episodes"), found.get("action_space")
        if count is not None and (type(count) is not int or count < 0):
            raise ValueError(f"total_episodes is {count!r:.80}")
        bounds = None if space is None else _bounds(json.loads(space))
        observed = found.get("observation_space")
        shapes = {} if observed is None else dict(_image_shapes(json.loads(observed), ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DatasetError(
            f"{path}: not the description of a dataset ({str(error)[:200] or type(error).__name__}); get it again"
        ) from error
    if storage not in _FORMATS:
        raise DatasetError(
            f"{path}: data_format is {storage!r:.80}; {', '.join(_FORMATS)} can be read: convert it with Minari"
        )
    return _Metadata(storage, count, bounds, shapes)


def _image_shapes(space: dict[str, Any], name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the shapes of the images in a space, by their entry of its dict."""
    if space["type"] == "Dict":
        for part, inner in space["subspaces"].items():
            yield from _image_shapes(inner, part)
    elif space["type"] == "Box" and space["dtype"] == "uint8" and len(space["shape"]) == 3:
        yield name, tuple(map(int, space["shape"]))


def _bounds(space: dict[str, Any]) -> ActionBounds | None:
    """Return the bounds of a Box."""
    if space["type"] != "Box":
        return None  # the reader of the actions says what they are
    low, high = (np.asarray(space[name], np.float64).reshape(-1) for name in ("low", "high"))
    if low.shape != high.shape or not (low <= high).all():
        raise ValueError("the bounds of the action space do not fit together")
    return low, high
