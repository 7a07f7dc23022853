"""Read D4RL's .hdf5 files, transition for transition as `d4rl.qlearning_dataset` does.

One row is one transition. `terminals` is 1 where the task ended (mask 0, also for the terminal clusters of antmaze),
`timeouts` where a time limit cut the trajectory; either ends it. The next observation is the next row's inside a
trajectory. Where a time limit or the end of the file cuts it, only `next_observations` knows what the last action led
to: where there are none that transition is left out, as in D4RL. Unlike there, a row with both flags is kept (its next
observation is never used), and so is the file's last row if it is terminal. The bounds of actions are the
environment's: the file has none. Arrays of masks and episodes are used where there are some; what else the file holds,
infos/ and metadata/ too, is listed as not read.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dipole_ray.columns import Column, Schema
from dipole_ray.data.sources.continuity import followed
from dipole_ray.data.sources.guarantees import check_counts, check_masks, is_followed, mark_unfollowed
from dipole_ray.data.sources.hdf5 import (
    Array,
    Group,
    child,
    child_names,
    is_group,
    open_hdf5,
    read_flags,
    shape_of_numbers,
    slice_rows,
    width_of,
)  # fmt: skip
from dipole_ray.data.sources.images import as_recorded, column_of
from dipole_ray.data.sources.mapping import USUAL
from dipole_ray.data.sources.npz import check_expansion
from dipole_ray.data.sources.reading import Arrays, Block, ImportReport, Reading, bad_array, to_times
from dipole_ray.errors import DatasetError

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations", "masks", "episode")  # by any of their usual names
_FLAGS = ("terminals", "timeouts")
_OBSERVED = ("observations", "next_observations")
_VECTORS = (*_OBSERVED, "actions")
_AS_RECORDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {"episode": np.asarray, "time": to_times}


def schema(path: Path, reading: Reading) -> Schema:
    """Return the dimensions of a file from its headers alone."""
    with open_hdf5(path) as file:
        arrays = _checked_arrays(file, path, reading.schema)
        return Schema(_observed(path, arrays, reading.schema), width_of(arrays["actions"]))


def uses(path: Path, reading: Reading) -> dict[str, tuple[str, ...]]:
    """Return the arrays that would be read, by their meaning."""
    with open_hdf5(path) as file:
        return {meaning: (name,) for meaning, name in _found(file, path).items()}


def read(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    """Yield the rows in blocks of some four megabytes."""
    return followed(_blocks(path, reading, report), path, report)


def _blocks(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    with open_hdf5(path) as file:
        arrays = _checked_arrays(file, path, reading.schema)
        ends, marks_limits = _trajectory_ends(arrays, reading.max_episode_steps, path, report)
        report.reads({name: [array.name] for name, array in arrays.items()}, child_names(file))
        step = slice_rows(arrays.values())
        for start in range(0, len(ends), step):
            stop = min(start + step, len(ends))
            columns: Arrays = {}
            for name, array in arrays.items():
                values = _AS_RECORDED.get(name, as_recorded)(array.read(start, stop))
                columns[name] = values if name in _VECTORS else values.reshape(-1)
            terminals, timeouts = (columns.get(name, np.zeros(stop - start, np.float32)) for name in _FLAGS)
            if "masks" in columns:
                check_masks(columns["masks"], terminals, arrays["masks"].name, "terminals", path)
            columns = {"masks": 1 - terminals, **columns, "ends": ends[start:stop]}
            columns["flagged"] = (terminals != 0) | (timeouts != 0)
            if "time" in columns:
                columns["times"] = columns.pop("time")
            time = arrays["time"].name if "time" in arrays else ""
            block = Block(path=path, columns=columns, first_row=start, marks_limits=marks_limits, is_mapped=False)
            yield replace(block, time_name=time)


def _found(file: Group, path: Path) -> dict[str, str]:
    """Return the names of the arrays that are read, or are missing, by their meaning."""
    if "episode_0" in child_names(file):
        remedy = "give the folder that holds data/main_data.hdf5 instead of a file"
        raise DatasetError(f"{path}: holds groups 'episode_0', ..., the layout of Minari; {remedy}")
    there = child_names(file)
    if there and all(is_group(child(path, file, name)) for name in there):
        found = f"holds groups ({', '.join(there[:5])}), and no array beside them"
        remedy = "save arrays with one row a transition at the top of a file, all trajectories one after another"
        raise DatasetError(f"{path}: {found}; {remedy}, with 'terminals' and 'timeouts' or 'next_observations'")
    optional = {
        meaning: [name for name in USUAL[meaning] if name in there and not is_group(child(path, file, name))]
        for meaning in _OPTIONAL
    }
    rows = shape_of_numbers(child(path, file, "observations"))[:1] if "observations" in there else ()
    # What has a time's name and is one number, or a text, says when something was saved.
    shapes = {name: shape_of_numbers(child(path, file, name)) for name in USUAL["time"] if name in there}
    optional["time"] = [name for name, shape in shapes.items() if rows and shape in (rows, (*rows, 1))]
    names = {name: name for name in _REQUIRED} | {meaning: names[0] for meaning, names in optional.items() if names}
    if "terminals" not in there and ("masks" in names or "episode" in names):  # they say where the task ends
        del names["terminals"]
    return names


def _observed(path: Path, arrays: dict[str, Array], like: Schema | None) -> Column:
    array = arrays["observations"]
    return column_of(array.dtype, array.shape, like, partial(bad_array, path, array.name))


def _checked_arrays(file: Group, path: Path, like: Schema | None = None) -> dict[str, Array]:
    """Return the arrays by their meaning; `like` is what the environment observes."""
    found = _found(file, path)
    # Older files store rewards and flags as (N, 1); a vector of one number may be (N,).
    kinds = {meaning: "fiu" if meaning in _VECTORS else "fiub" for meaning in found}
    dims = {meaning: range(1, 6) if meaning in _OBSERVED else (1, 2) for meaning in found}
    arrays = {meaning: Array(path, file, name, dims[meaning], kinds[meaning]) for meaning, name in found.items()}
    column = _observed(path, arrays, like)
    check_counts({name: array.shape[0] for name, array in arrays.items()}, path)
    for name, array in arrays.items():
        wanted = column.shape if name == "next_observations" else (1,)
        is_other = name == "next_observations" and column.is_image and array.dtype != np.uint8
        if name not in ("observations", "actions") and (is_other or array.shape[1:] not in ((), wanted)):
            shown = f"has shape {array.shape}, expected (rows, {', '.join(map(str, wanted))})"
            shown = f"is of type {array.dtype}, and observations are images" if is_other else shown
            raise bad_array(path, array.name, shown, "save it as it was recorded")
    check_expansion(path, sum(array.declared_bytes for array in arrays.values()), f"arrays {', '.join(found.values())}")
    return arrays


def _trajectory_ends(
    arrays: dict[str, Array], limit: int | None, path: Path, report: ImportReport
) -> tuple[np.ndarray, bool]:
    """Return (N,) bool, the last row of each trajectory, and whether time limits are among them."""
    nothing = np.zeros(arrays["observations"].shape[0], bool)
    flags = {name: read_flags(arrays[name], arrays[name].name, path) for name in _FLAGS if name in arrays}
    terminals, timeouts = (flags.get(name, nothing) for name in ("terminals", "timeouts"))
    ends: np.ndarray = terminals | timeouts
    if "episode" in arrays:
        episode = arrays["episode"].read(0, len(ends)).reshape(-1)
        ends[:-1] |= episode[1:] != episode[:-1]
    elif "next_observations" in arrays:
        _mark_unfollowed(arrays, ends, path, report)
    elif not timeouts.any():
        if limit is None and ("timeouts" not in arrays or not terminals.any()):
            found = "holds no 1" if "timeouts" in arrays else "is missing"
            remedy = "name the environment with --env, or its time limit with --max-episode-steps"
            why = "so it is not known where time limits cut trajectories"
            raise bad_array(path, "timeouts", f"{found}, {why}", remedy)
        if limit is None:
            report.notes.append("timeouts are all 0: trajectories end only where the task does")
        return ends, False
    return ends, True


def _mark_unfollowed(arrays: dict[str, Array], ends: np.ndarray, path: Path, report: ImportReport) -> None:
    mark = partial(mark_unfollowed, report=report, has_timeouts="timeouts" in arrays, path=path)  # ends, same
    observations, following = arrays["observations"], arrays["next_observations"]
    step = slice_rows(arrays.values())
    for start in range(0, len(ends) - 1, step):
        stop = min(start + step, len(ends) - 1)
        after, states = map(as_recorded, (following.read(start, stop), observations.read(start + 1, stop + 1)))
        mark(ends[start:stop], is_followed(after, states), first_row=start)
