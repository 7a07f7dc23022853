"""Read OGBench's .npz files, row for row as `ogbench.load_dataset` and its single-task relabelling do.

Trajectories are concatenated with T + 1 rows each; `terminals` is 1 on the last of them, which yields no transition and
becomes the closing row. Row t's reward belongs to transition t and is computed from s_t; a mask of 0 stands where s_t
solves the task, and the trajectory goes on after it.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dipole_ray.columns import Column, Schema
from dipole_ray.data.narrowing import to_float32
from dipole_ray.data.sources.continuity import followed
from dipole_ray.data.sources.guarantees import check_counts, check_flags
from dipole_ray.data.sources.images import are_images, as_recorded, column_of
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
    to_times,
)
from dipole_ray.errors import DatasetError, counted

_REQUIRED = ("observations", "actions", "terminals")
_VECTORS = ("observations", "actions")
_STATE = ("qpos", "button_states")
_OF_TRANSITIONS = {*USUAL["next_observations"], *USUAL["timeouts"]}
_NOT_NEEDED = {*_STATE, "qvel", "valids"}


def schema(path: Path, reading: Reading) -> Schema:
    """Return the dimensions of a file from its headers alone."""
    headers = _checked_headers(path, reading.schema)
    return Schema(_observed(path, headers, reading.schema), math.prod(headers["actions"].shape[1:]))


def uses(path: Path, reading: Reading) -> dict[str, tuple[str, ...]]:
    """Return the arrays that would be read, by their meaning."""
    headers = read_headers(path)
    labels = _STATE if reading.relabel is not None or "rewards" not in headers else ("rewards", "masks")
    there = {name: name for name in (*_REQUIRED, *labels) if name in headers}
    rows = headers["observations"].shape[:1] if "observations" in headers else ()
    for meaning in ("episode", "time"):  # they only check the order
        named = (name for name in USUAL[meaning] if name in headers)
        found = next((name for name in named if headers[name].shape in (rows, (*rows, 1))), None)
        if found is not None and headers[found].dtype.kind in "fiu":
            there[meaning] = found
    return {meaning: (name,) for meaning, name in there.items()}


def count_rows(path: Path) -> int:
    """Return the number of rows of a file from its headers alone."""
    return _checked_headers(path)["observations"].shape[0]


def read(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    """Yield the rows in blocks of some four megabytes."""
    return followed(_blocks(path, reading, report), path, report)


def _blocks(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    headers = _checked_headers(path, reading.schema)
    relabel = reading.relabel
    if relabel is None and "rewards" not in headers:
        if reading.needs_rewards:
            domain, _, kind = path.stem.removesuffix("-val").rpartition("-")
            task = f"{domain}-singletask-{kind}" if domain else "pointmaze-medium-navigate-singletask-v0"
            raise DatasetError(f"{path}: holds no rewards; name the task to label it for, such as --env {task}")
        relabel = _no_rewards
    used = uses(path, replace(reading, relabel=relabel))
    names = [name for (name,) in used.values()]
    counts = {name: headers[name].shape[0] if headers[name].shape else 0 for name in names}
    check_counts(counts, path, "get the file again or collect data with 'dipole data collect'")
    for name in names:
        if headers[name].dtype.kind not in "fiub":
            raise bad_array(path, name, f"is of type {headers[name].dtype}", "save it as numbers")
    _check_boundaries(path, headers, used.get("episode", ("",))[0])
    report.reads(used, [name for name in headers if name not in _NOT_NEEDED])
    unused = 0
    for found in stream_arrays(path, headers, names):
        arrays = {meaning: found[name] for meaning, (name,) in used.items()}
        count = len(arrays["terminals"])
        arrays["actions"] = arrays["actions"].reshape(count, -1)
        arrays |= {name: arrays[name].reshape(-1) for name in arrays.keys() - {*_VECTORS, *_STATE}}
        unused += int((arrays["rewards"][arrays["terminals"] != 0] != 0).sum()) if "rewards" in arrays else 0
        time = used.get("time", ("",))[0]
        yield replace(_block(arrays, relabel, path, report.rows_read), time_name=time)
    if unused:
        skipped = counted(unused, "reward", verb="are")
        report.warnings.append(
            f"{skipped} not used, because terminals mark rows that hold only a last observation, as in OGBench's "
            "files; if every row is a transition, say so with --map terminals_are=termination (or =boundary)"
        )


def _no_rewards(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    count = len(arrays["observations"])
    return np.zeros(count, np.float32), np.ones(count, np.float32)


def _block(arrays: Arrays, relabel: Relabel | None, path: Path, first_row: int) -> Block:
    count = len(arrays["terminals"])
    observations, actions = as_recorded(arrays["observations"]), to_float(arrays["actions"])
    sources: Arrays = {}
    if relabel is None:
        rewards, masks = arrays["rewards"], arrays.get("masks", np.ones(count, dtype=np.float32))
    else:
        # A comparison with NaN is merely false: a broken physics state would silently read as "not solved".
        sources = {name: arrays[name] for name in _STATE if name in arrays}
        try:
            numbers = [name for name in _REQUIRED if not are_images(arrays[name])]
            rewards, masks = map(np.asarray, relabel(arrays | {name: to_float32(arrays[name]) for name in numbers}))
        except (KeyError, IndexError, ValueError) as error:
            found = f"its arrays do not fit the task they were to be labelled for ({error!r})"
            raise DatasetError(f"{path}: {found}; name the environment that made this file with --env") from error
    if rewards.shape != (count,) or masks.shape != (count,):
        found = f"rewards {rewards.shape} and masks {masks.shape} must be one number a row, ({count},)"
        raise DatasetError(f"{path}: {found}; flatten them or name the task with --env")
    columns = {"observations": observations, "actions": actions}
    columns |= {"rewards": to_float(rewards), "masks": to_float32(masks), "ends": arrays["terminals"] != 0}
    columns |= {"flagged": columns["ends"]} | {name: arrays[name] for name in ("episode",) if name in arrays}
    columns |= {"times": to_times(arrays["time"])} if "time" in arrays else {}
    return Block(path=path, columns=columns | sources, is_closed=True, first_row=first_row, is_mapped=False)


def _observed(path: Path, headers: dict[str, ArrayHeader], like: Schema | None) -> Column:
    header = headers["observations"]
    return column_of(header.dtype, header.shape, like, partial(bad_array, path, "observations"))


def _checked_headers(path: Path, like: Schema | None = None) -> dict[str, ArrayHeader]:
    headers = read_headers(path)
    if strange := sorted(headers.keys() & _OF_TRANSITIONS):
        marked = "valids" in headers
        found = f"has '{strange[0]}', so one row a transition, and an OGBench file has one more a trajectory"
        remedy = f"save it without '{strange[0]}' or without 'valids'" if marked else "leave --format out"
        raise DatasetError(f"{path}: {found}{', which valids marks: its layouts contradict' * marked}; {remedy}")
    for name in _REQUIRED:
        if name not in headers:
            found = f"is missing (found {', '.join(sorted(headers)) or 'none'})"
            remedy = "map the arrays of another layout with --map MEANING=ARRAY"
            raise bad_array(path, name, f"{found}; an OGBench file has observations, actions and terminals", remedy)
    for name, dims in (("observations", 2), ("actions", 2), ("terminals", 1), ("rewards", 1), ("masks", 1)):
        header = headers.get(name)
        if header is None:
            continue
        kinds, wanted, shape = ("fiu", "float32", "(rows, dim)") if dims == 2 else ("fiub", "a number", "(rows,)")
        if header.dtype.kind not in kinds:
            raise bad_array(path, name, f"is of type {header.dtype}", f"save it as {wanted}")
        if name == "observations" and len(header.shape) > 2:
            _observed(path, headers, like)
            continue
        is_column = len(header.shape) == 1 or (len(header.shape) == 2 and header.shape[1] == 1)
        if not (is_column or len(header.shape) == dims) or 0 in header.shape[1:]:
            raise bad_array(path, name, f"has shape {header.shape}", f"expected {shape}, flatten it before saving")
    return headers


def _check_boundaries(path: Path, headers: dict[str, ArrayHeader], episode: str) -> None:
    """Check trajectory ends over the whole file, before anything is handed on; an array may name the `episode`s."""
    chunks = [*stream_arrays(path, headers, ["terminals", *([episode] if episode else [])])]
    terminals = np.concatenate([chunk["terminals"].reshape(-1) for chunk in chunks])
    check_flags(terminals, "terminals", path, where="on the last row of each trajectory")
    if not terminals.any():
        remedy = "set terminals to 1 on the last row of each trajectory"
        raise DatasetError(f"{path}: no row is terminal, so the trajectories cannot be told apart; {remedy}")
    if not terminals[-1]:
        last = int(np.flatnonzero(terminals)[-1])
        raise DatasetError(
            f"{path}: the last row ({len(terminals) - 1}) is not terminal, the last end is at row {last}: the file is "
            "cut short; get it again, or drop the rows after the last end, or, if every row is a transition, say so "
            "with --map terminals_are=termination (or =boundary)"
        )
    if terminals.all():
        remedy = "terminals mark only the last row of a trajectory"
        raise DatasetError(f"{path}: every row is terminal, so there is no transition; {remedy}")
    if not episode:
        return
    names = np.concatenate([chunk[episode].reshape(-1) for chunk in chunks])
    if len(strange := np.flatnonzero((names[1:] != names[:-1]) != (terminals[:-1] != 0))):
        found = f"'{episode}' and 'terminals' contradict each other on where trajectories end"
        remedy = f"mend one of them, or save the file without '{episode}'"
        raise DatasetError(f"{path}: {found}, the first time at row {int(strange[0])}; {remedy}")
