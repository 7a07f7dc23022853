"""One immutable, checksummed Arrow file: a single record batch of fixed-shape columns, mapped without a copy.

Arrow's own validation passes a flipped bit, and a mapped file that was cut short kills the process with
SIGBUS, so the length and the CRC-32 of the whole file are verified before it is mapped.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dipole_ray.columns import Column
from dipole_ray.data.schema import Rows, remaining_steps
from dipole_ray.data.sources.arrow_index import declared_bytes
from dipole_ray.errors import CorruptSegment
from dipole_ray.files.durable import commit_file

_CHUNK_BYTES = 1 << 24
# Files whose checksum was found right in this start of a run: what identifies each as it was then.
_verified: ContextVar[set[tuple[object, ...]] | None] = ContextVar("_verified", default=None)

ColumnLayout = dict[str, Column]  # what one row of a file holds, by name and in storage order


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """What a manifest records about one file."""

    name: str  # file name inside the dataset's folder
    rows: int  # rows, closing rows included
    transitions: int  # rows that are transitions; 0 in a side table
    bytes: int  # length of the file
    crc32: int  # CRC-32 of the whole file

    def to_json(self) -> dict[str, Any]:
        """Return the entry as a JSON object."""
        return asdict(self)


def arrow_schema(layout: ColumnLayout) -> pa.Schema:
    """Return the Arrow schema of columns: numbers, or lists of fixed length, one inside the other an axis."""
    fields = []
    for name, column in layout.items():
        kind = pa.from_numpy_dtype(np.dtype(column.dtype))
        for length in reversed(column.shape):
            kind = pa.list_(pa.field("item", kind, nullable=False), length)
        fields.append(pa.field(name, kind, nullable=False))
    return pa.schema(fields)


def record_batch(layout: ColumnLayout, buffers: dict[str, pa.Buffer], num_rows: int) -> pa.RecordBatch:
    """Wrap one buffer a column into a record batch without copying."""
    schema = arrow_schema(layout)
    columns = [_array(field.type, num_rows, buffers[field.name]) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _array(kind: pa.DataType, length: int, buffer: pa.Buffer) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, length, [None, buffer])
    inner = _array(kind.value_type, length * kind.list_size, buffer)
    return pa.Array.from_buffers(kind, length, [None], children=[inner])


def write_segment(directory: Path, stem: str, rows: Rows, layout: ColumnLayout) -> SegmentEntry:
    """Write validated rows, or the entries of a side table, as one durable file; return its entry for the manifest.

    The file's name is `stem`, what it is and its position in the dataset, and its checksum.
    """
    buffers = {name: pa.py_buffer(np.ascontiguousarray(rows[name])) for name in layout}
    batch = record_batch(layout, buffers, len(next(iter(rows.values()))))
    temporary = directory / f".{stem}.arrow.tmp"
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    checksum = file_checksum(temporary)
    final = directory / f"{stem}-{checksum:08x}.arrow"
    commit_file(temporary, final)
    transitions = int(np.count_nonzero(rows["remaining"])) if "remaining" in rows else 0
    return SegmentEntry(final.name, batch.num_rows, transitions, final.stat().st_size, checksum)


def file_checksum(path: Path) -> int:
    """Return the CRC-32 of a file, read once from beginning to end."""
    checksum = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


@contextmanager
def verified_once() -> Iterator[None]:
    """Read a file for its checksum once, however often it is opened within this: unless it changes meanwhile."""
    token = _verified.set(set())
    try:
        yield
    finally:
        _verified.reset(token)


def open_segment(directory: Path, entry: SegmentEntry, layout: ColumnLayout) -> Rows:
    """Verify one file against its manifest entry and return its columns, read-only views into the mapped file.

    Raises:
        CorruptSegment: If the file is missing or unreadable, or its length, checksum or layout is not what was
            recorded. The caller knows which rows these are, and adds the remedy.
    """
    path = directory / entry.name
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise CorruptSegment(f"{path}: is a link or no regular file; a dataset's files lie in its own folder")
        status = path.stat()
        if status.st_size != entry.bytes:
            raise CorruptSegment(f"{path}: length is {status.st_size} bytes, the manifest says {entry.bytes}")
        known = _verified.get()
        # A file that was written to since has another time of change, whatever its time of modification was set to.
        stamp = (path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, entry.crc32)
        if known is None or stamp not in known:
            checksum = file_checksum(path)
            if checksum != entry.crc32:
                raise CorruptSegment(f"{path}: checksum mismatch (stored {entry.crc32:08x}, read {checksum:08x})")
            if known is not None:
                known.add(stamp)
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError as error:
        raise CorruptSegment(f"{path}: the file is missing (manifest: {entry.bytes} bytes)") from error
    except (OSError, ValueError) as error:
        raise CorruptSegment(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    columns = map_columns(mapped, layout, path)
    found = len(next(iter(columns.values())))
    if found != entry.rows:
        raise CorruptSegment(f"{path}: holds {found} rows, the manifest says {entry.rows}")
    if "remaining" not in columns:
        return columns
    closing = columns["remaining"] == 0
    fits = closing[-1] and not closing[0] and entry.rows - np.count_nonzero(closing) == entry.transitions
    if not fits or not np.array_equal(columns["remaining"], remaining_steps(columns["masks"], closing)):
        raise CorruptSegment(f"{path}: column 'remaining' does not fit the masks and {entry.transitions} transitions")
    return columns


def map_columns(mapped: np.ndarray, layout: ColumnLayout, path: Path) -> Rows:
    """Return numpy views of an Arrow file's columns inside its mapping; they are writable if that is.

    Raises:
        CorruptSegment: If the file is not one uncompressed record batch of exactly these columns, in this order.
    """
    remedy = "the file was not written by this version; import the dataset again"
    try:
        if declared_bytes(path) > mapped.size:
            raise ValueError("its columns are compressed")
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        batches = reader.num_record_batches
        batch = reader.get_batch(0) if batches == 1 else None
        if batch is not None:
            batch.validate()  # Arrow believes the lengths that it reads
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptSegment(f"{path}: not a readable Arrow file ({error}); {remedy}") from error
    if batch is None or not batch.schema.equals(arrow_schema(layout)):
        raise CorruptSegment(f"{path}: {batches} record batches of {reader.schema}; one of other columns; {remedy}")
    base, views = mapped.ctypes.data, {}
    for name, column in layout.items():
        array = batch.column(name)
        buffer = array.buffers()[-1]
        offset, needed = buffer.address - base, batch.num_rows * column.bytes
        if array.null_count or array.offset or offset < 0 or offset + needed > mapped.size or buffer.size < needed:
            raise CorruptSegment(f"{path}: column '{name}' is compressed, has nulls or leaves the file; {remedy}")
        views[name] = np.ndarray((batch.num_rows, *column.shape), dtype=column.dtype, buffer=mapped, offset=offset)
    return views
