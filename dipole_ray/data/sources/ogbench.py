"""Read OGBench's .npz files, row for row as `ogbench.load_dataset` and its single-task relabelling do.

Trajectories are concatenated with T + 1 rows each; `terminals` is 1 on the last of them, which yields no transition and
becomes the closing row. Row t's reward belongs to transition t and is computed from s_t; a mask of 0 stands where s_t
solves the task, and the trajectory goes on after it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.data.narrowing import to_float32
from dipole_ray.data.sources.guarantees import check_counts, check_flags
from dipole_ray.data.sources.mapping import USUAL
from dipole_ray.data.sources.npz import ArrayHeader, read_headers, stream_arrays
from dipole_ray.data.sources.reading import (
    Arrays,
    Block,
    ImportReport,
    Reading,
    Relabel,
    bad_array,
    to_float,
)
from dipole_ray.errors import DatasetError, counted

_REQUIRED = ("observations", "actions", "terminals")
_STATE = ("qpos", "button_states")
_OF_TRANSITIONS = {*USUAL["next_observations"], *USUAL["timeouts"]}
_NOT_NEEDED = {*_STATE, "qvel", "valids"}


def schema(path: Path, reading: Reading) -> Schema:
    """Return the dimensions of a file from its headers alone."""
    headers = _checked_headers(path)
    return Schema(headers["observations"].shape[1], headers["actions"].shape[1])


def count_rows(path: Path) -> int:
    """Return the number of rows of a file from its headers alone."""
    return _checked_headers(path)["observations"].shape[0]


def read(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    """Yield the rows in blocks of some four megabytes."""
    headers = _checked_headers(path)
    relabel = reading.relabel
    if relabel is None and "rewards" not in headers:
        if reading.needs_rewards:
            domain, _, kind = path.stem.removesuffix("-val").rpartition("-")
            task = f"{domain}-singletask-{kind}" if domain else "pointmaze-medium-navigate-singletask-v0"
            raise DatasetError(f"{path}: holds no rewards; name the task to label it for, such as --env {task}")
        relabel = _no_rewards
    labels = _STATE if relabel is not None else ("rewards", "masks")
    names = [*_REQUIRED, *(name for name in labels if name in headers)]
    counts = {name: headers[name].shape[0] if headers[name].shape else 0 for name in names}
    check_counts(counts, path, "get the file again or collect data with 'dipole data collect'")
    for name in names:
        if headers[name].dtype.kind not in "fiub":
            raise bad_array(path, name, f"is of type {headers[name].dtype}", "save it as numbers")
    _check_boundaries(path, headers)
    report.reads({name: [name] for name in names}, headers.keys() - _NOT_NEEDED)
    unused = 0
    for arrays in stream_arrays(path, headers, names):
        unused += int((arrays["rewards"][arrays["terminals"] != 0] != 0).sum()) if "rewards" in arrays else 0
        yield _block(arrays, relabel, path, report.rows_read)
    if unused:
        skipped = counted(unused, "reward", verb="are")
        report.warnings.append(
            f"{skipped} not used, because terminals mark rows that hold only a last observation, as in OGBench's "
            "files; if every row is a transition, read it with --format table --map terminals_are=termination"
        )


def _no_rewards(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    count = len(arrays["observations"])
    return np.zeros(count, np.float32), np.ones(count, np.float32)


def _block(arrays: Arrays, relabel: Relabel | None, path: Path, first_row: int) -> Block:
    count = len(arrays["terminals"])
    observations, actions = to_float(arrays["observations"]), to_float(arrays["actions"])
    sources: Arrays = {}
    if relabel is None:
        rewards, masks = arrays["rewards"], arrays.get("masks", np.ones(count, dtype=np.float32))
    else:
        # A comparison with NaN is merely false: a broken physics state would silently read as "not solved".
        sources = {name: arrays[name] for name in _STATE if name in arrays}
        try:
            rewards, masks = map(np.asarray, relabel(arrays | {name: to_float32(arrays[name]) for name in _REQUIRED}))
        except (KeyError, IndexError, ValueError) as error:
            found = f"its arrays do not fit the task they were to be labelled for ({error!r})"
            raise DatasetError(f"{path}: {found}; name the environment that made this file with --env") from error
    if rewards.shape != (count,) or masks.shape != (count,):
        found = f"rewards {rewards.shape} and masks {masks.shape} must be one number a row, ({count},)"
        raise DatasetError(f"{path}: {found}; flatten them or name the task with --env")
    columns = {"observations": observations, "actions": actions}
    columns |= {"rewards": to_float(rewards), "masks": to_float32(masks), "ends": arrays["terminals"] != 0}
    return Block(path=path, columns=columns | sources, is_closed=True, first_row=first_row)


def _checked_headers(path: Path) -> dict[str, ArrayHeader]:
    headers = read_headers(path)
    if strange := sorted(headers.keys() & _OF_TRANSITIONS):
        marked = "valids" in headers
        found = f"has '{strange[0]}', so one row a transition, and an OGBench file has one more a trajectory"
        remedy = f"save it without '{strange[0]}' or without 'valids'" if marked else "leave --format out"
        raise DatasetError(f"{path}: {found}{', which valids marks: its layouts contradict' * marked}; {remedy}")
    for name in _REQUIRED:
        if name not in headers:
            found = f"is missing (found {', '.join(sorted(headers)) or 'none'})"
            remedy = "map the arrays of another layout with --format table --map MEANING=ARRAY"
            raise bad_array(path, name, f"{found}; an OGBench file has observations, actions and terminals", remedy)
    for name, dims in (("observations", 2), ("actions", 2), ("terminals", 1), ("rewards", 1), ("masks", 1)):
        header = headers.get(name)
        if header is None:
            continue
        kinds, wanted, shape = ("f", "float32", "(rows, dim)") if dims == 2 else ("fiub", "a number", "(rows,)")
        if header.dtype.kind not in kinds:
            remedy = f"save it as {wanted} (pixel and discrete data are not supported)"
            raise bad_array(path, name, f"is of type {header.dtype}", remedy)
        if len(header.shape) != dims or 0 in header.shape[1:]:
            raise bad_array(path, name, f"has shape {header.shape}", f"expected {shape}, flatten it before saving")
    return headers


def _check_boundaries(path: Path, headers: dict[str, ArrayHeader]) -> None:
    """Check trajectory ends over the whole file, before anything is handed on."""
    chunks = stream_arrays(path, headers, ["terminals"])
    terminals = np.concatenate([chunk["terminals"] for chunk in chunks])
    check_flags(terminals, "terminals", path, where="on the last row of each trajectory")
    if not terminals.any():
        remedy = "set terminals to 1 on the last row of each trajectory"
        raise DatasetError(f"{path}: no row is terminal, so the trajectories cannot be told apart; {remedy}")
    if not terminals[-1]:
        last = int(np.flatnonzero(terminals)[-1])
        raise DatasetError(
            f"{path}: the last row ({len(terminals) - 1}) is not terminal, the last end is at row {last}: the file is "
            "cut short; get it again, or drop the rows after the last end"
        )
    if terminals.all():
        remedy = "terminals mark only the last row of a trajectory"
        raise DatasetError(f"{path}: every row is terminal, so there is no transition; {remedy}")
