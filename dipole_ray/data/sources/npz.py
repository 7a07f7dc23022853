"""Stream the arrays of an .npz file in step, without trusting it.

Nothing is unpickled, nothing is extracted, sizes are checked before anything is read, and memory stays at a few chunks
(an array stored column by column is held whole). zipfile verifies each array's CRC-32 when its last byte has been read.
"""

import io
import math
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from dipole_ray.data.sources.reading import DAMAGED, bad_array, incomplete
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import format_bytes

MAX_EXPANSION = 100  # times its own size that a file may declare (real recordings compress below 20)
SMALL_BYTES = 1 << 28  # what any file may declare, however small it is
IMAGE_RATIO = 10  # times better than numbers that images may compress: a drawing has few colours
MAX_MEMBERS = 1000
_CHUNK_BYTES = 1 << 22
_PART_BYTES = 1 << 20
_MAX_HEADER_BYTES = 10_000
_IS_ENCRYPTED = 1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile, zlib and numpy raise on damage; NotImplementedError is zipfile's, of a compression it does not know.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What one array of the file says about itself."""

    dtype: np.dtype  # element type
    shape: tuple[int, ...]  # dimensions, rows first
    is_fortran: bool  # whether the bytes lie column by column
    start: int  # bytes before the first number
    crc32: int  # of the array's file, as the archive states it; compared when the array is read to its end

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """Return the header of every array in `path`.

    DatasetError if the file is no .npz, is cut short, holds Python objects, or declares sizes it cannot have.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; give the path of an .npz file")
    try:
        with _open_archive(path) as archive:
            _check_members(path, archive.infolist())
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            what = f"arrays {', '.join(info.filename for info in members[:8])}"
            try:
                found = {info.filename.removesuffix(".npy"): _read_header(path, archive, info) for info in members}
            except DatasetError:
                check_expansion(path, sum(info.file_size for info in members), what)
                raise
            check_expansion(path, sum(compressible(header.dtype, header.shape) for header in found.values()), what)
            return found
    except _BROKEN as error:
        raise incomplete(path, ".npz file", error) from error


def compressible(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Return the bytes of an array, of images as many as of numbers that compress alike."""
    is_images = dtype == np.uint8 and len(shape) > 2
    return dtype.itemsize * math.prod(shape) // (IMAGE_RATIO if is_images else 1)


def check_expansion(path: Path, declared: int, what: str) -> None:
    """Raise DatasetError if a file declares so many bytes of `what`, once decompressed, that they fill the memory."""
    held = path.stat().st_size
    if declared > max(SMALL_BYTES, MAX_EXPANSION * held):
        remedy = "refused as a decompression bomb, get the file from its original source"
        raise DatasetError(f"{path}: {format_bytes(held)} on disk declare {format_bytes(declared)} of {what}; {remedy}")


def stream_arrays(path: Path, headers: dict[str, ArrayHeader], names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the named arrays, all of the same number of rows, in chunks of the same rows."""
    num_rows = headers[names[0]].shape[0]
    chunk_rows = max(64, _CHUNK_BYTES // max(1, sum(headers[name].row_bytes for name in names)))
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(_open_archive(path))
            streams = {name: stack.enter_context(archive.open(f"{name}.npy")) for name in names}
            for name, stream in streams.items():
                _read_exactly(stream, headers[name].start)
            whole = {
                name: _read_numbers(streams[name], headers[name], headers[name].shape[::-1]).T
                for name in names
                if headers[name].is_fortran
            }
            for start in range(0, num_rows, chunk_rows):
                count = min(chunk_rows, num_rows - start)
                yield {
                    name: whole[name][start : start + count]
                    if name in whole
                    else _read_numbers(stream, headers[name], (count, *headers[name].shape[1:]))
                    for name, stream in streams.items()
                }
    except _BROKEN as error:
        raise incomplete(path, ".npz file", error) from error


class _Untrusted(io.BufferedReader):
    """A file whose table of contents cannot be as long as it likes."""

    longest_read: int | None = 1 << 20

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes, unless that is too much."""
        if self.longest_read is not None and size is not None and size > self.longest_read:
            raise zipfile.BadZipFile(f"a table of contents of {size} bytes")
        return super().read(size)


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with _Untrusted(io.FileIO(path)) as stream, zipfile.ZipFile(stream) as archive:
        stream.longest_read = None
        yield archive


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse what numpy never writes: no file of a recording has it, and each has served to mislead a reader."""
    seen: set[str] = set()
    if len(members) > MAX_MEMBERS:
        found = f"holds {len(members)} members ('{members[0].filename}', ...), at most {MAX_MEMBERS} are read"
        raise DatasetError(f"{path}: {found}; save one array a column with np.savez")
    for info in members:
        name = PurePosixPath(info.filename)
        findings = {
            "points outside the archive": name.is_absolute() or ".." in name.parts or "\\" in info.filename,
            "is a symbolic link": stat.S_ISLNK(info.external_attr >> 16),
            "is there twice": info.filename in seen,
            "is encrypted": info.flag_bits & _IS_ENCRYPTED,
            # zipfile decompresses other methods a block at a time, and one block can hold gigabytes.
            f"is compressed by method {info.compress_type}": info.compress_type not in _METHODS,
        }
        finding = next((text for text, is_found in findings.items() if is_found), None)
        if finding is not None:
            remedy = "save it again with np.savez or np.savez_compressed"
            raise bad_array(path, info.filename, f"{finding}, which no .npz of numpy's has", remedy)
        seen.add(info.filename)


def _read_header(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ArrayHeader:
    try:
        with archive.open(info) as stream:
            shape, is_fortran, dtype = _parse_header(stream)
            start = stream.tell()
    except _BROKEN as error:
        raise bad_array(path, info.filename, f"has no readable header ({error})", DAMAGED) from error
    if dtype.hasobject:
        what = "holds Python objects, which could run code when loaded"
        raise bad_array(path, info.filename, what, "save plain numbers with np.savez")
    found, needed = info.file_size - start, dtype.itemsize * math.prod(shape)
    if found != needed or min(shape, default=0) < 0:
        what = f"says shape {shape} ({needed} bytes) but {found} bytes are stored"
        raise bad_array(path, info.filename, what, DAMAGED)
    return ArrayHeader(dtype, shape, is_fortran and len(shape) > 1, start, info.CRC)


def _parse_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version} is not supported")
    prefix = bytes(_read_exactly(stream, 2 if version == (1, 0) else 4))
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER_BYTES:  # numpy would read all of it first
        raise ValueError(f"a header of {length} bytes, at most {_MAX_HEADER_BYTES} are read")
    text = io.BytesIO(prefix + bytes(_read_exactly(stream, length)))
    try:
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(text)
    except Exception as error:  # numpy lets out whatever its parsers raise: TokenError, MemoryError, IndexError, ...
        raise ValueError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _read_numbers(stream: IO[bytes], header: ArrayHeader, shape: tuple[int, ...]) -> np.ndarray:
    size = header.dtype.itemsize * math.prod(shape)
    return np.frombuffer(_read_exactly(stream, size), header.dtype).reshape(shape)


def _read_exactly(stream: IO[bytes], count: int) -> bytearray:
    data, done = bytearray(count), 0
    while done < count:
        part = stream.read(min(count - done, _PART_BYTES))
        if not part:
            raise EOFError(f"array ends {count - done} bytes early")
        data[done : done + len(part)] = part
        done += len(part)
    return data
