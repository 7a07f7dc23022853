"""The online ring's file: one preallocated Arrow record batch that is filled in place.

It is a valid Arrow IPC (Feather) file from the first moment on, so any Arrow reader can look into a running
experiment. Space is reserved when the file is made: a full disk is an error at the start and not a SIGBUS later.
"""

import fcntl
import os
import shutil
import time
from io import FileIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from dipole_ray.columns import Column, Schema
from dipole_ray.data.schema import Rows
from dipole_ray.data.segment import ColumnLayout, map_columns, record_batch
from dipole_ray.errors import ConfigError, CorruptSegment, DatasetError
from dipole_ray.files.durable import format_bytes, replacing

LOCK_WAIT_S = 20.0  # a killed process keeps its lock until its pages are unmapped
_METADATA_BYTES = 1 << 16


def ring_layout(schema: Schema) -> ColumnLayout:
    """Return the ring's columns: those of every dataset and the commit mark `sequence`."""
    return {**schema.columns, "sequence": Column(dtype="int64")}


def create_ring_file(path: Path, schema: Schema, num_rows: int) -> None:
    """Make a ring file of `num_rows` empty rows; quick, because the zeros are never written."""
    layout = ring_layout(schema)
    sizes = {name: num_rows * column.bytes for name, column in layout.items()}
    needed = sum(sizes.values()) + _METADATA_BYTES
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if needed > free:
            found = f"a ring of {num_rows} rows takes {format_bytes(needed)}, the disk has {format_bytes(free)} free"
            fits = f"(training.replay_capacity, at most {8 * free * num_rows // (9 * needed)} here)"
            raise DatasetError(f"{path}: {found}; lower the replay capacity {fits} or choose another disk")
        with replacing(path) as temporary:
            _write_empty(temporary, layout, sizes, num_rows)
    except OSError as error:
        found = f"cannot make the replay's ring of {format_bytes(needed)} ({error.strerror or error})"
        remedy = "free space, lower the replay capacity or choose another folder"
        raise DatasetError(f"{path}: {found}; {remedy}") from error


def _write_empty(path: Path, layout: ColumnLayout, sizes: dict[str, int], num_rows: int) -> None:
    with _FileWithHoles(path, "w+") as stream:
        stream.truncate(max(sizes.values()))
        zeros = np.memmap(path, dtype=np.uint8, mode="r")  # stands in for every column; holes take no memory
        buffers = {name: pa.py_buffer(zeros[:size]) for name, size in sizes.items()}
        batch = record_batch(layout, buffers, num_rows)
        with pa.ipc.new_file(pa.PythonFile(stream, mode="w"), batch.schema) as writer:
            writer.write_batch(batch)
        length = stream.tell()
        stream.truncate(length)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, length)


class _FileWithHoles(FileIO):
    """A file in which Arrow's writer leaves its metadata, and a hole for each of the (all-zero) column buffers."""

    def write(self, data: Any) -> int:
        """Write metadata; move past a column's buffer."""
        if not isinstance(data, pa.Buffer):
            return super().write(data)
        self.seek(data.size, os.SEEK_CUR)
        return int(data.size)


def lock_ring_file(path: Path) -> IO[bytes]:
    """Become the ring's only writer for as long as the returned file stays open."""
    stream = path.open("rb")
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return stream
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                stream.close()
                remedy = "close it (or end the run that owns it) first"
                raise DatasetError(f"{path}: another replay is writing to this ring; {remedy}") from error
        except OSError:  # some network file systems have no locks; a single writer is then up to the user
            return stream
        time.sleep(0.05)


def map_ring_file(path: Path, schema: Schema, num_rows: int) -> tuple[np.memmap, Rows]:
    """Map a ring file for writing; return the mapping and views of its columns.

    Raises:
        CorruptSegment: If the file is cut short or not a ring.
        ConfigError: If it is a ring of another size or other columns.
    """
    remedy = "restore the file, or delete it and start the online phase without resuming"
    if path.stat().st_size == 0:
        raise CorruptSegment(f"{path}: length is 0 bytes; all online rows are affected: {remedy}")
    mapped = np.memmap(path, dtype=np.uint8, mode="r+")
    try:
        batch = pa.ipc.open_file(pa.py_buffer(mapped)).get_batch(0)
        found = {field.name: _column_of(field.type) for field in batch.schema}
    except (pa.ArrowException, OSError, ValueError, ConfigError) as error:
        raise CorruptSegment(f"{path}: cut short or not a replay ring ({error}); {remedy}") from error
    layout = ring_layout(schema)
    if found != layout or batch.num_rows != num_rows:
        varying = {name for name in (*found, *layout) if name.startswith(("observations", "actions"))}
        texts = [", ".join(f"{name} {each[name]}" for name in each if name in varying) for each in (found, layout)]
        raise ConfigError(
            f"{path}: the ring there has {batch.num_rows} rows of {texts[0]}, this replay needs {num_rows} rows of "
            f"{texts[1]}; use the capacity and environment it was made with, or delete the file"
        )
    return mapped, map_columns(mapped, layout, path)


def _column_of(kind: pa.DataType) -> Column:
    """Return the column that an Arrow type stands for."""
    shape = []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    return Column(tuple(shape), np.dtype(kind.to_pandas_dtype()).name)
