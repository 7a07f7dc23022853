"""The files that a table comes in: Parquet, Arrow (Feather), or an .npz or HDF5 whose arrays have one row a transition.

What a file is decides its beginning, its suffix only where that says nothing. Files are read in batches of rows, and
are trusted in nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dipole_ray.data.sources.array_files import (
    ARRAY_SUFFIXES,
    ARROW,
    HDF5,
    PARQUET,
    ZIP,
    array_batches,
    array_contents,
    array_schema,
    beginning,
    is_arrays,
)
from dipole_ray.data.sources.arrow_index import declared_bytes
from dipole_ray.data.sources.continuity import natural_order
from dipole_ray.data.sources.images import holds_images, image_column, is_encoded, is_list
from dipole_ray.data.sources.npz import IMAGE_RATIO, check_expansion
from dipole_ray.data.sources.reading import Contents, incomplete
from dipole_ray.errors import DatasetError

SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")
_STREAM = b"\xff\xff\xff\xff"  # how an Arrow stream begins
_BATCH_ROWS = 65_536
_IMAGE_ROWS = 128  # of images that are read at once: of a camera's 640 x 480 they take 118 MB
_BUFFER_BYTES = 1 << 20
_BROKEN = (pa.ArrowException, OSError, ValueError, MemoryError)


def table_files(path: Path) -> list[Path]:
    """Return the table files at `path`, in the order of their names and of the numbers in these."""
    suffixes = (*SUFFIXES, *ARRAY_SUFFIXES)
    found = [file for file in _visible(path) if _is_table(file)] if path.is_dir() else [path]
    files = sorted(found, key=natural_order)
    if not files or not (files[0].suffix in suffixes or beginning(files[0]).startswith((PARQUET, ARROW, ZIP, HDF5))):
        inside = "".join(f"; {warning}" for warning in unread_files(path))
        remedy = f"give a file, or a folder of files, ending in {', '.join(suffixes)}"
        raise DatasetError(f"{path}: no table here; {remedy}{inside}")
    strange = [file for file in files if not file.is_file()]  # a link to nowhere, a folder, a pipe that would block
    if strange:
        raise DatasetError(f"{strange[0]}: no table here, not a regular file; remove it or restore what it points to")
    return files


def unread_files(path: Path) -> list[str]:
    """Return, as `what; remedy`, which files and folders inside a folder of tables are not read."""
    if not path.is_dir():
        return []
    folders = sorted(inside.name for inside in _visible(path) if inside.is_dir())
    files = sorted(inside.name for inside in _visible(path) if inside.is_file() and not _is_table(inside))
    told = []
    if folders:
        told.append(f"folders inside are not read ({_listed(folders)}); import each, or move files up")
    if files:
        told.append(f"files inside that are no tables are not read ({_listed(files)}); convert those that hold rows")
    return told


def _visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, without what Spark, Dask and systems put beside tables (`_metadata`, `.crc`)."""
    return [inside for inside in folder.iterdir() if not inside.name.startswith(("_", "."))]


def _is_table(file: Path) -> bool:
    return file.suffix in (*SUFFIXES, *ARRAY_SUFFIXES) or beginning(file).startswith((PARQUET, ARROW, HDF5))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def table_schema(path: Path) -> pa.Schema:
    """Return the columns of the (first) file of a table."""
    file = table_files(path)[0]
    if is_arrays(file):
        return array_schema(file)
    return _open_table(file)[1]


def contents(path: Path) -> Contents:
    """Return the columns of the (first) file of a table, with their types and shapes."""
    file = table_files(path)[0]
    if is_arrays(file):
        return array_contents(file)
    table, schema = _open_table(file)
    lists = [field.name for field in schema if _has_shape(field.type) and schema.names.count(field.name) == 1]
    first = next(read_batches(file, lambda _: lists, 1), None) if lists else None
    try:
        numbers = range(table.num_record_batches) if isinstance(table, pa.RecordBatchFileReader) else ()
        count = sum(table.get_batch(number).num_rows for number in numbers) if numbers else table.metadata.num_rows
    except _BROKEN as error:
        raise incomplete(file, "table", error) from error
    widths = {} if first is None else {name: _shape_of(first.column(name), name, file) for name in lists}
    return {field.name: (_type_text(field.type), (count, *widths.get(field.name, ()))) for field in schema}


def _type_text(kind: pa.DataType) -> str:
    """Return a type for people: of images that of their numbers."""
    if isinstance(kind, pa.BaseExtensionType):
        return _type_text(kind.storage_type)
    if is_encoded(kind):
        return "pictures"
    while holds_images(kind):
        kind = kind.value_type
    return str(kind.value_type if is_list(kind) and kind.value_type == pa.uint8() else kind)


def _has_shape(kind: pa.DataType) -> bool:
    return is_list(kind) or is_encoded(kind) or isinstance(kind, pa.BaseExtensionType)


def _shape_of(column: pa.Array, name: str, file: Path) -> tuple[int, ...]:
    """Return the shape of the first entry of a column, () of what has none."""
    if not holds_images(column.type):
        return (len(column[0].as_py() or ()),) if is_list(column.type) else ()
    try:
        return image_column(column, name, file, 0).shape[1:]
    except DatasetError:  # an import says why
        return ()


def read_batches(
    file: Path, choose: Callable[[list[str]], Iterable[str]], rows: int = _BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of one file that have rows, with the columns that `choose` chooses."""
    if is_arrays(file):
        yield from array_batches(file, choose)
        return
    try:
        table, available = _open_table(file)
        names = list(dict.fromkeys(choose(list(available.names))))
        images = {name for name in names if _is_wide(available.field(name).type)}
        rows = min(rows, _IMAGE_ROWS) if images else rows
        if isinstance(table, pq.ParquetFile):
            _check_parquet(table, names, images, file)
            batches = table.iter_batches(batch_size=rows, columns=names, use_threads=False)
        else:
            check_expansion(file, declared_bytes(file) // (IMAGE_RATIO if images else 1), "batches")
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
        for batch in batches:
            # Arrow believes the lengths and offsets that it reads: without this, a wrong one ends the process.
            batch.validate(full=True)
            for start in range(0, batch.num_rows, rows if images else max(1, batch.num_rows)):
                part = batch.slice(start, rows) if images else batch
                yield pa.RecordBatch.from_arrays([_plain(part.column(name)) for name in names], names=names)
    except _BROKEN as error:
        raise incomplete(file, "table", error) from error


def _plain(values: pa.Array) -> pa.Array:
    """Return a column as it is stored, whatever types this process has given names to, and without a dictionary.

    A tensor column is a list column to a process that has not imported `ray.data`, and an extension to one that has.
    """
    if isinstance(values, pa.ExtensionArray):
        axes = getattr(values.type, "permutation", None) or []
        if axes != sorted(axes):
            raise ValueError(f"a column of {values.type} has its axes in another order; save it as lists of numbers")
        return _nested(_plain(values.storage), getattr(values.type, "shape", ()))
    if isinstance(values, pa.DictionaryArray):
        return _plain(values.dictionary_decode())
    if isinstance(values, pa.ListViewArray | pa.LargeListViewArray):
        ends = np.cumsum(values.value_lengths().fill_null(0).to_numpy())
        values = pa.LargeListArray.from_arrays(np.append(0, ends), values.flatten(), mask=values.is_null())
    inner = values.type.value_type if is_list(values.type) else values.type
    if pa.types.is_decimal(inner):
        return values.cast(pa.large_list(pa.float64()) if is_list(values.type) else pa.float64())
    return values


def _is_wide(kind: pa.DataType) -> bool:
    """Return whether a column may hold images, so that few rows are read at once."""
    if isinstance(kind, pa.BaseExtensionType):
        return _is_wide(kind.storage_type)
    return holds_images(kind) or (is_list(kind) and kind.value_type == pa.uint8())


def _nested(values: pa.Array, shape: Sequence[int]) -> pa.Array:
    """Return a column of tensors as lists of lists, if they are images; of others it is one of vectors."""
    if len(shape) != 3 or values.null_count or values.type.value_type != pa.uint8():
        return values
    inner = values.flatten()
    for length in reversed(shape):
        inner = pa.FixedSizeListArray.from_arrays(inner, length)
    return inner


def _check_parquet(table: pq.ParquetFile, names: list[str], images: set[str], file: Path) -> None:
    """Refuse a file whose index promises far more numbers than a recording of its size can hold."""
    leaves = [i for i in range(len(table.schema)) if table.schema.column(i).path.split(".")[0] in names]
    declared = 0
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        if not group.num_rows:
            continue
        # pyarrow's view of a column's index ends the process where that is damaged; its reader raises.
        next(table.iter_batches(batch_size=1, row_groups=[number], columns=names, use_threads=False), None)
        for column in map(group.column, leaves):
            size = max(4 * column.num_values, 4 * group.num_rows, column.total_uncompressed_size)
            # Parquet has no numbers below 4 bytes.
            declared += size // (4 * IMAGE_RATIO) if column.path_in_schema.split(".")[0] in images else size
    check_expansion(file, declared, f"columns {', '.join(names[:8])}")


def _open_table(file: Path) -> tuple[pq.ParquetFile | pa.RecordBatchFileReader, pa.Schema]:
    """Open a .parquet or else Arrow file; return it and its columns."""
    try:
        # Nothing is read ahead and no thread decodes beside: what is held must not depend on how busy the machine is.
        start = beginning(file)
        if start.startswith(PARQUET) or (file.suffix == ".parquet" and not start.startswith(ARROW)):
            table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            return table, table.schema_arrow
        if start.startswith(_STREAM):
            raise DatasetError(f"{file}: is an Arrow stream, not an Arrow file; write it with pyarrow.ipc.new_file")
        table = pa.ipc.open_file(pa.OSFile(str(file)), options=pa.ipc.IpcReadOptions(use_threads=False))
        return table, table.schema
    except _BROKEN as error:
        raise incomplete(file, "table", error) from error
