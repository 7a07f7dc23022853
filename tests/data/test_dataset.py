"""A dataset is whole or not there, and a damaged one is never served."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.feather as feather
import pytest

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.data.schema import Rows, close_trajectory, concatenate
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import CorruptSegment, DatasetError, NonFiniteError
from dipole_ray.runs.config import DataConfig
from dipole_ray.runs.prepare import prepare_dataset
from tests.synthetic import random_trajectory

SCHEMA = Schema(3, 2)


def trajectories(seed: int = 0, count: int = 6) -> list[Rows]:
    random = np.random.default_rng(seed)
    return [random_trajectory(random, int(random.integers(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("segment_rows", [1_000_000, 60])
def test_rows_come_back_as_written(tmp_path: Path, segment_rows: int) -> None:
    pieces = trajectories()
    manifest = write_dataset(tmp_path / "data", pieces, SCHEMA, {"format": "test"}, segment_rows=segment_rows)
    dataset = open_dataset(tmp_path / "data")
    assert dataset.manifest == manifest and dataset.source == {"format": "test"}
    assert (len(dataset.segments) == 1) == (segment_rows == 1_000_000)
    whole = concatenate(pieces)
    for chunk_rows in (1, 50, 10**6):
        found = concatenate(list(dataset.iter_rows(chunk_rows)))
        for name, values in whole.items():
            np.testing.assert_array_equal(found[name], values)
    assert dataset.num_transitions == int((whole["remaining"] > 0).sum())
    table = feather.read_table(tmp_path / "data" / manifest.files[0].name)
    assert table.column_names == list(SCHEMA.columns)
    assert not dataset.segments[0].columns["rewards"].flags.writeable


def test_bit_flips_and_cuts_are_found_before_the_file_is_mapped(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", trajectories(), SCHEMA, {"file": "robot.parquet", "env": None})
    path = tmp_path / "data" / manifest.files[0].name
    original = path.read_bytes()
    random = np.random.default_rng(1)
    for _ in range(12):
        damaged = bytearray(original)
        damaged[int(random.integers(len(original)))] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(
            CorruptSegment, match=r"rows 0 to \d+: .*stored [0-9a-f]{8}, read [0-9a-f]{8}\).*data import robot.parquet"
        ):
            open_dataset(tmp_path / "data")
    for length in (0, 1, len(original) - 1):
        path.write_bytes(original[:length])
        with pytest.raises(CorruptSegment, match=f"length is {length} bytes, the manifest says {len(original)}"):
            open_dataset(tmp_path / "data")
    path.unlink()
    with pytest.raises(CorruptSegment, match="the file is missing"):
        open_dataset(tmp_path / "data")
    path.mkdir()
    with pytest.raises(CorruptSegment, match=r"length is|cannot be read|no regular file"):
        open_dataset(tmp_path / "data")


def test_one_damaged_file_is_named_with_its_rows_and_the_rest_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in the log however often the dataset is opened; refused where asked; whole again when the file is back."""
    request = {"request": {"name": "Pendulum-v1", "transitions": 9, "seed": 1}}
    manifest = write_dataset(tmp_path / "data", trajectories(), SCHEMA, request, segment_rows=30)
    whole, sizes = open_dataset(tmp_path / "data"), [entry.rows for entry in manifest.files]
    assert len(sizes) > 2 and whole.quarantined == ()
    first, last = sizes[0], sizes[0] + sizes[1] - 1
    path = tmp_path / "data" / manifest.files[1].name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    for _ in range(3):
        rest = open_dataset(tmp_path / "data")
    assert rest.manifest == manifest and [item.entry for item in rest.quarantined] == [manifest.files[1]]
    assert [segment.entry for segment in rest.segments] == [manifest.files[0], *manifest.files[2:]]
    assert rest.num_rows == whole.num_rows - sizes[1] == sum(len(rows["remaining"]) for rows in rest.iter_rows())
    assert rest.num_transitions == whole.num_transitions - manifest.files[1].transitions
    assert len(caplog.messages) == 1 and f"1 file is damaged of {len(sizes)}" in caplog.messages[0]
    assert f"with {sizes[1]} of {whole.num_rows} rows (rows {first} to {last}: {path}" in caplog.messages[0]
    remedy = f"dipole data collect Pendulum-v1 --transitions 9 --seed 1 --out {tmp_path} --overwrite"
    assert remedy in caplog.messages[0] and "data.strict=true" in caplog.messages[0]
    with pytest.raises(CorruptSegment, match=rf"rows {first} to {last}: "):
        open_dataset(tmp_path / "data", strict=True)
    plain = DataConfig(path=str(tmp_path / "data"))
    assert prepare_dataset(plain, EnvConfig(id="Pendulum-v1")) == tmp_path / "data"
    with pytest.raises(CorruptSegment, match=rf"rows {first} to {last}: "):
        prepare_dataset(replace(plain, strict=True), EnvConfig(id="Pendulum-v1"))
    assert path.read_bytes() == content[:-1], "opening changes nothing on the disk"
    path.write_bytes(content)
    assert open_dataset(tmp_path / "data", strict=True).quarantined == ()


def test_a_flipped_bit_in_the_manifest_is_found_and_an_old_manifest_without_checksum_is_read(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", trajectories(), SCHEMA, {"note": "gripper", 10: "ten", 9: "nine"})
    path = tmp_path / "data" / "manifest.json"
    good = path.read_text()
    path.write_text(good.replace("gripper", "gripped"))
    with pytest.raises(CorruptSegment, match="does not match its checksum"):
        open_dataset(tmp_path / "data")
    old = {key: value for key, value in json.loads(good).items() if key != "checksum"}
    path.write_text(json.dumps(old))
    assert open_dataset(tmp_path / "data").source["note"] == "gripper"


def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", trajectories(), SCHEMA, {})
    said = f"{tmp_path}: no manifest.json, so this is no dataset; {tmp_path}/data is one"
    with pytest.raises(DatasetError, match=said):
        open_dataset(tmp_path)
    path = tmp_path / "data" / "manifest.json"
    good = json.loads(path.read_text())
    del good["checksum"]
    outside = json.loads(json.dumps(good))
    outside["files"][0]["name"] = "../../secret.arrow"
    cases = [("{", "cannot be read"), ("[]", "JSON object"), (json.dumps(good | {"version": 9}), "version 9")]
    cases += [(json.dumps(outside), "outside the folder"), (json.dumps(good | {"files": [{}]}), "incomplete")]
    for text, message in cases:
        path.write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_dataset(tmp_path / "data")


def test_a_write_that_fails_leaves_nothing_new(tmp_path: Path) -> None:
    def failing() -> Iterator[Rows]:
        yield from trajectories()
        raise DatasetError("the source broke")

    with pytest.raises(DatasetError, match="the source broke"):
        write_dataset(tmp_path / "data", failing(), SCHEMA, {}, segment_rows=30)
    assert not (tmp_path / "data").exists()
    bad = trajectories()
    bad[3]["rewards"][0] = np.nan
    with pytest.raises(NonFiniteError, match="row 0 of column 'rewards'"):
        write_dataset(tmp_path / "data", bad, SCHEMA, {})
    with pytest.raises(DatasetError, match="no transitions"):
        write_dataset(tmp_path / "data", [], SCHEMA, {})
    assert not (tmp_path / "data").exists()


def test_a_dataset_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path: Path) -> None:
    old, new = trajectories(0), trajectories(1)
    manifest = write_dataset(tmp_path / "data", old, SCHEMA, {})
    with pytest.raises(DatasetError, match=r"already holds a dataset; .* --overwrite"):
        write_dataset(tmp_path / "data", new, SCHEMA, {})
    broken = [*new, {**new[0], "masks": np.full_like(new[0]["masks"], np.nan)}]
    with pytest.raises(NonFiniteError):
        write_dataset(tmp_path / "data", broken, SCHEMA, {}, overwrite=True, segment_rows=30)
    assert open_dataset(tmp_path / "data").manifest == manifest
    assert len(list((tmp_path / "data").iterdir())) == 2
    mapped = open_dataset(tmp_path / "data").segments[0].columns["rewards"]
    before = mapped.copy()
    replaced = write_dataset(tmp_path / "data", new, SCHEMA, {}, overwrite=True)
    assert open_dataset(tmp_path / "data").manifest == replaced != manifest
    assert len(list((tmp_path / "data").iterdir())) == 2
    np.testing.assert_array_equal(mapped, before)  # a run that has the old one open is not disturbed


def test_a_folder_with_other_files_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match=r"other files \(thesis.tex\)"):
        write_dataset(tmp_path, trajectories(), SCHEMA, {}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot write the dataset \(Not a directory\).*choose another folder"):
        write_dataset(tmp_path / "file" / "data", trajectories(), SCHEMA, {})


FULL_DISK = """
import resource, sys
from pathlib import Path
from dipole_ray.data.dataset import write_dataset
from dipole_ray.columns import Schema
from dipole_ray.errors import DatasetError
from tests.data.test_dataset import trajectories

resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
try:
    write_dataset(Path(sys.argv[1]), trajectories(), Schema(3, 2), {})
except DatasetError as error:
    sys.exit(0 if "nothing of it was kept: free space" in str(error) else str(error))
"""


def test_a_disk_that_refuses_more_bytes_leaves_nothing(tmp_path: Path) -> None:
    """The file size limit of the process stands in for a full disk: the same write fails in the same place."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "data")], check=False)
    assert done.returncode == 0
    assert not (tmp_path / "data").exists()


SCRIPT = """
import sys, time
import numpy as np
from pathlib import Path
from dipole_ray.data.dataset import write_dataset
from dipole_ray.columns import Schema
from tests.synthetic import random_trajectory

def rows():
    random = np.random.default_rng(0)
    for index in range(10_000):
        yield random_trajectory(random, 200)
        if index == 20:
            print("writing", flush=True)

write_dataset(Path(sys.argv[1]), rows(), Schema(3, 2), {}, overwrite=True, segment_rows=400)
"""


@pytest.mark.parametrize("had_one", [False, True])
def test_kill_9_while_writing_leaves_the_old_dataset_or_none(tmp_path: Path, had_one: bool) -> None:
    directory = tmp_path / "data"
    manifest = write_dataset(directory, trajectories(), SCHEMA, {}) if had_one else None
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(directory)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list(directory.glob("data-*.arrow"))) > 1
    if manifest is None:
        with pytest.raises(DatasetError, match="an import that did not finish"):
            open_dataset(directory)
    else:
        assert open_dataset(directory).manifest == manifest
    written = write_dataset(directory, trajectories(2), SCHEMA, {}, overwrite=had_one)
    assert open_dataset(directory).manifest == written
    assert len(list(directory.iterdir())) == 1 + len(written.files)


def test_a_trajectory_with_lengths_that_do_not_fit_is_refused() -> None:
    with pytest.raises(DatasetError, match="T\\+1 observations"):
        close_trajectory(np.zeros((3, 3)), np.zeros((3, 2)), np.zeros(3), np.ones(3))
