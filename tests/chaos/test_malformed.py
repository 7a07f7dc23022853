"""F1 with its figures: every malformed file once more, and five times the random damage of the quick tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.feather as feather
import pytest

from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.table import table_columns
from tests.chaos.conftest import Measured
from tests.data.malformed import EXECUTED, Reading
from tests.data.malformed_tables import columns
from tests.data.reading import read_table
from tests.data.test_malformed_files import damageable, damaged, endings_of
from tests.synthetic import write_table

pytestmark = pytest.mark.chaos

BASE = {".npz": 3 << 20, ".hdf5": 9 << 20, ".parquet": 14 << 20}
"""What the smallest file costs a process that has read none yet: code, and Arrow's threads."""


def test_malformed_files(tmp_path: Path, measured: Measured) -> None:
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.data.malformed", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=True)
    readings = [Reading(**json.loads(line)) for line in done.stdout.splitlines()]
    refused = sum(reading.is_ours for reading in readings)
    executed = len(list(tmp_path.rglob(EXECUTED)))
    large = [reading for reading in readings if 1 << 24 < reading.size < 1 << 30]
    small = [reading for reading in readings if reading not in large]
    measured("F1", "malformed files refused with file, place and remedy", refused, "files", bar=f">= {len(readings)}")
    measured("F1", "payloads that were run", executed, "payloads", bar="0")
    measured("F1", "bombs and small files: largest memory", max(r.resident for r in small) / 1e6, "MB", bar="<= 24 MB")
    for reading in large:
        ratio = (reading.resident - BASE[Path(reading.path).suffix]) / reading.size
        measured("F1", "files of 33 MB and more: memory over their size", ratio, "x", bar="<= 2 x")
        assert ratio <= 2.0, reading.name
    assert refused == len(readings) >= 30 and executed == 0 and len(large) >= 4
    assert all(reading.resident <= 24 << 20 for reading in small)


@pytest.mark.parametrize("name", ["table.parquet", "table.feather", "plain.feather"])
def test_damaged_tables(tmp_path: Path, name: str, measured: Measured) -> None:
    path = write_table(tmp_path / name, columns())
    if name.startswith("plain"):
        feather.write_feather(feather.read_table(str(path)), str(path), compression="uncompressed")
    original = path.read_bytes()
    contents = (damaged(original, seed) for seed in range(1000, 1400))
    endings = endings_of(lambda: list(read_table(path, TableMapping.guess(table_columns(path)))), path, contents)
    ended = sum(endings.values()) - endings["read"] - endings["refused"]
    measured("F1", "damaged tables that ended the process", ended, "of 400", bar="0")
    assert ended == 0, endings


@pytest.mark.parametrize("layout", ["plain", "gzip", "minari"])
def test_damaged_hdf5_files(tmp_path: Path, layout: str, measured: Measured) -> None:
    path, file, read = damageable(layout, tmp_path)
    original = file.read_bytes()
    endings = endings_of(lambda: list(read(path)), file, (damaged(original, seed) for seed in range(1000, 1400)))
    ended = sum(endings.values()) - endings["read"] - endings["refused"]
    measured("F1", "damaged HDF5 files that ended the process", ended, "of 400", bar="0")
    assert ended == 0, endings
