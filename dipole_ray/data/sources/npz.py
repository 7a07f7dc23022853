"""Stream the arrays of an .npz file in step, without trusting it.

Nothing is unpickled, nothing is extracted, sizes are checked before anything is read, and memory stays at one chunk.
zipfile verifies each array's CRC-32 when its last byte has been read.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from dipole_ray.data.durable import format_bytes
from dipole_ray.errors import DatasetError

MAX_EXPANSION = 100
"""A file that declares more than this many times its own size is refused (real recordings compress below 20)."""
_SMALL_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 26
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayHeader:
    """What one array of the file says about itself."""

    dtype: np.dtype
    """Element type."""
    shape: tuple[int, ...]
    """Dimensions, rows first."""
    is_fortran: bool
    """Whether the bytes lie column by column."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """Return the header of every array in `path`.

    Raises:
        DatasetError: If the file is no .npz, is cut short, holds Python objects, or declares sizes it cannot have.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; give the path of an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            declared = sum(info.file_size for info in members)
            if declared > max(_SMALL_BYTES, MAX_EXPANSION * path.stat().st_size):
                raise DatasetError(
                    f"{path}: {format_bytes(path.stat().st_size)} on disk declare {format_bytes(declared)} of arrays; "
                    "refused as a decompression bomb, get the file from its original source"
                )
            return {info.filename.removesuffix(".npy"): _read_header(path, archive, info) for info in members}
    except _BROKEN as error:
        raise _broken(path, error) from error


def stream_arrays(path: Path, headers: dict[str, ArrayHeader], names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the named arrays, all of the same number of rows, in chunks of the same rows.

    Raises:
        DatasetError: If the file is damaged.
    """
    num_rows = headers[names[0]].shape[0]
    chunk_rows = max(1024, _CHUNK_BYTES // max(1, sum(headers[name].row_bytes for name in names)))
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            streams = {name: stack.enter_context(archive.open(f"{name}.npy")) for name in names}
            whole = {}
            for name, stream in streams.items():
                header = _parse_header(stream)
                if header.is_fortran:
                    values = np.frombuffer(_read_exactly(stream, num_rows * header.row_bytes), dtype=header.dtype)
                    whole[name] = values.reshape(header.shape[::-1]).T
            for start in range(0, num_rows, chunk_rows):
                count = min(chunk_rows, num_rows - start)
                chunk = {}
                for name in names:
                    if name in whole:
                        chunk[name] = whole[name][start : start + count]
                        continue
                    data = _read_exactly(streams[name], count * headers[name].row_bytes)
                    chunk[name] = np.frombuffer(data, dtype=headers[name].dtype).reshape(
                        count, *headers[name].shape[1:]
                    )
                yield chunk
    except _BROKEN as error:
        raise _broken(path, error) from error


def _read_header(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ArrayHeader:
    with archive.open(info) as stream:
        header = _parse_header(stream)
        found = info.file_size - stream.tell()
    if header.dtype.hasobject:
        raise DatasetError(
            f"{path}: array '{info.filename}' holds Python objects, which could run code when loaded; "
            "save plain numbers with np.savez"
        )
    needed = header.dtype.itemsize * math.prod(header.shape)
    if found != needed or min(header.shape, default=0) < 0:
        raise DatasetError(
            f"{path}: array '{info.filename}' says shape {header.shape} ({needed} bytes) but {found} bytes are stored; "
            "the file is damaged, get it again"
        )
    return header


def _parse_header(stream: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy version {version} is not supported")
    return ArrayHeader(dtype=dtype, shape=shape, is_fortran=is_fortran and len(shape) > 1)


def _read_exactly(stream: IO[bytes], count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        part = stream.read(count - len(data))
        if not part:
            raise EOFError(f"array ends {count - len(data)} bytes early")
        data += part
    return data


def _broken(path: Path, error: BaseException) -> DatasetError:
    return DatasetError(f"{path}: not a complete .npz file ({error}); it is damaged or cut short, get it again")
