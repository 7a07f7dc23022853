"""Read Minari's datasets: `NAME/data` with metadata.json and main_data.hdf5, or one Arrow or Parquet folder an episode.

An episode of T steps has T + 1 observations and T actions, rewards, terminations and truncations, so no transition is
without its next observation. `terminations` give mask 0; they, `truncations` and the episode's last step end a
trajectory. Actions are brought to [-1, 1], as the actions of environments are here, from the bounds of the action space
in metadata.json, or of the environment's where that has none. Dict observations need a choice of what to join. Infos,
seeds and scores are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.data.schema import Rows, Schema, concatenate
from dipole_ray.data.sources.actions import ActionBounds, note_scale, scale_actions
from dipole_ray.data.sources.minari_storage import MAIN_FILE, STEPS, arrow_episodes, hdf5_episodes
from dipole_ray.data.sources.pieces import Block, ImportReport, NonFinitePolicy, finish_block, to_float32
from dipole_ray.data.sources.transitions import Arrays, close_trajectories
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.durable import read_json

METADATA = "metadata.json"
CHUNK_ROWS = 10_000
"""Rows of episodes that are handed on together."""

_FORMATS = ("hdf5", "arrow", "parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    """What metadata.json says that matters here."""

    storage: str
    """One of `_FORMATS`."""
    num_episodes: int | None
    """None in old datasets, which have no such file."""
    bounds: ActionBounds | None
    """Those of the action space; None if they are not known or not finite."""


def is_minari(path: Path) -> bool:
    """Return whether `path` is a Minari dataset: the folder that holds `data`, `data` itself, or its main file."""
    return _find(path) is not None


def minari_files(path: Path) -> list[Path]:
    """Return the files that a Minari dataset's transitions come from, sorted by name."""
    folder = _find(path)
    assert folder is not None
    if (folder / MAIN_FILE).exists():
        return [file for file in (folder / MAIN_FILE, folder / METADATA) if file.exists()]
    return sorted(folder.rglob("*.*"))


def chosen_observations(pairs: Sequence[str]) -> tuple[str, ...]:
    """Return the entries that `observations=a,b` texts choose from dict observations.

    Raises:
        ConfigError: If a text says something else: the other arrays have fixed names.
    """
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


def minari_schema(path: Path | str, observations: Sequence[str] = ()) -> Schema:
    """Return the dimensions of the first episode.

    Raises:
        DatasetError: If it cannot be read.
    """
    for _, _, arrays in _episodes(Path(path), observations)[1]:
        return Schema(arrays["observations"].shape[1], arrays["actions"].shape[1])
    raise DatasetError(f"{path}: holds no episodes; nothing to import")


def read_minari(
    path: Path | str,
    observations: Sequence[str] = (),
    *,
    action_bounds: ActionBounds | None = None,
    non_finite: NonFinitePolicy = "refuse",
    report: ImportReport | None = None,
) -> Iterator[Rows]:
    """Yield rows of whole episodes, about ten thousand at a time.

    Args:
        path: The dataset's folder, the folder `data` in it, or main_data.hdf5.
        observations: Entries of dict observations, to be joined in this order; `a/b` names one inside another.
        action_bounds: Of the environment's actions, for a dataset that does not bring its own.
        non_finite: `refuse` raises at a NaN or infinity; `drop` leaves those transitions out, splitting the episode.
        report: Counts what was read and dropped.

    Raises:
        DatasetError: If the dataset is malformed; says which file, episode, array and row, and what to do.
    """
    report = ImportReport() if report is None else report
    metadata, episodes = _episodes(Path(path), observations)
    bounds = action_bounds if metadata.bounds is None else metadata.bounds
    note_scale(report, bounds, "the environment's actions" if metadata.bounds is None else "the action space")
    held: list[Rows] = []
    dims: tuple[int, int] | None = None
    for where, name, arrays in episodes:
        _check_episode(where, arrays, dims)
        dims = arrays["observations"].shape[1], arrays["actions"].shape[1]
        rows = finish_block(_block(arrays, bounds, where, name, report), where, non_finite, report)
        if rows is not None:
            held.append(rows)
        if sum(len(piece["remaining"]) for piece in held) >= CHUNK_ROWS:
            yield concatenate(held)
            held = []
    if held:
        yield concatenate(held)


def _block(arrays: Arrays, bounds: ActionBounds | None, where: Path, name: str, report: ImportReport) -> Block:
    observations = to_float32(arrays["observations"])
    flags = {name: arrays[name].reshape(-1) != 0 for name in ("terminations", "truncations")}
    ends = flags["terminations"] | flags["truncations"]
    ends[-1] = True
    transitions = {
        "observations": observations[:-1],
        "next_observations": observations[1:],
        "actions": scale_actions(arrays["actions"], bounds, where),
        "rewards": to_float32(arrays["rewards"].reshape(-1)),
        "masks": 1 - to_float32(flags["terminations"]),
    }
    block = close_trajectories(transitions, ends, 0, report)
    block.place = name
    report.rows_read += len(observations)
    return block


def _check_episode(where: Path, arrays: Arrays, dims: tuple[int, int] | None) -> None:
    steps = len(arrays["actions"])
    for name, values in arrays.items():
        if len(values) != steps + (name == "observations"):
            raise DatasetError(
                f"{where}: array '{name}' has {len(values)} rows, {steps} actions need "
                f"{steps + (name == 'observations')}; get the dataset again, or a later version of it"
            )
        if name in STEPS and values.size != steps:
            raise DatasetError(f"{where}: array '{name}' has shape {values.shape}, expected ({steps},); flatten it")
        if name in ("terminations", "truncations") and not np.isin(values, (0, 1)).all():
            row = int(np.flatnonzero(~np.isin(values.reshape(-1), (0, 1)))[0])
            raise DatasetError(
                f"{where}: '{name}' must be 0 or 1, row {row} holds {values.reshape(-1)[row]}; store 1 where the task "
                "or the trajectory ends"
            )
    if not steps:
        raise DatasetError(f"{where}: an episode without steps; delete it with Minari and get the rest again")
    found = arrays["observations"].shape[1], arrays["actions"].shape[1]
    if dims not in (None, found):
        raise DatasetError(
            f"{where}: observations have {found[0]} and actions {found[1]} dimensions, earlier episodes {dims}; the "
            "dataset is damaged, get it again"
        )


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


def _episodes(path: Path, components: Sequence[str]) -> tuple[_Metadata, Iterator[tuple[Path, str, Arrays]]]:
    folder = _find(path)
    if folder is None:
        raise DatasetError(f"{path}: no Minari dataset; give the folder that holds data/{MAIN_FILE}")
    metadata = _read_metadata(folder)
    if metadata.storage == "hdf5":
        return metadata, hdf5_episodes(folder, metadata.num_episodes, components)
    return metadata, arrow_episodes(folder, metadata.storage, metadata.num_episodes, components)


def _read_metadata(folder: Path) -> _Metadata:
    path = folder / METADATA
    if not path.exists():
        return _Metadata(storage="hdf5", num_episodes=None, bounds=None)
    try:
        found = read_json(path)
        storage, count, space = found.get("data_format", "hdf5"), found.get("total_episodes"), found.get("action_space")
        if count is not None and (type(count) is not int or count < 0):
            raise ValueError(f"total_episodes is {count!r:.80}")
        bounds = None if space is None else _bounds(json.loads(space))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DatasetError(
            f"{path}: not the description of a dataset ({str(error)[:200] or type(error).__name__}); get it again"
        ) from error
    if storage not in _FORMATS:
        raise DatasetError(
            f"{path}: data_format is {storage!r:.80}; {', '.join(_FORMATS)} can be read: convert it with Minari"
        )
    return _Metadata(storage=storage, num_episodes=count, bounds=bounds)


def _bounds(space: dict[str, Any]) -> ActionBounds | None:
    """Return the bounds of a Box if they are finite."""
    if space["type"] != "Box":
        return None  # the reader of the actions says what they are
    low, high = (np.asarray(space[name], np.float64).reshape(-1) for name in ("low", "high"))
    if low.shape != high.shape or not (low < high).all():
        raise ValueError("the bounds of the action space do not fit together")
    return (low, high) if np.isfinite([low, high]).all() else None
