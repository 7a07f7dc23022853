"""Files of arrays, .npz and HDF5: which of them are tables with one row a transition, and their rows as batches.

Evidence in the file decides: OGBench's .npz and D4RL's HDF5 have layouts of their own, and names that show them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa

from dipole_ray.data.sources.guarantees import check_counts
from dipole_ray.data.sources.hdf5 import (
    GROUP,
    Array,
    child,
    child_names,
    hdf5_contents,
    is_group,
    open_hdf5,
    slice_rows,
)
from dipole_ray.data.sources.mapping import USUAL
from dipole_ray.data.sources.npz import check_expansion, read_headers, stream_arrays
from dipole_ray.data.sources.reading import Contents, bad_array
from dipole_ray.errors import DatasetError

ARRAY_SUFFIXES = (".npz", ".hdf5", ".h5", ".hdf")
ZIP, HDF5, PARQUET, ARROW = b"PK\x03\x04", b"\x89HDF", b"PAR1", b"ARROW1"  # how files begin
# Arrays that only a table of transitions has: OGBench's layout has a row more a trajectory, and no need of them.
_OF_TRANSITIONS = {name for meaning in ("next_observations", "timeouts", "masks") for name in USUAL[meaning]}
_OF_OGBENCH = {"observations", "actions", "terminals"}
_DIMS = range(1, 6)  # of arrays that may be numbers, vectors, images, or what is refused by name
_OF_D4RL = {"observations", "actions", "rewards"}  # and what says where the task ends


def beginning(path: Path) -> bytes:
    """Return the first bytes of a regular file; none of what is no such file."""
    try:
        with path.open("rb") if path.is_file() else nullcontext() as stream:
            return b"" if stream is None else stream.read(8)
    except OSError:
        return b""


def is_transitions(path: Path) -> bool:
    """Return whether `path` is an .npz or HDF5 with one row a transition and no layout of its own, by its arrays."""
    try:
        if beginning(path).startswith(ZIP):
            names = {*read_headers(path)}
            # `valids` marks the rows without a transition in what ogbench's compact_dataset=True gives, masks and all.
            return bool(names) and (bool(names & _OF_TRANSITIONS) or not names >= _OF_OGBENCH) and "valids" not in names
        if beginning(path).startswith(HDF5):
            names = {*_arrays_of(path)}
            ends = {"terminals", "masks", *USUAL["episode"]}
            return bool(names) and not (names >= _OF_D4RL and names & ends)
    except DatasetError:
        pass
    return False


def is_arrays(path: Path) -> bool:
    """Return whether `path` is an .npz or HDF5 file: by its beginning, or by its name where that begins as no table."""
    start = beginning(path)
    return start.startswith((ZIP, HDF5)) or (path.suffix in ARRAY_SUFFIXES and not start.startswith((PARQUET, ARROW)))


def array_contents(file: Path) -> Contents:
    """Return the arrays of a file, with their types and shapes; groups of HDF5 have none."""
    if not _is_npz(file):
        return hdf5_contents(file)
    return {name: (str(header.dtype), header.shape) for name, header in read_headers(file).items()}


def array_schema(file: Path) -> pa.Schema:
    """Return the arrays of a file as the columns of a table."""
    return pa.schema([(name, _arrow_type(*found)) for name, found in _arrays_of(file).items()])


def array_batches(file: Path, choose: Callable[[list[str]], Iterable[str]]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file as batches with the columns that `choose` chooses; arrays (N, 1) are numbers."""
    return _npz_batches(file, choose) if _is_npz(file) else _hdf5_batches(file, choose)


def _arrays_of(path: Path) -> Contents:
    return {name: found for name, found in array_contents(path).items() if found[0] != GROUP}


def _is_npz(file: Path) -> bool:
    start = beginning(file)
    return start.startswith(ZIP) or (file.suffix == ".npz" and not start.startswith(HDF5))


def _arrow_type(kind: str, shape: tuple[int, ...]) -> pa.DataType:
    try:
        dtype = np.dtype(kind)
    except TypeError:  # of a record
        return pa.null()
    if dtype.kind not in "fiub":
        return pa.string() if dtype.kind == "U" else pa.null()
    found = pa.from_numpy_dtype(dtype.newbyteorder("="))
    for _ in () if shape[1:] == (1,) else shape[1:]:
        found = pa.list_(found)
    return found


def _npz_batches(file: Path, choose: Callable[[list[str]], Iterable[str]]) -> Iterator[pa.RecordBatch]:
    headers = read_headers(file)
    names = list(dict.fromkeys(choose(list(headers))))
    for name in names:
        header = headers[name]
        if header.dtype.kind not in "fiubU" or len(header.shape) not in _DIMS or 0 in header.shape[1:]:
            found = f"is {header.dtype} of shape {header.shape}, and a column is a number or a vector a row"
            raise bad_array(file, name, found, "flatten it, or map another array")
    check_counts({name: headers[name].shape[0] for name in names}, file, "map arrays with one row a transition")
    for arrays in stream_arrays(file, headers, names):
        yield pa.RecordBatch.from_arrays([_arrow_column(arrays[name]) for name in names], names=names)


def _hdf5_batches(file: Path, choose: Callable[[list[str]], Iterable[str]]) -> Iterator[pa.RecordBatch]:
    with open_hdf5(file) as root:
        there = [name for name in child_names(root) if not is_group(child(file, root, name))]
        names = list(dict.fromkeys(choose(there)))
        arrays = [Array(file, root, name, _DIMS) for name in names]
        counts = {array.name: array.shape[0] for array in arrays}
        check_counts(counts, file, "map arrays with one row a transition")
        check_expansion(file, sum(array.declared_bytes for array in arrays), f"arrays {', '.join(names[:8])}")
        step = slice_rows(arrays)
        for start in range(0, next(iter(counts.values())), step):
            parts = [_arrow_column(array.read(start, min(start + step, array.shape[0]))) for array in arrays]
            yield pa.RecordBatch.from_arrays(parts, names=names)


def _arrow_column(values: np.ndarray) -> pa.Array:
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    column = pa.array(values.reshape(-1))
    for length in () if values.shape[1:] == (1,) else reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return column
