"""Read the arrays of an HDF5 file in slices, without trusting it.

libhdf5 follows links and virtual datasets into other files, loads filters as shared libraries, answers for data that
was never written, and inflates a chunk to whatever it holds. So only plain arrays of numbers under hard links are
opened, all of whose bytes are in this file, and compressed chunks are inflated here, up to the size that they declare.
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from dipole_ray.data.sources.guarantees import check_flags
from dipole_ray.data.sources.npz import check_expansion, compressible
from dipole_ray.data.sources.reading import OTHER_LAYOUT, Contents, bad_array, incomplete
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import format_bytes

Group: TypeAlias = h5py.Group

GROUP = "group"  # what a group is called among arrays
SLICE_BYTES = 1 << 22  # what is read at once
_MAX_BAND_BYTES = 1 << 25  # chunks that hold the same rows, taken together; h5py's own choice is below a few megabytes
_GZIP, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
_PIPELINES = ((), (_GZIP,), (_SHUFFLE,), (_SHUFFLE, _GZIP))
_JPEG = b"\xff\xd8\xff"
_LINKS = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "a link into another file"}
_BROKEN = (OSError, RuntimeError, ValueError, KeyError, EOFError, MemoryError, zlib.error)
_REPACK = "save it again as a plain array with h5py's create_dataset"


@contextmanager
def open_hdf5(path: Path) -> Iterator[Group]:
    """Open a file and give its root; what libhdf5 finds wrong with it meanwhile becomes a DatasetError."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; give the path of an .hdf5 file")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except _BROKEN as error:
        raise incomplete(path, "HDF5 file", error) from error


def shape_of_numbers(value: object) -> tuple[int, ...]:
    """Return the shape of an array of real numbers; () of anything else."""
    if not isinstance(value, h5py.Dataset) or value.dtype.kind not in "fiu":
        return ()
    return tuple(value.shape or ())  # an empty one has None


def is_group(value: object) -> bool:
    """Return whether this is a group, not an array or nothing."""
    return isinstance(value, h5py.Group)


def child_names(group: Group) -> list[str]:
    """Return the names in a group, without looking at what they lead to; h5py gives bytes where one is no text."""
    return [name for name in group if isinstance(name, str)]


def child(path: Path, group: Group, name: str) -> Group | h5py.Dataset | None:
    """Return what lies in a group under `name` (a/b: b in a), or None; links that could leave the file are refused."""
    for part in name.split("/"):
        # `in`, `get` and `[]` would follow a link before they say that it is one.
        if not is_group(group) or not part.strip(".") or not group.id.links.exists(part.encode()):
            return None
        kind = group.id.links.get_info(part.encode()).type
        if kind != h5py.h5l.TYPE_HARD:
            raise DatasetError(
                f"{path}: '{_inside(group, part)}' is {_LINKS.get(kind, 'a link of another kind')}, which can lead out "
                "of the file and is not followed; copy what it points to into this file"
            )
        group = group[part]
    return group


def _inside(group: Group, name: str) -> str:
    return f"{group.name}/{name}".lstrip("/")


def hdf5_contents(path: Path) -> Contents:
    """Return the arrays at the top of a file, with their types and shapes; groups have none."""
    with open_hdf5(path) as file:
        found = {name: child(path, file, name) for name in child_names(file)}
        return {
            name: (str(value.dtype), value.shape or ()) if isinstance(value, h5py.Dataset) else (GROUP, ())
            for name, value in found.items()
        }


class Array:
    """One array of numbers, rows first, of which any rows can be read; fastest in order."""

    def __init__(self, path: Path, group: Group, name: str, dims: Sequence[int], kinds: str = "fiub") -> None:
        """Check what the file says of the array `name` in a group, before any of it is read.

        It must have one of the numbers of dimensions `dims`, and a type of numpy's `kinds`.
        """
        found = child(path, group, name)
        self.name, self._path, self._where = name, path, _inside(group, name)
        if found is None:
            there = ", ".join(sorted(child_names(group))[:12]) or "nothing"
            raise self._error(f"is missing (found {there})", OTHER_LAYOUT)
        if not isinstance(found, h5py.Dataset):
            raise self._error(f"is a {type(found).__name__.lower()}, not an array", _REPACK)
        self._dataset = found
        self._check_type(kinds)
        self.shape: tuple[int, ...] = found.shape or ()
        if len(self.shape) not in dims or 0 in self.shape[1:]:
            expected = " or ".join("(rows,)" if count == 1 else "(rows, dim)" for count in dims)
            raise self._error(f"has shape {found.shape}; expected {expected}", "flatten it before saving")
        self._check_storage()
        self._band: tuple[int, np.ndarray] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self._dtype.itemsize * math.prod(self.shape[1:])

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole array."""
        return self.shape[0] * self.row_bytes

    @property
    def declared_bytes(self) -> int:
        """Bytes that count for `check_expansion`."""
        return compressible(self._dtype, self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers in the file."""
        return self._dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows, (stop - start, ...) in the type of the file."""
        if not self._filters:
            plain: np.ndarray = self._dataset[start:stop]
            return plain
        rows, parts = self._chunks[0], []
        while start < stop:
            index, offset = divmod(start, rows)
            if self._band is None or self._band[0] != index:
                self._band = None  # two at a time are one too many
                self._band = (index, self._read_band(index * rows))
            parts.append(self._band[1][offset : offset + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _read_band(self, first: int) -> np.ndarray:
        """Return the rows from `first` on that lie in the same chunks."""
        shape = (min(self._chunks[0], self.shape[0] - first), *self.shape[1:])
        band = np.empty(shape, self._dtype)
        for corner in product(*(range(0, size, step) for size, step in zip(shape, self._chunks, strict=True))):
            place = band[tuple(slice(low, low + step) for low, step in zip(corner, self._chunks, strict=True))]
            place[...] = self._read_chunk((first, *corner[1:]))[tuple(map(slice, place.shape))]
        return band

    def _read_chunk(self, corner: tuple[int, ...]) -> np.ndarray:
        size = self._dtype.itemsize * math.prod(self._chunks)
        try:
            stored = self._dataset.id.get_chunk_info_by_coord(corner).size
            if stored > size + size // 8 + 1024:
                raise ValueError(f"{stored} bytes hold a chunk of {size}")
            skipped, data = self._dataset.id.read_direct_chunk(corner)
            for position, code in reversed(list(enumerate(self._filters))):
                if not skipped >> position & 1:
                    data = _inflate(data, size) if code == _GZIP else _unshuffle(data, self._dtype.itemsize)
            return np.frombuffer(data, self._dtype).reshape(self._chunks)
        except _BROKEN as error:
            found = f"is damaged in the chunk at row {corner[0]} ({str(error)[:200]})"
            raise self._error(found, "get the file again") from error

    def _check_type(self, kinds: str) -> None:
        try:
            self._dtype: np.dtype = self._dataset.dtype
        except (TypeError, ValueError) as error:
            raise self._error(f"is of a type that numpy has not ({error})", _REPACK) from error
        # h5py's own enumeration of False and True is a bool; it fails on others whose names are no text.
        is_enumeration = h5py.check_enum_dtype(self._dtype) is not None
        if self._dtype.kind not in kinds or self._dtype.hasobject or is_enumeration:
            wanted = "numbers" if "b" in kinds else "float32"
            wanted += " (discrete data is not supported)" if kinds == "f" else ""
            info: Any = h5py.check_dtype(vlen=self._dtype) or h5py.check_dtype(ref=self._dtype)
            kind = f"{self._dtype} (of {getattr(info, '__name__', info)})" if info is not None else str(self._dtype)
            kind = "an enumeration" if is_enumeration else kind
            raise self._error(f"is of type {kind}", f"save it as {wanted}")

    def _check_storage(self) -> None:
        """Refuse an array whose numbers are elsewhere, were never written, or need somebody else's code."""
        properties = self._dataset.id.get_create_plist()
        layout = properties.get_layout()
        if layout == h5py.h5d.VIRTUAL or properties.get_external_count():
            kind = "virtual dataset" if layout == h5py.h5d.VIRTUAL else "dataset with external storage"
            raise self._error(f"is a {kind}, whose numbers are in other files", _REPACK)
        found = [properties.get_filter(index) for index in range(properties.get_nfilters())]
        self._filters: tuple[int, ...] = tuple(code for code, _, _, _ in found)
        if self._filters not in _PIPELINES:
            names = ", ".join(f"{name.decode(errors='replace')} ({code})" for code, _, _, name in found)
            raise self._error(f"is filtered by {names}; only gzip and shuffle are read", _REPACK)
        check_expansion(self._path, self.declared_bytes, f"array '{self._where}'")
        if layout == h5py.h5d.CHUNKED:
            self._chunks: tuple[int, ...] = self._dataset.chunks
            counts = [math.ceil(size / step) for size, step in zip(self.shape, self._chunks, strict=True)]
            expected, written, unit = math.prod(counts), self._dataset.id.get_num_chunks(), "chunks"
            band = self._dtype.itemsize * math.prod(self._chunks) * math.prod(counts[1:])
            if band > _MAX_BAND_BYTES:
                raise self._error(f"has chunks of {format_bytes(band)}", "save it again with h5py's chunks=True")
            if self._filters and not h5py.h5t.py_create(self._dtype, logical=True).equal(self._dataset.id.get_type()):
                raise self._error(f"is {self._dtype} in a form of its own", _REPACK)
        else:
            expected, written, unit = self.num_bytes, self._dataset.id.get_storage_size(), "bytes"
        if written != expected:
            what = f"says shape {self.shape} ({expected} {unit}) but {written} {unit} were written"
            raise self._error(what, "the file is damaged or its writer was interrupted, get it again")

    def _error(self, found: str, remedy: str) -> DatasetError:
        return bad_array(self._path, self._where, found, remedy)


def encoded_rows(path: Path, group: Group, name: str) -> list[bytes] | None:
    """Return the encoded pictures of an array, one a row; None of an array that holds none.

    Rows are bytes of any lengths, or where all JPEGs are as long, a table of bytes that begins as each does.
    """
    found = child(path, group, name)
    if not isinstance(found, h5py.Dataset) or not found.shape or not found.shape[0]:
        return None
    try:
        dtype = found.dtype
    except (TypeError, ValueError):  # one that numpy has not, as `Array` says
        return None
    if found.ndim == 2 and dtype == np.uint8:
        rows = Array(path, group, name, (2,), "u").read(0, found.shape[0])
        return [row.tobytes() for row in rows] if rows[0].tobytes().startswith(_JPEG) else None
    if found.ndim != 1 or h5py.check_dtype(vlen=dtype) != np.uint8:
        return None
    properties = found.id.get_create_plist()
    filters = tuple(properties.get_filter(index)[0] for index in range(properties.get_nfilters()))
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count() or filters not in _PIPELINES:
        raise bad_array(path, _inside(group, name), "lies in other files or needs a filter that is not read", _REPACK)
    pictures, held = list[bytes](), 0
    for row in range(len(found)):
        pictures.append(found[row].tobytes())
        held += len(pictures[-1])
        check_expansion(path, held, f"array '{_inside(group, name)}'")  # many rows can lead to the same bytes
    return pictures


def width_of(array: Array) -> int:
    """Return how many numbers a row has."""
    return math.prod(array.shape[1:])


def slice_rows(arrays: Iterable[Array]) -> int:
    """Return the rows of some arrays to read at once."""
    return max(64, SLICE_BYTES // sum(array.row_bytes for array in arrays))


def read_flags(array: Array, name: str, path: Path) -> np.ndarray:
    """Return a whole array as (N,) bool; raise DatasetError where it holds another number than 0 and 1."""
    flags, step = np.empty(array.shape[0], bool), slice_rows([array])
    for start in range(0, len(flags), step):
        values = array.read(start, min(start + step, len(flags))).reshape(-1)
        check_flags(values, f"'{name}'", path, start)
        flags[start : start + step] = values != 0
    return flags


def _inflate(data: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    inflated = stream.decompress(data, size + 1)
    if len(inflated) != size or not stream.eof:
        raise ValueError(f"it does not inflate to its {size} bytes")
    return inflated


def _unshuffle(data: bytes, itemsize: int) -> bytes:
    """Undo HDF5's shuffle: the first bytes of all numbers, then their second bytes, and so on."""
    return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()
