"""One immutable, checksummed Arrow file: a single record batch of fixed-shape columns, mapped without a copy.

Arrow's own validation passes a flipped bit, and a mapped file that was cut short kills the process with
SIGBUS, so the length and the CRC-32 of the whole file are verified before it is mapped.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dipole_ray.data.schema import Rows, Schema, remaining_steps
from dipole_ray.data.sources.arrow_index import declared_bytes
from dipole_ray.errors import CorruptSegment
from dipole_ray.files.durable import commit_file

_CHUNK_BYTES = 1 << 24

ColumnLayout = dict[str, tuple[np.dtype, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentEntry:
    """What a manifest records about one file."""

    name: str
    """File name inside the dataset's folder."""
    rows: int
    """Rows, closing rows included."""
    transitions: int
    """Rows that are transitions."""
    bytes: int
    """Length of the file."""
    crc32: int
    """CRC-32 of the whole file."""

    def to_json(self) -> dict[str, Any]:
        """Return the entry as a JSON object."""
        return asdict(self)


def arrow_schema(layout: ColumnLayout) -> pa.Schema:
    """Return the Arrow schema of columns given as name -> (dtype, shape of one row's entry)."""
    fields = []
    for name, (dtype, shape) in layout.items():
        kind = pa.from_numpy_dtype(dtype)
        if shape:
            kind = pa.list_(pa.field("item", kind, nullable=False), shape[0])
        fields.append(pa.field(name, kind, nullable=False))
    return pa.schema(fields)


def record_batch(layout: ColumnLayout, buffers: dict[str, pa.Buffer], num_rows: int) -> pa.RecordBatch:
    """Wrap one buffer a column into a record batch without copying."""
    schema = arrow_schema(layout)
    columns = []
    for name, (dtype, shape) in layout.items():
        width = shape[0] if shape else 1
        values = pa.Array.from_buffers(pa.from_numpy_dtype(dtype), num_rows * width, [None, buffers[name]])
        if shape:
            values = pa.Array.from_buffers(schema.field(name).type, num_rows, [None], children=[values])
        columns.append(values)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_segment(directory: Path, number: int, rows: Rows, schema: Schema) -> SegmentEntry:
    """Write rows as one file named after its content and make it durable.

    Args:
        directory: Existing folder.
        number: Position of the file in its dataset, part of the name.
        rows: Validated rows.
        schema: Their dimensions.

    Returns:
        The entry for the manifest.
    """
    buffers = {name: pa.py_buffer(np.ascontiguousarray(rows[name])) for name in schema.columns}
    batch = record_batch(schema.columns, buffers, len(rows["remaining"]))
    temporary = directory / f".data-{number:05d}.arrow.tmp"
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    checksum = file_checksum(temporary)
    final = directory / f"data-{number:05d}-{checksum:08x}.arrow"
    commit_file(temporary, final)
    return SegmentEntry(
        name=final.name,
        rows=batch.num_rows,
        transitions=int(np.count_nonzero(rows["remaining"])),
        bytes=final.stat().st_size,
        crc32=checksum,
    )


def file_checksum(path: Path) -> int:
    """Return the CRC-32 of a file, read once from beginning to end."""
    checksum = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def open_segment(directory: Path, entry: SegmentEntry, schema: Schema) -> Rows:
    """Verify one file against its manifest entry and map it.

    Returns:
        Read-only views into the mapped file, one a column; nothing is copied.

    Raises:
        CorruptSegment: If the file is missing or unreadable, or its length, checksum or layout is not what was
            recorded. The caller knows which rows these are, and adds the remedy.
    """
    path = directory / entry.name
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise CorruptSegment(f"{path}: is a link or no regular file; a dataset's files lie in its own folder")
        length = path.stat().st_size
        if length != entry.bytes:
            raise CorruptSegment(f"{path}: length is {length} bytes, the manifest says {entry.bytes}")
        checksum = file_checksum(path)
        if checksum != entry.crc32:
            raise CorruptSegment(f"{path}: checksum mismatch (stored {entry.crc32:08x}, read {checksum:08x})")
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError as error:
        raise CorruptSegment(f"{path}: the file is missing (manifest: {entry.bytes} bytes)") from error
    except (OSError, ValueError) as error:
        raise CorruptSegment(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    columns = map_columns(mapped, schema.columns, path)
    if len(columns["remaining"]) != entry.rows:
        raise CorruptSegment(f"{path}: holds {len(columns['remaining'])} rows, the manifest says {entry.rows}")
    closing = columns["remaining"] == 0
    fits = closing[-1] and not closing[0] and entry.rows - np.count_nonzero(closing) == entry.transitions
    if not fits or not np.array_equal(columns["remaining"], remaining_steps(columns["masks"], closing)):
        raise CorruptSegment(f"{path}: column 'remaining' does not fit the masks and {entry.transitions} transitions")
    return columns


def map_columns(mapped: np.ndarray, layout: ColumnLayout, path: Path) -> Rows:
    """Return numpy views of an Arrow file's columns inside its mapping.

    Args:
        mapped: The whole file as uint8; the views are writable if it is.
        layout: Columns the file must have, in order.
        path: For error messages.

    Raises:
        CorruptSegment: If the file is not one uncompressed record batch of exactly these columns.
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
    for name, (dtype, shape) in layout.items():
        column = batch.column(name)
        buffer = column.buffers()[-1]
        offset, needed = buffer.address - base, batch.num_rows * dtype.itemsize * (shape[0] if shape else 1)
        if column.null_count or column.offset or offset < 0 or offset + needed > mapped.size or buffer.size < needed:
            raise CorruptSegment(f"{path}: column '{name}' is compressed, has nulls or leaves the file; {remedy}")
        views[name] = np.ndarray((batch.num_rows, *shape), dtype=dtype, buffer=mapped, offset=offset)
    return views
