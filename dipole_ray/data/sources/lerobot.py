"""Read LeRobot's datasets, v2 and v3, by their Parquet files alone: frames with a state, an action and some labels.

A frame is a row of a table whose columns have LeRobot's names, so all that is said of tables holds: `--map` chooses
other columns, and the order is checked. No observation after the last action was recorded: an episode's last frame
closes it, unless the task ended there. Rewards are `next.reward`, else 1 where an episode succeeds (a column, or
`success` in meta/episodes), else the progress that a reward model wrote beside the data. Videos are not read.
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dipole_ray.columns import Schema
from dipole_ray.data.sources.continuity import natural_order
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.reading import ActionBounds, Block, Contents, ImportReport, Reading
from dipole_ray.data.sources.table import Batches, batch_schema, mapped, read_rows, require_same_columns
from dipole_ray.data.sources.table_files import contents as file_contents
from dipole_ray.data.sources.table_files import read_batches, table_schema
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import read_json

INFO = Path("meta", "info.json")
_SUCCESS = ("next.success", "is_success", "success")
_PROGRESS = ("progress_sparse", "progress_dense", "progress")
_USUAL = {
    "observations": ("observation.state", "observation.environment_state"),
    "actions": ("action",),
    "rewards": ("next.reward", "reward"),
    "terminals": (*_SUCCESS, "next.done"),
    "episode": ("episode_index",),
    "time": ("frame_index",),
}
UNREWARDED = (
    f"holds no rewards: neither a column next.reward or {', '.join(_SUCCESS)}, nor 'success' in meta/episodes, nor a "
    "*_progress.parquet with progress_sparse; add one of them, or name a column that rewards with --map rewards=COLUMN"
)


def is_lerobot(path: Path) -> bool:
    """Return whether `path` is the root of a LeRobot dataset."""
    return (path / INFO).is_file() and (path / "data").is_dir()


def data_files(path: Path) -> list[Path]:
    """Return the files of frames in the order of their numbers."""
    files = sorted((path / "data").rglob("*.parquet"), key=natural_order)
    if not files:
        raise DatasetError(f"{path}: holds no data/*/*.parquet; get the dataset again, with its data")
    return files


def lerobot_files(path: Path) -> list[Path]:
    """Return the files that are read: the frames, what is said of them, and a reward model's progress."""
    labels = sorted(file for file in [*(path / "meta").rglob("*"), *path.glob("*_progress.parquet")] if file.is_file())
    return [*data_files(path), *labels]


def contents(path: Path) -> Contents:
    """Return the columns of the first file."""
    return file_contents(data_files(path)[0])


def uses(path: Path, reading: Reading) -> dict[str, tuple[str, ...]]:
    """Return the columns that would be read, by their meaning; those of a sidecar are in no file of frames."""
    columns = table_schema(data_files(path)[0]).names
    return (reading.mapping or TableMapping()).complete(columns, _USUAL).found(columns)


def names(path: Path, reading: Reading) -> dict[str, tuple[str, ...]]:
    """Return the names of dimensions: columns where each is one, else those that meta/info.json gives a column's."""
    used, features = uses(path, reading), _info(path).get("features", {})
    several = {meaning: found for meaning, found in used.items() if len(found) > 1}
    single = {meaning: found[0] for meaning, found in used.items() if len(found) == 1}
    return several | {meaning: named for meaning, name in single.items() if (named := _named(features.get(name)))}


def _named(feature: Any) -> tuple[str, ...]:
    """Return the names of a feature's numbers; () where there are none, or not as many."""
    try:
        named, shape = feature["names"], feature["shape"]
        if isinstance(named, dict):  # `{"motors": [...]}`, or `{"x": 0, "y": 1}`
            lists = all(isinstance(value, list) for value in named.values())
            named = [*chain(*named.values())] if lists else sorted(named, key=named.__getitem__)
        return tuple(map(str, named)) if [len(named)] == list(shape) else ()
    except (KeyError, TypeError):
        return ()


def has_rewards(path: Path, reading: Reading) -> bool:
    """Return whether a column, the episodes or a reward model rewards the frames."""
    used = uses(path, reading)
    mapped = used.get("rewards") or set(_SUCCESS) & {*used.get("terminals", ())}
    return bool(mapped) or bool(_sidecar(path, data_files(path), ImportReport()))


def schema(path: Path, reading: Reading) -> Schema:
    """Return the dimensions of the first frames."""
    mapping, batches = _frames(path, reading, ImportReport())
    return batch_schema(path, mapping, batches, reading.schema)


def read(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    """Yield the frames of all episodes."""
    mapping, batches = _frames(path, reading, report)
    yield from read_rows(path, batches, mapping, report, reading.schema)
    total = _info(path).get("total_frames")
    if total is not None and total != report.rows_read:
        found = f"{INFO} says {total} frames and the files hold {report.rows_read}"
        raise DatasetError(f"{path}: {found}; get the rest of data/")


def action_bounds(path: Path) -> ActionBounds | None:
    """Return the least and greatest actions of meta/stats.json or of v2.1's episodes_stats.jsonl; None without."""
    stats = [*_json_lines(path / "meta" / "episodes_stats.jsonl")]
    found = [line["stats"] for line in stats] if stats else []
    if (path / "meta" / "stats.json").is_file():
        found = [read_json(path / "meta" / "stats.json")]
    try:
        low, high = (np.array([one["action"][name] for one in found], np.float64) for name in ("min", "max"))
    except (KeyError, TypeError, ValueError):
        return None
    if not found or low.ndim != 2 or not (low.min(axis=0) < high.max(axis=0)).all():
        return None
    return low.min(axis=0), high.max(axis=0)


def _info(path: Path) -> dict[str, Any]:
    try:
        info = read_json(path / INFO)
        version = str(info["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path / INFO}: not a LeRobot dataset's ({error}); get it again") from error
    if not version.startswith(("v2", "v3")):
        raise DatasetError(f"{path}: LeRobot's version {version} is not read; convert it to v2.1 or v3.0 with lerobot")
    return dict(info)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        try:
            yield from (
                dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
            )
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{path}: not lines of JSON ({error}); get the dataset again") from error


def _frames(path: Path, reading: Reading, report: ImportReport) -> tuple[TableMapping, Batches]:
    """Return the mapping and the batches of all files, with `rewards` and `success` of a sidecar where they need it."""
    _info(path)
    files = data_files(path)
    columns = list(table_schema(files[0]).names)
    extra: dict[str, np.ndarray] = {}  # of every frame by its `index`
    mapping = (reading.mapping or TableMapping()).complete(columns, _USUAL)
    if mapping.rewards == "rewards" and "rewards" not in columns:  # none is there
        success = next((name for name in _SUCCESS if name in columns), None)
        if success is not None:
            given: dict[str, Any] = {"rewards": success, "terminals": success}
            report.notes.append(f"rewards are 1 where '{success}' is, and 0 elsewhere")
        else:
            extra = _sidecar(path, files, report)
            if reading.needs_rewards and not extra:
                raise DatasetError(f"{path}: {UNREWARDED}")
            given = {"rewards": "rewards", **({"terminals": "success"} if "success" in extra else {})}
        given |= {} if reading.mapping is None else reading.mapping.to_json()
        mapping = TableMapping(**given).complete([*columns, *extra], _USUAL)
        mapping = mapping if reading.needs_rewards else mapping.rewarded_or_not([*columns, *extra])
    if mapping.terminals == "next.done" and mapping.terminals_are is None:
        report.warnings.append(
            "'next.done' is taken as the end of the task, since no column tells success; where it marks time limits, "
            "give --map terminals_are=boundary"
        )
    mapping.check(path)
    report.reads(mapping.resolve([*columns, *extra], path), columns)
    return mapping, _batches(files, mapping, extra)


def _batches(files: list[Path], mapping: TableMapping, extra: dict[str, np.ndarray]) -> Batches:
    require_same_columns(files, _USUAL)
    for file in files:
        for batch in read_batches(file, partial(_chosen, mapping, file, extra)):
            for name, values in extra.items():
                batch = batch.append_column(name, pa.array(values[batch["index"].to_numpy()]))
            yield file, batch


def _chosen(mapping: TableMapping, file: Path, extra: dict[str, np.ndarray], available: list[str]) -> list[str]:
    chosen = [name for name in mapped(mapping, file, [*available, *extra]) if name not in extra]
    return [*chosen, "index"] if extra else chosen


def _sidecar(path: Path, files: list[Path], report: ImportReport) -> dict[str, np.ndarray]:
    """Return `rewards`, and `success` where the episodes tell it, of every frame by its number; {} without labels."""
    frames = [_columns(file, ["index", "episode_index"]) for file in files]
    index, episode = (np.concatenate([part[name] for part in frames]) for name in ("index", "episode_index"))
    if not np.array_equal(np.sort(index), np.arange(len(index))):
        raise DatasetError(f"{path}: the frames' index does not count 0 to {len(index) - 1}; get the rest of data/")
    by_index = np.empty_like(episode)
    by_index[index] = episode
    is_last = np.append(by_index[1:] != by_index[:-1], True)
    success = _episode_success(path)
    if success:
        succeeds = is_last & np.array([bool(success.get(int(number))) for number in by_index])
        report.notes.append("rewards are 1 on the last frame of an episode that meta/episodes calls a success, else 0")
        numbers = {*by_index.tolist()}
        if untold := len(numbers - success.keys()):
            what = f"{untold} of {len(numbers)} episodes have no label of success and count as failed"
            report.warnings.append(f"{what}; label those that succeeded")
        return {"rewards": succeeds.astype(np.float32), "success": succeeds}
    for file in sorted([*path.glob("*_progress.parquet"), *(path / "meta").glob("*_progress.parquet")]):
        name = next((name for name in _PROGRESS if name in table_schema(file).names), None)
        if name is not None:
            found = _columns(file, ["index", name])
            progress = np.full(len(index), np.nan)
            progress[found["index"]] = found[name]
            report.notes.append(f"rewards are the progress in {file.name} ('{name}') that an action makes")
            return {"rewards": np.where(is_last, 0.0, np.append(progress[1:], 0.0) - progress).astype(np.float32)}
    return {}


def _episode_success(path: Path) -> dict[int, bool]:
    """Return which episodes succeeded, as far as the descriptions of the episodes say."""
    lines = [*_json_lines(path / "meta" / "episodes.jsonl")]
    for file in sorted((path / "meta" / "episodes").rglob("*.parquet"), key=natural_order):
        names = [name for name in ("success", "is_success") if name in table_schema(file).names]
        if names:
            found = _columns(file, ["episode_index", names[0]])
            lines += [{"episode_index": i, "success": s} for i, s in zip(*found.values(), strict=True)]
    labels: dict[int, bool] = {}
    for line in lines:
        told = next((line[name] for name in ("success", "is_success") if line.get(name) is not None), None)
        if told is not None and not (isinstance(told, bool | np.bool_) or told in (0, 1)):
            remedy = "store true or false, or nothing where nobody knows"
            raise DatasetError(f"{path}: success is {told!r:.80} of episode {line.get('episode_index')}; {remedy}")
        if told is not None:
            labels[int(line["episode_index"])] = bool(told)
    return labels


def _columns(file: Path, names: list[str]) -> dict[str, np.ndarray]:
    parts = [*read_batches(file, lambda available: [name for name in names if name in available])]
    if not parts or set(parts[0].schema.names) != set(names):
        raise DatasetError(f"{file}: has no columns {', '.join(names)}; get the dataset again")
    return {name: np.concatenate([part[name].to_numpy(zero_copy_only=False) for part in parts]) for name in names}
