"""Read D4RL's .hdf5 files, transition for transition as `d4rl.qlearning_dataset` does.

One row is one transition. `terminals` is 1 where the task ended (mask 0, also for the terminal clusters of antmaze),
`timeouts` where a time limit cut the trajectory; either ends it. The next observation is the next row's inside a
trajectory. Where a time limit or the end of the file cuts it, only `next_observations` knows what the last action led
to: where there are none that transition is left out, as in D4RL. Unlike there, a row with both flags is kept (its next
observation is never used), and so is the file's last row if it is terminal. The bounds of actions are the
environment's: the file has none. Everything under infos/ and metadata/ is ignored.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.data.narrowing import to_float32
from dipole_ray.data.sources.guarantees import check_counts, mark_unfollowed
from dipole_ray.data.sources.hdf5 import Array, Group, child, child_names, open_hdf5, read_flags, slice_rows
from dipole_ray.data.sources.npz import check_expansion
from dipole_ray.data.sources.reading import Block, ImportReport, Reading, bad_array, to_float
from dipole_ray.errors import DatasetError

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_VECTORS = ("observations", "actions", "next_observations")


def schema(path: Path, reading: Reading) -> Schema:
    """Return the dimensions of a file from its headers alone."""
    with open_hdf5(path) as file:
        arrays = _checked_arrays(file, path)
        return Schema(arrays["observations"].shape[1], arrays["actions"].shape[1])


def read(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    """Yield whole trajectories, in blocks of some four megabytes (or one trajectory)."""
    with open_hdf5(path) as file:
        arrays = _checked_arrays(file, path)
        ends = _trajectory_ends(arrays, reading.max_episode_steps, path, report)
        others = [name for name in child_names(file) if name not in ("infos", "metadata")]
        report.reads({name: [name] for name in arrays}, others)
        step, last_rows = slice_rows(arrays.values()), np.flatnonzero(ends)
        start = 0
        while start < len(ends):
            stop = int(last_rows[np.searchsorted(last_rows, min(start + step, len(ends)) - 1)]) + 1
            columns = {name: to_float(array.read(start, stop)) for name, array in arrays.items()}
            columns["rewards"] = columns["rewards"].reshape(-1)
            columns |= {"masks": 1 - to_float32(columns["terminals"].reshape(-1)), "ends": ends[start:stop]}
            yield Block(path=path, columns=columns, first_row=start)
            start = stop


def _checked_arrays(file: Group, path: Path) -> dict[str, Array]:
    if "episode_0" in child_names(file):
        remedy = "give the folder that holds data/main_data.hdf5 instead of a file"
        raise DatasetError(f"{path}: holds groups 'episode_0', ..., the layout of Minari; {remedy}")
    names = [*_REQUIRED, *(name for name in ("timeouts", "next_observations") if child(path, file, name) is not None)]
    vector, number = ((2,), "f"), ((1, 2), "fiub")  # older files store rewards and flags as (N, 1)
    arrays = {name: Array(path, file, name, *(vector if name in _VECTORS else number)) for name in names}
    check_counts({name: array.shape[0] for name, array in arrays.items()}, path)
    for name, array in arrays.items():
        wanted = arrays["observations"].shape[1] if name == "next_observations" else 1
        if name not in ("observations", "actions") and array.shape[1:] not in ((), (wanted,)):
            found = f"has shape {array.shape}, expected (rows, {wanted})"
            raise bad_array(path, name, found, "save it as it was recorded")
    check_expansion(path, sum(array.num_bytes for array in arrays.values()), f"arrays {', '.join(names)}")
    return arrays


def _trajectory_ends(arrays: dict[str, Array], limit: int | None, path: Path, report: ImportReport) -> np.ndarray:
    """Return (N,) bool, the last row of each trajectory; what could not be taken from the flags is noted."""
    terminals = read_flags(arrays["terminals"], "terminals", path)
    timeouts = read_flags(arrays["timeouts"], "timeouts", path) if "timeouts" in arrays else np.zeros_like(terminals)
    ends: np.ndarray = terminals | timeouts
    if "next_observations" in arrays:
        _mark_unfollowed(arrays, ends, path, report)
    elif not timeouts.any():
        if limit is not None:
            start = 0
            for last in [*np.flatnonzero(ends).tolist(), len(ends) - 1]:
                ends[start + limit - 1 : last : limit] = True
                start = last + 1
            report.notes.append(f"no timeouts in the file: trajectories are cut after {limit} steps")
        elif "timeouts" not in arrays or not terminals.any():
            found = "holds no 1" if "timeouts" in arrays else "is missing"
            remedy = "name the environment with --env, or its time limit with --max-episode-steps"
            why = "so it is not known where time limits cut trajectories"
            raise bad_array(path, "timeouts", f"{found}, {why}", remedy)
        else:
            report.notes.append("timeouts are all 0: trajectories end only where the task does")
    ends[-1] = True
    return ends


def _mark_unfollowed(arrays: dict[str, Array], ends: np.ndarray, path: Path, report: ImportReport) -> None:
    mark = partial(mark_unfollowed, report=report, has_timeouts="timeouts" in arrays, path=path)
    observations, following = arrays["observations"], arrays["next_observations"]
    step = slice_rows(arrays.values())
    for start in range(0, len(ends) - 1, step):
        stop = min(start + step, len(ends) - 1)
        after, states = following.read(start, stop), observations.read(start + 1, stop + 1)
        mark(ends[start:stop], to_float(after), to_float(states), first_row=start)
