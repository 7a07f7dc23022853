"""Read OGBench's .npz files, row for row as `ogbench.load_dataset` and its single-task relabelling do.

Trajectories are concatenated with T + 1 rows each; `terminals` is 1 on the last of them, which yields no transition and
becomes the closing row. Row t's reward belongs to transition t and is computed from s_t; a mask of 0 stands where s_t
solves the task, and the trajectory goes on after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dipole_ray.data.schema import Rows, Schema
from dipole_ray.data.sources.npz import ArrayHeader, read_headers, stream_arrays
from dipole_ray.data.sources.pieces import Block, ImportReport, NonFinitePolicy, check_actions, finish_block, to_float32
from dipole_ray.errors import DatasetError

Relabel = Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]

_REQUIRED = ("observations", "actions", "terminals")
_STATE = ("qpos", "button_states")


def ogbench_schema(path: Path | str) -> Schema:
    """Return the dimensions of an OGBench file from its headers alone.

    Raises:
        DatasetError: If it is not such a file.
    """
    headers = _checked_headers(Path(path))
    return Schema(headers["observations"].shape[1], headers["actions"].shape[1])


def ogbench_rows(path: Path | str) -> int:
    """Return the number of rows of an OGBench file from its headers alone."""
    return _checked_headers(Path(path))["observations"].shape[0]


def has_rewards(path: Path | str) -> bool:
    """Return whether the file brings its own rewards (OGBench's do not)."""
    return "rewards" in read_headers(Path(path))


def read_ogbench(
    path: Path | str,
    relabel: Relabel | None = None,
    *,
    non_finite: NonFinitePolicy = "refuse",
    report: ImportReport | None = None,
) -> Iterator[Rows]:
    """Yield rows of whole trajectories, in chunks of some ten megabytes.

    Args:
        path: The .npz file.
        relabel: Gives rewards (N,) and masks (N,) of N rows from their arrays (observations, actions, terminals and,
            where the file has them, qpos and button_states). None: the file must hold `rewards` (and may hold `masks`).
        non_finite: `refuse` raises at a NaN or infinity; `drop` leaves those transitions out, splitting the trajectory.
        report: Counts what was read and dropped.

    Raises:
        DatasetError: If the file is malformed; says which array, which row and what to do.
    """
    path, report = Path(path), ImportReport() if report is None else report
    headers = _checked_headers(path)
    if relabel is None and "rewards" not in headers:
        raise DatasetError(
            f"{path}: holds no rewards; name the task to label it for, such as --env {_task_example(path)}"
        )
    labels = _STATE if relabel is not None else ("rewards", "masks")
    names = [*_REQUIRED, *(name for name in labels if name in headers)]
    _check_rows(path, headers, names)
    _check_boundaries(path, headers)
    held: list[dict[str, np.ndarray]] = []  # chunks of a trajectory that has not ended yet
    for arrays in stream_arrays(path, headers, names):
        closing = np.flatnonzero(arrays["terminals"] != 0)
        end = int(closing[-1]) + 1 if len(closing) else 0
        whole = [*held, {name: values[:end] for name, values in arrays.items()}]
        held = [{name: values[end:] for name, values in arrays.items()}] if end else [*held, arrays]
        if end:
            joined = {name: np.concatenate([part[name] for part in whole]) for name in names} if whole[1:] else whole[0]
            block = _label_block(joined, relabel, path, report.rows_read)
            report.rows_read += len(block.closing)
            rows = finish_block(block, path, non_finite, report)
            if rows is not None:
                yield rows


def _label_block(arrays: dict[str, np.ndarray], relabel: Relabel | None, path: Path, first_row: int) -> Block:
    count = len(arrays["terminals"])
    arrays = arrays | {name: to_float32(arrays[name]) for name in _REQUIRED}
    if relabel is None:
        rewards, masks = arrays["rewards"], arrays.get("masks", np.ones(count, dtype=np.float32))
    else:
        try:
            rewards, masks = relabel(dict(arrays))
        except (KeyError, IndexError, ValueError) as error:
            raise DatasetError(
                f"{path}: its arrays do not fit the task they were to be labelled for ({error!r}); "
                "name the environment that made this file with --env"
            ) from error
    rewards, masks = np.asarray(rewards), np.asarray(masks)
    # A comparison with NaN is merely false: a broken physics state would silently read as "not solved".
    sources = {} if relabel is None else {name: arrays[name] for name in _STATE if name in arrays}
    if rewards.shape != (count,) or masks.shape != (count,):
        raise DatasetError(
            f"{path}: rewards {rewards.shape} and masks {masks.shape} must be one number a row, ({count},); "
            "flatten them or name the task with --env"
        )
    return Block(
        observations=arrays["observations"],
        actions=arrays["actions"],
        rewards=to_float32(rewards),
        masks=to_float32(masks),
        closing=arrays["terminals"] != 0,
        row_numbers=np.arange(first_row, first_row + count),
        sources=sources,
    )


def _checked_headers(path: Path) -> dict[str, ArrayHeader]:
    headers = read_headers(path)
    missing = [name for name in _REQUIRED if name not in headers]
    if missing:
        raise DatasetError(
            f"{path}: array '{missing[0]}' is missing (found {', '.join(sorted(headers)) or 'none'}); an OGBench file "
            "has observations, actions and terminals; save other layouts as a table (--format table)"
        )
    for name, dims in (("observations", 2), ("actions", 2), ("terminals", 1), ("rewards", 1), ("masks", 1)):
        header = headers.get(name)
        if header is None:
            continue
        kinds = "f" if name in ("observations", "actions") else "fiub"
        if header.dtype.kind not in kinds:
            raise DatasetError(
                f"{path}: array '{name}' is of type {header.dtype}; "
                f"save it as {'float32' if kinds == 'f' else 'a number'} (pixel and discrete data are not supported)"
            )
        if len(header.shape) != dims or 0 in header.shape[1:]:
            raise DatasetError(
                f"{path}: array '{name}' has shape {header.shape}; expected {'(rows, dim)' if dims == 2 else '(rows,)'}"
                ", flatten it before saving"
            )
    return headers


def _check_rows(path: Path, headers: dict[str, ArrayHeader], names: list[str]) -> None:
    counts = {name: headers[name].shape[0] if headers[name].shape else 0 for name in names}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DatasetError(
            f"{path}: arrays differ in their number of rows ({found}); the file is damaged, get it again"
        )
    if not counts["observations"]:
        raise DatasetError(f"{path}: holds no rows; get the file again or collect data with 'dipole data collect'")
    for name in names:
        if headers[name].dtype.kind not in "fiub":
            raise DatasetError(f"{path}: array '{name}' is of type {headers[name].dtype}; save it as numbers")


def _check_boundaries(path: Path, headers: dict[str, ArrayHeader]) -> None:
    """Check trajectory ends and the action range over the whole file, before anything is handed on."""
    flags, actions = [], []
    for chunk in stream_arrays(path, headers, ["terminals", "actions"]):
        flags.append(chunk["terminals"])
        # NaN and infinity are found, and refused or dropped, where the rows are read.
        actions.append(np.nan_to_num(np.abs(chunk["actions"]), nan=0.0, posinf=0.0).max(axis=1))
    terminals, magnitudes = np.concatenate(flags), np.concatenate(actions)
    wrong = np.flatnonzero(~np.isin(terminals, (0, 1)))
    if len(wrong):
        raise DatasetError(
            f"{path}: terminals must be 0 or 1, row {wrong[0]} holds {terminals[wrong[0]]}; "
            "store 1 on the last row of each trajectory"
        )
    if not terminals.any():
        raise DatasetError(
            f"{path}: no row is terminal, so the trajectories cannot be told apart; set terminals to 1 on the last row "
            "of each trajectory"
        )
    if not terminals[-1]:
        last = int(np.flatnonzero(terminals)[-1])
        raise DatasetError(
            f"{path}: the last row ({len(terminals) - 1}) is not terminal, the last end is at row {last}: the file is "
            "cut short; get it again, or drop the rows after the last end"
        )
    if terminals.all():
        raise DatasetError(
            f"{path}: every row is terminal, so there is no transition; terminals mark only the last row of "
            "a trajectory"
        )
    moving = np.flatnonzero(terminals == 0)
    check_actions(magnitudes[moving, None], moving, path)


def _task_example(path: Path) -> str:
    parts = path.stem.removesuffix("-val").rsplit("-", 1)
    return "-singletask-".join(parts) if len(parts) == 2 else "pointmaze-medium-navigate-singletask-v0"
