"""Read any Parquet, Arrow or Feather table, an .npz with one row a transition, or a folder of them, by a mapping.

A table row is one transition. Where the table has no next observations, the last row of a trajectory that was cut by a
time limit only closes it (nobody knows what its action led to); the last row of one that terminated is kept, because
its next observation is never used.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dipole_ray.columns import Column, Schema
from dipole_ray.data.schema import concatenate
from dipole_ray.data.sources.continuity import Continuity, shown
from dipole_ray.data.sources.guarantees import are_followed, check_flags, check_masks, mark_unfollowed
from dipole_ray.data.sources.images import are_images, holds_images, image_column, is_list, last_part, schema_of_parts
from dipole_ray.data.sources.mapping import USUAL, TableMapping
from dipole_ray.data.sources.reading import Arrays, Block, ImportReport, Reading, parts_of, to_float, to_times
from dipole_ray.data.sources.table_files import read_batches, table_files, table_schema, unread_files
from dipole_ray.errors import DatasetError, counted

Batches = Iterator[tuple[Path, pa.RecordBatch]]  # of all files of a table, each with its file


def table_columns(path: Path) -> list[str]:
    """Return the column names of the (first) table file."""
    return list(table_schema(path).names)


def uses(path: Path, reading: Reading) -> dict[str, tuple[str, ...]]:
    """Return the columns that would be read, by their meaning, whether that is enough or not."""
    mapping = _completed(table_schema(path), reading)
    return mapping.found(table_columns(path))


def names(path: Path, reading: Reading) -> dict[str, tuple[str, ...]]:
    """Return the names of dimensions where each is a column."""
    schema = table_schema(path)
    several = {meaning: found for meaning, found in uses(path, reading).items() if len(found) > 1}
    return {name: found for name, found in several.items() if not any(_is_image(schema.field(one)) for one in found)}


def _is_image(field: pa.Field) -> bool:
    return holds_images(field.type) or isinstance(field.type, pa.BaseExtensionType)


def has_rewards(path: Path, reading: Reading) -> bool:
    """Return whether a column is taken for rewards."""
    return "rewards" in uses(path, reading)


def mapping_of(path: Path, reading: Reading) -> TableMapping:
    """Return the mapping that was given, completed by the columns that have usual names."""
    mapping = _completed(table_schema(path), reading)
    mapping.check(path, has_limit=reading.max_episode_steps is not None)
    return mapping


def _completed(schema: pa.Schema, reading: Reading) -> TableMapping:
    # A text may well be called `time`, and is none.
    columns = [field.name for field in schema if field.name not in USUAL["time"] or _is_time(field.type)]
    mapping = (reading.mapping or TableMapping()).complete(columns)
    return mapping if reading.needs_rewards else mapping.rewarded_or_not(columns)


def schema(path: Path, reading: Reading) -> Schema:
    """Return the dimensions that the mapping gives, from the first rows of the table."""
    mapping = mapping_of(path, reading)
    return batch_schema(path, mapping, _batches(path, mapping), reading.schema)


def batch_schema(path: Path, mapping: TableMapping, batches: Batches, like: Schema | None = None) -> Schema:
    """Return the dimensions of the first of some batches; `like` is what the environment observes."""
    for _, batch in batches:
        columns = mapping.resolve(batch.schema.names, path)
        seen = observed_parts(batch, columns["observations"], path, 0, like)
        return schema_of_parts(seen, column_matrix(batch, columns["actions"], path, 0).shape[1])
    raise DatasetError(f"{path}: the table has no rows; nothing to import")


def read(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
    """Yield the rows of a file, or of a folder whose files continue each other in the order of their numbers."""
    mapping, available = mapping_of(path, reading), table_columns(path)
    columns = mapping.resolve(available, path)
    report.reads(columns, available)
    report.warnings += unread_files(path)
    return read_rows(path, _batches(path, mapping), mapping, report, reading.schema)


def read_rows(
    path: Path, batches: Batches, mapping: TableMapping, report: ImportReport, like: Schema | None = None
) -> Iterator[Block]:
    """Yield the rows of batches, each with its file, that continue each other; `like` as of `batch_schema`."""
    order = Continuity(path, report, are_parts=mapping.files_are == "parts")
    shapes: dict[str, tuple[int, ...]] = {}
    block = partial(_block, path, mapping)
    last, file = Arrays(), path  # the newest row: only the next one tells whether it ends a trajectory
    for source, batch in batches:
        first_row = report.rows_read + len(last.get("ends", ()))
        rows = _batch_arrays(batch, mapping, path, first_row, like)
        found = {name: values.shape[1:] for name, values in rows.items() if values.ndim > 1}
        shapes = shapes or found
        if found != shapes:
            old, new = next((shapes[name], found[name]) for name in found if found[name] != shapes[name])
            what = "images change their size" if len(new) > 1 else "vectors change their length"
            remedy = "bring all to one size, or import tables of different environments one by one"
            raise DatasetError(f"{path}: {what} near row {first_row}, from {old} to {new}; {remedy}")
        rows = concatenate([last, rows]) if last else rows
        _mark_ends(rows, mapping, path, report)
        if last and source != file and mapping.files_are == "trajectories":
            rows["ends"][0] = True
            order.begin_anew()
        elif last and source != file:
            order.join(shown(rows), report.rows_read, file, source)
        order.follow(shown(rows), report.rows_read)
        file, last = source, {name: values[-1:] for name, values in rows.items()}
        yield block({name: values[:-1] for name, values in rows.items()}, report.rows_read)
    if not last:
        raise DatasetError(f"{path}: the table has no rows; nothing to import")
    order.finish()
    yield block(last | {"ends": np.ones(1, bool)}, report.rows_read)


def _block(path: Path, mapping: TableMapping, rows: Arrays, first_row: int) -> Block:
    columns = {name: values for name, values in rows.items() if name not in ("episode", "flagged")}
    limits, time = mapping.marks_limits, mapping.time or ""
    return Block(path=path, columns=columns, first_row=first_row, marks_limits=limits, time_name=time)


def _mark_ends(rows: Arrays, mapping: TableMapping, path: Path, report: ImportReport) -> None:
    """Mark, in place, the rows after which another trajectory begins."""
    if mapping.episode is not None:
        rows["ends"][:-1] |= rows["episode"][1:] != rows["episode"][:-1]
    elif mapping.infers_boundaries:
        following = {name: values[:-1] for name, values in parts_of(rows, "next_observations").items()}
        same = are_followed(following, {name: values[1:] for name, values in parts_of(rows).items()})
        ends, has_timeouts, row = rows["ends"][:-1], mapping.timeouts is not None, report.rows_read
        mark_unfollowed(ends, same, report, first_row=row, has_timeouts=has_timeouts, path=path)


def observed_parts(
    batch: pa.RecordBatch, names: tuple[str, ...], path: Path, first_row: int, like: Schema | None
) -> Arrays:
    """Return the observations in some columns: numbers joined to one vector or, where one is an image, each its own."""
    keys = [""] if len(names) == 1 else [f".{last_part(name)}" for name in names]
    wanted = {} if like is None else parts_of(like.as_seen.observed)
    images: dict[str, tuple[int, ...]] = {}  # and the shape that flat lists are brought to
    for name, key in zip(names, keys, strict=True):
        kind, column = batch.column(name).type, wanted.get(key)
        if holds_images(kind):
            images[name] = ()
        elif column is not None and column.is_image and is_list(kind) and kind.value_type == pa.uint8():
            width = len(batch.column(name).flatten()) // max(1, batch.num_rows)
            images |= {name: column.shape} if width == column.bytes else {}
    if not images:
        return {"": column_matrix(batch, names, path, first_row)}
    if len({*keys}) < len(names):
        raise DatasetError(f"{path}: columns {', '.join(names)} end in one name; rename them, for each is an array")
    return {
        key: image_column(batch.column(name), name, path, first_row, like, images[name])
        if name in images
        else column_matrix(batch, (name,), path, first_row)
        for name, key in zip(names, keys, strict=True)
    }


def _batch_arrays(
    batch: pa.RecordBatch, mapping: TableMapping, path: Path, first_row: int, like: Schema | None
) -> Arrays:
    columns = mapping.resolve(batch.schema.names, path)
    seen = observed_parts(batch, columns["observations"], path, first_row, like)
    arrays = {f"observations{name}": values for name, values in seen.items()}
    arrays["actions"] = column_matrix(batch, columns["actions"], path, first_row)
    following = seen
    if "next_observations" in columns and [*seen] == [""] and not are_images(seen[""]):
        following = {"": _following(batch, columns["next_observations"], path, first_row, seen[""].shape[1])}
    elif "next_observations" in columns:
        parts = observed_parts(batch, columns["next_observations"], path, first_row, like)
        following = dict(zip(seen, parts.values(), strict=True)) if len(parts) == len(seen) else parts
    for name, values in following.items():
        if name not in seen or values.shape != seen[name].shape:
            after, before = ([str(Column(one.shape[1:])) for one in each.values()] for each in (following, seen))
            what = f"next_observations have {', '.join(after)} dimensions, observations {', '.join(before)}"
            raise DatasetError(f"{path}: {what}; map columns that fit together")
    flags: Arrays = {}
    for name in [name for name in ("rewards", "masks", "terminals", "timeouts") if name in columns]:
        flags[name] = column_vector(batch, columns[name][0], path, first_row)
        if name in ("terminals", "timeouts"):
            where = "on the last row of each trajectory"
            check_flags(flags[name], f"column '{columns[name][0]}'", path, first_row, where)
    if {"masks", "terminals"} <= flags.keys():
        check_masks(flags["masks"], flags["terminals"], columns["masks"][0], columns["terminals"][0], path)
    arrays["rewards"] = flags.get("rewards", np.zeros(batch.num_rows, np.float32))
    arrays["masks"], arrays["flagged"] = mapping.masks_and_ends(flags, batch.num_rows)
    arrays["ends"] = arrays["flagged"].copy()
    if "next_observations" in columns:
        arrays |= {f"next_observations{name}": values for name, values in following.items()}
    if "time" in columns:
        arrays["times"] = _times(batch, columns["time"][0], path)
    if "episode" in columns:
        arrays["episode"] = _episodes(batch, columns["episode"][0], path, first_row)
    return arrays


def _following(batch: pa.RecordBatch, names: tuple[str, ...], path: Path, first_row: int, width: int) -> np.ndarray:
    """Return next observations, (N, dim), which may be missing: then the row is NaN."""
    given = np.ones(batch.num_rows, bool)
    for name in names:
        given &= _is_given(batch.column(name))
    present = batch.select(names).filter(pa.array(given))
    found = column_matrix(present, names, path, first_row) if given.any() else np.empty((0, width), np.float32)
    matrix = np.full((batch.num_rows, found.shape[1]), np.nan, found.dtype)
    matrix[given] = found
    return matrix


def _is_given(column: pa.Array) -> np.ndarray:
    """Return (N,) bool: whether a row has a value; a list without one, empty or of nothing but nulls, is none."""
    if not is_list(column.type):
        return np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    rows, is_number = pc.list_parent_indices(column).to_numpy(), column.flatten().is_valid()
    return np.bincount(rows[is_number.to_numpy(zero_copy_only=False)], minlength=len(column)) > 0


def _episodes(batch: pa.RecordBatch, name: str, path: Path, first_row: int) -> np.ndarray:
    """Return (N,) values that change where an episode does."""
    column = batch.column(name)
    _check_nulls(column, name, path, first_row)
    if pa.types.is_nested(column.type):
        raise DatasetError(f"{path}: column '{name}' holds {column.type}; an episode is one number or text a row")
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    broken = np.flatnonzero(values != values)  # NaN, which would be an episode of its own in every row
    if len(broken):
        found = f"column '{name}' is NaN at row {first_row + broken[0]}, so the episode there is unknown"
        raise DatasetError(f"{path}: {found}; fill it or remove those rows")
    return values


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind))


def _times(batch: pa.RecordBatch, name: str, path: Path) -> np.ndarray:
    """Return (N,) times, not narrowed; a missing one is NaN."""
    column = batch.column(name)
    if not _is_time(column.type):
        found = f"column '{name}' holds {column.type}, and times are numbers"
        raise DatasetError(f"{path}: {found}; convert it, or leave it out with --map time=")
    if pa.types.is_temporal(column.type):
        width = column.type.bit_width
        column = column.view(pa.int64() if width == 64 else pa.int32())
    return to_times(column.to_numpy(zero_copy_only=False))


def column_matrix(batch: pa.RecordBatch, names: tuple[str, ...], path: Path, first_row: int) -> np.ndarray:
    """Return (N, dim) floats from one list column or several scalar columns."""
    column = batch.column(names[0])
    if len(names) > 1 or not is_list(column.type):
        return np.stack([column_vector(batch, name, path, first_row) for name in names], axis=1)
    _check_nulls(column, names[0], path, first_row)
    values = column.flatten()
    _check_nulls(values, names[0], path, first_row, pc.list_parent_indices(column).to_numpy())
    if not pa.types.is_fixed_size_list(column.type):
        lengths = np.diff(column.offsets.to_numpy())
        if len(other := np.flatnonzero(lengths != lengths[:1])):
            found = f"{lengths[other[0]]} values at row {first_row + other[0]} and {lengths[0]} at row {first_row}"
            raise DatasetError(f"{path}: column '{names[0]}' has {found}; every row needs the same length")
    if not len(values):
        raise DatasetError(f"{path}: column '{names[0]}' has empty lists; every row needs at least one number")
    return _to_numbers(values, names[0], path).reshape(batch.num_rows, -1)


def column_vector(batch: pa.RecordBatch, name: str, path: Path, first_row: int) -> np.ndarray:
    """Return (N,) floats from a column of numbers."""
    column = batch.column(name)
    if is_list(column.type):  # of one number, as some writers store every column
        values = column_matrix(batch, (name,), path, first_row)
        if values.shape[1] != 1:
            found = f"column '{name}' holds lists of {values.shape[1]}, and one number a row is needed"
            raise DatasetError(f"{path}: {found}; map another column, or save what it means as a number")
        return values[:, 0]
    _check_nulls(column, name, path, first_row)
    return _to_numbers(column, name, path)


def _to_numbers(values: pa.Array, name: str, path: Path) -> np.ndarray:
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        remedy = "map a column of numbers or of lists of numbers"
        if pa.types.is_nested(kind):
            remedy = f"flatten it before, as one list or one column a number, or {remedy}"
        raise DatasetError(f"{path}: column '{name}' is of type {kind}; {remedy}")
    return to_float(values.to_numpy(zero_copy_only=False))


def _check_nulls(values: pa.Array, name: str, path: Path, first_row: int, rows: np.ndarray | None = None) -> None:
    """Refuse missing values; `rows` says of which row each value is, where a row has several."""
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        row = row if rows is None else int(rows[row])
        found = (
            f"column '{name}' has {counted(values.null_count, 'missing value')}, the first near row {first_row + row}"
        )
        raise DatasetError(f"{path}: {found}; fill them or remove those rows")


def _batches(path: Path, mapping: TableMapping) -> Batches:
    """Yield the batches of all files, each with its file."""
    files = table_files(path)
    require_same_columns(files, USUAL)
    for file in files:
        for batch in read_batches(file, partial(mapped, mapping, file)):
            yield file, batch


def require_same_columns(files: Sequence[Path], usual: Mapping[str, Sequence[str]]) -> None:
    """Refuse files of which a later one has a column of a usual name that the first, which is asked, has not."""
    first = set(table_schema(files[0]).names)
    for file in files[1:]:
        news = [name for name in table_schema(file).names if name in {*chain(*usual.values())} - first]
        if news:
            found = f"has the column '{news[0]}', which {files[0].name} lacks, so that nothing would read it"
            raise DatasetError(f"{file}: {found}; save all files with the same columns, or import them apart")


def mapped(mapping: TableMapping, file: Path, available: list[str]) -> Iterable[str]:
    """Return the columns of one file that a mapping needs."""
    return chain(*mapping.resolve(available, file).values())
