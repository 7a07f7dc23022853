"""Files that no reader should believe, each with what its error must name; `python -m tests.data.malformed FOLDER`.

The main function makes every file, reads each in a forked process of its own, and prints one JSON line a case: the
error, and how much memory the reading took. A process is forked because a peak can only be measured once in one, and
because a reader that is misled badly enough ends its process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.minari import is_minari
from dipole_ray.data.sources.reading import Reading as Options
from dipole_ray.data.sources.table import table_columns
from dipole_ray.errors import DatasetError
from tests.data.reading import (
    d4rl_schema,
    minari_schema,
    read_d4rl,
    read_minari,
    read_ogbench,
    read_table,
    table_schema,
)

EXECUTED = "executed"
"""File that a payload makes in the folder of its case, should anything run it."""


@dataclass(frozen=True)
class Case:
    """One file and what its error says."""

    name: str
    make: Callable[[Path], Path]
    """Writes the file, or a dataset, into an empty folder and returns its path."""
    key: str
    """Pattern of the place: the array, column, row, or entry."""
    remedy: str
    """Pattern of what to do."""
    mapping: TableMapping | None = None
    """For tables; by default columns are taken by their names."""
    is_relabelled: bool = False
    """Whether rewards come from a task's physics state."""
    is_readable_for_inspect: bool = False
    """Whether `inspect` judges what it can read instead: it drops non-finite rows, and needs no rewards."""


@dataclass(kw_only=True)
class Reading:
    """What became of one case."""

    name: str
    path: str
    size: int
    """Bytes on disk."""
    error: str = ""
    """Type of the error; `nothing` if there was none, `died of SIGNAL` if the process ended."""
    is_ours: bool = False
    """Whether it is a DatasetError."""
    message: str = ""
    verdict: str = ""
    """What `inspect` says."""
    resident: int = 0
    """Bytes by which the peak of resident memory rose."""
    reserved: int = 0
    """Bytes by which the peak of the address space rose."""


def read(path: Path, case: Case) -> None:
    """Read everything at `path` as an import or an opening does."""
    if path.suffix == ".npz":
        pieces = read_ogbench(path, relabel if case.is_relabelled else None)
    elif path.suffix == ".hdf5" and path.name != "main_data.hdf5":
        d4rl_schema(path)
        pieces = read_d4rl(path)
    elif is_minari(path):
        minari_schema(path)
        pieces = read_minari(path)
    elif path.is_dir() and not any(path.glob("*.parquet")):
        pieces = open_dataset(path, strict=True).iter_rows()
    else:
        mapping = case.mapping or TableMapping.guess(table_columns(path))
        table_schema(path, mapping)
        pieces = read_table(path, mapping)
    for _ in pieces:
        pass


def relabel(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Label rows as a task with a larger physics state would."""
    return arrays["qpos"][:, 14], arrays["qpos"][:, 14]


def size_on_disk(path: Path) -> int:
    """Return the bytes at `path`; holes count, because reading them would take memory."""
    return sum(file.lstat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if not file.is_dir())


def read_case(path: Path, case: Case) -> Reading:
    """Read one case in a forked process."""
    reading = Reading(name=case.name, path=str(path), size=size_on_disk(path) if path.exists() else 0)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(120)
        before = _memory()
        try:
            read(path, case)
            reading.error = "nothing"
        except BaseException as error:
            reading.error, reading.message = type(error).__name__, str(error)
            reading.is_ours = isinstance(error, DatasetError)
            if not reading.is_ours:
                traceback.print_exc()
        reading.resident, reading.reserved = (now - then for now, then in zip(_memory(), before, strict=True))
        try:
            reading.verdict = inspect_dataset(path, Options(mapping=case.mapping)).verdict
        except DatasetError as error:
            reading.verdict = f"refused: {error}"
        os.write(send, json.dumps(asdict(reading)).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as stream:
        answer = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not answer:
        reading.error = f"died of {status}"
        return reading
    return Reading(**json.loads(answer))


def _memory() -> tuple[int, int]:
    """Return the peaks of resident memory and address space so far; a forked process begins with its present ones."""
    status = Path("/proc/self/status").read_text()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("Vm")}
    return found["VmHWM"], found["VmPeak"]


def make_all(folder: Path, cases: list[Case]) -> Iterator[tuple[Path, Case]]:
    """Write every case into a folder of its own."""
    for number, case in enumerate(cases):
        place = folder / str(number)
        place.mkdir()
        yield case.make(place), case


if __name__ == "__main__":
    from tests.data.malformed_hdf5 import HDF5
    from tests.data.malformed_npz import NPZ
    from tests.data.malformed_tables import DATASETS, TABLES

    for made, one in make_all(Path(sys.argv[1]), [*NPZ, *TABLES, *DATASETS, *HDF5]):
        print(json.dumps(asdict(read_case(made, one))), flush=True)
