"""Whatever is wrong with a file, the user gets one DatasetError with file, place and remedy, and nothing is run."""

from __future__ import annotations

import collections
import io
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest

from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import Rows
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.table import table_columns
from dipole_ray.errors import DatasetError
from tests.data.malformed import EXECUTED, Case, Reading
from tests.data.malformed_hdf5 import HDF5, d4rl, minari
from tests.data.malformed_npz import NPZ, good_arrays, payload
from tests.data.malformed_tables import DATASETS, TABLES, columns, dataset, rows, vouched
from tests.data.reading import read_d4rl, read_minari, read_ogbench, read_table
from tests.synthetic import write_ogbench, write_table

CASES = [*NPZ, *TABLES, *DATASETS, *HDF5]
MEMORY_FLOOR = 24 << 20
"""Chunks of a few megabytes each, and what Arrow takes when it first reads a table (15 MB)."""
ADDRESS_FLOOR = 1 << 29
"""Threads of Arrow's reserve 64 MB each and touch none of it."""


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reading]:
    """Every case, read in a process of its own."""
    folder = tmp_path_factory.mktemp("malformed")
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}  # others reserve a gigabyte in advance
    command = [sys.executable, "-W", "ignore", "-m", "tests.data.malformed", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found = [Reading(**json.loads(line)) for line in done.stdout.splitlines()]
    assert not list(folder.rglob(EXECUTED)), "a payload was executed"
    return {reading.name: reading for reading in found}


def test_there_are_at_least_thirty_different_files(readings: dict[str, Reading]) -> None:
    messages = {re.sub(r"\S*/\d+/\S*", "", reading.message) for reading in readings.values()}
    assert len(readings) == len(CASES) == len({case.name for case in CASES}) >= 30
    assert len(messages) >= 0.8 * len(CASES), "cases that repeat each other"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_file(case: Case, readings: dict[str, Reading]) -> None:
    reading = readings[case.name]
    assert reading.is_ours, f"{reading.error}: {reading.message}"
    assert Path(reading.path).name in reading.message.split(" ")[0], "the file"
    place, _, remedy = reading.message.rpartition(";") if ";" in reading.message else (reading.message, "", "")
    assert re.search(case.key, place), f"the place: {reading.message}"
    assert re.search(case.remedy, remedy or place), f"the remedy: {reading.message}"
    assert reading.resident <= 2 * reading.size + MEMORY_FLOOR, "memory beyond twice what is on the disk"
    assert reading.reserved <= 2 * reading.size + ADDRESS_FLOOR
    if not case.is_readable_for_inspect:
        assert reading.verdict == "error" or reading.verdict.startswith("refused"), reading.verdict


def test_damage_anywhere_in_an_archive_is_found(tmp_path: Path) -> None:
    path = write_ogbench(tmp_path / "data.npz", good_arrays())
    original = path.read_bytes()
    for content in (b"", b"not a zip", original[:-1], original[: len(original) // 2], original[:30]):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"not a complete .npz file .* get it again"):
            list(read_ogbench(path))
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        info = archive.getinfo("observations.npy")
    for place in (200, 400, 700):  # inside the compressed observations
        damaged = bytearray(original)
        damaged[info.header_offset + place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"data.npz: .*get it again"):
            list(read_ogbench(path))


def damaged(original: bytes, seed: int) -> bytes:
    """Return a file with one to three flipped bits or overwritten words."""
    random, content = np.random.default_rng(seed), bytearray(original)
    for _ in range(int(random.integers(1, 4))):
        position = int(random.integers(len(content)))
        if random.random() < 0.3:
            content[position : position + 8] = random.integers(0, 256, 8, dtype=np.uint8).tobytes()
        else:
            content[position] ^= 1 << int(random.integers(8))
    return bytes(content)


def endings_of(read: Callable[[], object], file: Path, contents: Iterable[bytes]) -> collections.Counter[str]:
    """Read a file with each of the contents in a forked process, because Arrow may end it, and count how that went."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for content in contents:
            file.write_bytes(content)
            try:
                read()
                ending = "read"
            except DatasetError:
                ending = "refused"
            except BaseException as error:
                ending = f"{type(error).__name__}: {error}"
            os.write(writing, json.dumps(ending).encode() + b"\n")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        endings = collections.Counter(json.loads(line) for line in pipe)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return endings if status == 0 else endings + collections.Counter([f"ended with {status}"])


@pytest.mark.parametrize("name", ["table.parquet", "table.feather", "plain.feather"])
def test_no_damage_to_a_table_ends_the_process(tmp_path: Path, name: str) -> None:
    """Arrow aborts, or reads beyond its memory, where it is handed a wrong length; 1 in 60 Feather files did it."""
    path = write_table(tmp_path / name, columns())
    if name.startswith("plain"):
        feather.write_feather(feather.read_table(str(path)), str(path), compression="uncompressed")
    original = path.read_bytes()
    every = (damaged(original, seed) for seed in range(80))
    endings = endings_of(lambda: list(read_table(path, TableMapping.guess(table_columns(path)))), path, every)
    assert set(endings) == {"read", "refused"}, endings
    assert endings["refused"] > 40


@pytest.mark.parametrize("layout", ["plain", "gzip", "minari"])
def test_no_damage_to_an_hdf5_file_ends_the_process(tmp_path: Path, layout: str) -> None:
    """Where only numbers changed, a plain HDF5 file has no checksum that could tell."""
    path, file, read = damageable(layout, tmp_path)
    original = file.read_bytes()
    endings = endings_of(lambda: list(read(path)), file, (damaged(original, seed) for seed in range(80)))
    assert set(endings) == {"read", "refused"}, endings
    assert endings["refused"] > 15


def damageable(layout: str, folder: Path) -> tuple[Path, Path, Callable[[Path], Iterator[Rows]]]:
    """Return a good dataset in HDF5, the file of it to be damaged, and its reader."""
    if layout == "minari":
        path = minari(lambda data, file: None)(folder)
        return path, path / "data" / "main_data.hdf5", read_minari
    options = {"compression": "gzip", "chunks": True} if layout == "gzip" else {}
    path = d4rl(lambda file: None, **options)(folder)
    return path, path, read_d4rl


def test_names_in_hdf5_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    path = minari(lambda data, file: file.id.links.create_soft(b"\xff\xfe", b"/nowhere"))(tmp_path)
    assert sum(len(rows["remaining"]) for rows in read_minari(path)) == 33
    path = d4rl(lambda file: file.id.links.create_soft(b"\xff\xfe", b"/nowhere"))(tmp_path)
    assert sum(len(rows["remaining"]) for rows in read_d4rl(path)) == 51
    with h5py.File(path, "a") as file:
        del file["rewards"]
    with pytest.raises(DatasetError, match=r"'rewards' is missing \(found actions, observations, term"):
        list(read_d4rl(path))


def test_an_extension_type_that_is_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    """Arrow before 14.0.1 unpickled it (CVE-2023-47248); the column is plain numbers to us."""
    tag = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload(tmp_path)}
    numbers = pa.array([1.0, 2.0, 3.0])
    fields = [pa.field("rewards", pa.float64(), metadata=tag)]
    fields += [pa.field(name, pa.float64()) for name in ("observations", "actions", "episode")]
    table = pa.Table.from_arrays(
        [numbers, numbers, pa.array([0.1] * 3), pa.array([0.0, 0.0, 0.0])], schema=pa.schema(fields)
    )
    path = tmp_path / "table.feather"
    feather.write_feather(table, str(path))
    assert b"py_extension_type" in path.read_bytes()
    list(read_table(path, TableMapping.guess(table_columns(path))))
    assert not (tmp_path / EXECUTED).exists()


def test_inspect_finds_numbers_that_are_not_finite_in_a_dataset_whose_checksums_fit(tmp_path: Path) -> None:
    """No writer of ours stores them, but a checksum says only that nothing changed since."""
    path = vouched(rows(rewards=np.where(np.arange(52) == 7, np.nan, 0.0)))(tmp_path)
    inspection = inspect_dataset(path)
    assert inspection.verdict == "error"
    assert "row 7 of column 'rewards' holds nan" in inspection.findings[0].what
    good = tmp_path / "good"
    good.mkdir()
    assert inspect_dataset(dataset(lambda folder, body: None)(good)).verdict != "error"
