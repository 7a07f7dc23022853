"""Rows that cannot be in the order in which they were recorded are refused; what may be right is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dipole_ray.data.schema import concatenate
from dipole_ray.data.sources.formats import FORMATS
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.reading import ImportReport, Reading
from dipole_ray.errors import DatasetError
from tests.data.reading import read_table
from tests.data.test_exorl import dipole
from tests.data.test_table import columns_of_table as columns_of_short
from tests.data.test_table import transitions, without
from tests.synthetic import transition_columns, write_table

LENGTHS = [30, 20, 40, 10, 20]
Columns = dict[str, np.ndarray]


def recording() -> Columns:
    """Return five trajectories with the step in each, and the seconds since the start of all."""
    columns = transition_columns(np.random.default_rng(1), LENGTHS)
    steps = np.concatenate([np.arange(length) for length in LENGTHS])
    return columns | {"step": steps, "seconds": 0.1 * np.arange(len(steps))}


def part(columns: Columns, rows: slice | np.ndarray) -> Columns:
    return {name: values[rows] for name, values in columns.items()}


def write_parts(folder: Path, columns: Columns, names: list[str], length: int = 10) -> Path:
    """Write files of `length` rows each, so that most trajectories go on in the next one."""
    folder.mkdir()
    for index, name in enumerate(names):
        write_table(folder / f"{name}.parquet", part(columns, slice(index * length, (index + 1) * length)))
    return folder


def read(path: Path, **mapping: str) -> tuple[Columns, ImportReport]:
    report = ImportReport()
    rows = concatenate(list(read_table(path, TableMapping(**mapping), report=report)))  # type: ignore[arg-type]
    return transitions(rows), report


def test_the_files_of_a_folder_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    columns = without(recording(), "next_observations", "episode", "step")
    folder = write_parts(tmp_path / "parts", columns, [str(index) for index in range(12)])
    found, report = read(folder)
    kept = np.delete(np.arange(120), np.cumsum(LENGTHS)[0::2] - 1)
    np.testing.assert_array_equal(found["rewards"], columns["rewards"][kept])
    assert "7 trajectories are taken to go on in the next file" in report.warnings[0]
    assert not read(write_table(tmp_path / "whole.parquet", columns))[1].warnings


@pytest.mark.parametrize("evidence", ["next_observations", "step", "seconds", "next_observations alone", "episode"])
def test_files_whose_names_do_not_give_the_order_are_refused(tmp_path: Path, evidence: str) -> None:
    columns = recording()
    flags = ("terminals", "timeouts") if evidence == "next_observations alone" else ()
    evidence = evidence.split()[0]
    others = {"next_observations", "step", "seconds", "episode"} - {evidence}
    columns = without(columns, *others, *flags)
    if flags:
        columns["masks"] = np.ones(120, np.float32)
    if evidence == "episode":
        columns |= {"step": recording()["step"]}
        columns = without(columns, "terminals", "timeouts")
    names = ["k", "a", "f", "b", "c", "l", "d", "e", "g", "h", "i", "j"]
    time = {"time": "seconds"} if evidence == "seconds" else {}
    with pytest.raises(DatasetError, match="name the files so that their numbers give the order"):
        read(write_parts(tmp_path / "parts", columns, names), **time)


def shuffled(columns: Columns) -> Columns:
    return part(columns, np.random.default_rng(0).permutation(120))


def interleaved(columns: Columns) -> Columns:
    """Return the rows as two environments beside each other write them."""
    return part(columns, np.argsort(np.append(np.arange(0, 120, 2), np.arange(1, 121, 2)), kind="stable"))


def twice(columns: Columns) -> Columns:
    return {name: np.concatenate([values, values]) for name, values in columns.items()}


@pytest.mark.parametrize(
    ("change", "names", "told"),
    [
        (interleaved, ("next_observations",), r"episode 0 stops at row 0 and goes on at row 2"),
        (interleaved, ("next_observations", "step"), r"\d+ transitions \(9\d.* %\) would be lost"),
        (interleaved, ("step",), r"episode 0 stops at row 0 and goes on at row 2"),
        (
            lambda columns: part(columns, np.arange(119, -1, -1)),
            ("next_observations",),
            r"time runs backwards \d+ times",
        ),
        (
            shuffled,
            ("next_observations", "episode"),
            r"time runs backwards \d+ times inside a trajectory, the first at",
        ),
        (shuffled, ("step", "episode"), "next observations differ"),
    ],
)
def test_rows_that_cannot_be_in_order_are_refused(
    tmp_path: Path, change: Callable[[Columns], Columns], names: tuple[str, ...], told: str
) -> None:
    path = write_table(tmp_path / "log.parquet", without(change(recording()), "seconds", *names))
    with pytest.raises(DatasetError, match=told):
        read(path)


def test_episodes_that_come_again_in_another_recording_are_kept_and_said(tmp_path: Path) -> None:
    found, report = read(write_table(tmp_path / "log.parquet", twice(recording())))
    assert len(found["rewards"]) == 240 and report.trajectories == 10
    assert "5 times an episode comes again (episode 0 stops at row 29 and comes again at row 120)" in report.warnings[0]


def test_what_may_be_right_is_said(tmp_path: Path) -> None:
    columns = without(recording(), "next_observations", "episode", "seconds")
    gone = np.delete(np.arange(120), np.arange(5, 25))
    warnings = read(write_table(tmp_path / "gap.parquet", part(columns, gone)))[1].warnings
    assert (
        len(warnings) == 1
        and "1 transition spans more than five usual steps of time, the first at row 4" in warnings[0]
    )
    alone = without(shuffled(recording()), "episode", "step", "timeouts", "seconds")
    found, report = read(write_table(tmp_path / "buffer.parquet", alone))
    assert len(found["rewards"]) == 120 and "serve n_step=1 only" in report.warnings[0]
    short = without(columns_of_short(), "next_observations")
    assert not read(write_table(tmp_path / "short.parquet", short))[1].warnings


def test_a_column_called_time_that_is_none_can_be_left_out(tmp_path: Path) -> None:
    columns = recording() | {"time": np.random.default_rng(0).random(120)}
    path = write_table(tmp_path / "log.parquet", columns)
    with pytest.raises(DatasetError, match=r"time runs backwards .* give --map time="):
        read(path)
    assert len(read(path, time="")[0]["rewards"]) == len(read(path, time="seconds")[0]["rewards"]) == 120
    texts = write_table(tmp_path / "texts.parquet", columns | {"time": columns["time"].astype(str)})
    assert len(read(texts)[0]["rewards"]) == 120


def test_what_a_folder_hides_is_said(tmp_path: Path) -> None:
    """Files and folders that are no tables, tables of other suffixes, and rows without a time."""
    columns = {
        name: values for name, values in columns_of_short().items() if name in ("observations", "actions", "rewards")
    }
    count = len(columns["rewards"])
    for number, name in enumerate(["0.parquet", "1.PARQUET", "2.pq"]):
        written = write_table(tmp_path / "own.parquet", columns | {"episode": np.full(count, number)})
        written.rename(tmp_path / name)
    (tmp_path / "more").mkdir()
    for name in ("3.csv", "_SUCCESS", ".2.pq.crc"):
        (tmp_path / name).write_text("no table")
    report = ImportReport()
    list(FORMATS["table"].rows(tmp_path, Reading(), report))
    assert report.rows_read == 3 * count
    assert any("no tables are not read (3.csv)" in text for text in report.warnings)
    assert any("folders inside are not read (more)" in text for text in report.warnings)
    times = np.arange(count, dtype=np.float64)
    times[3] = np.nan
    path, report = write_table(tmp_path / "more" / "0.parquet", columns_of_short() | {"time": times}), ImportReport()
    list(FORMATS["table"].rows(path, Reading(), report))
    assert any("1 row has no time" in text for text in report.warnings)


def files_of_episodes(folder: Path, *, shift: float = 0.0, **columns: np.ndarray) -> Path:
    """Write three files of twelve rows, each a walk from where the one before ended, the last moved by `shift`."""
    folder.mkdir()
    for number in range(3):
        walk = (0.1 * np.arange(12 * number, 12 * number + 12) + shift * (number == 2))[:, None].astype(np.float32)
        rows = {"observations": walk, "actions": 0 * walk, "rewards": walk[:, 0]} | columns
        write_table(folder / f"{number}.parquet", rows)
    return folder


def test_files_that_count_their_episodes_anew_are_joined_or_parted_as_somebody_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files_of_episodes(tmp_path / "own", episode=np.zeros(12, np.int64))
    with pytest.raises(DatasetError, match=r"begin with episode 0.* files_are=trajectories .* files_are=parts"):
        read(folder)
    parted, report = read(folder, files_are="trajectories")
    assert report.trajectories == 3 and len(parted["rewards"]) == 33 and not report.warnings
    joined, report = read(folder, files_are="parts")
    assert report.trajectories == 1 and len(joined["rewards"]) == 35 and not report.warnings
    assert dipole("columns", folder) == 0 and "(table, the first of 3 files)" in capsys.readouterr().out
    alone = files_of_episodes(tmp_path / "alone")
    assert read(alone, files_are="trajectories")[1].trajectories == 3


def test_a_file_that_begins_far_from_where_the_one_before_ended_is_not_its_continuation(tmp_path: Path) -> None:
    flags = {"terminals": np.zeros(12, bool), "timeouts": np.zeros(12, bool)}
    assert read(files_of_episodes(tmp_path / "near", **flags))[1].trajectories == 1
    folder = files_of_episodes(tmp_path / "far", shift=5.0, **flags)
    with pytest.raises(DatasetError, match=r"1\.parquet: its last row and the first of 2\.parquet lie 5\.1 apart"):
        read(folder)
    assert read(folder, files_are="trajectories")[1].trajectories == 3


def test_an_arrow_stream_is_called_one(tmp_path: Path) -> None:
    table = pa.table({name: list(values) for name, values in columns_of_short().items()})
    with pa.OSFile(str(tmp_path / "own.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(
        DatasetError, match=r"is an Arrow stream, not an Arrow file; write it with pyarrow\.ipc\.new_file"
    ):
        list(FORMATS["table"].rows(tmp_path / "own.arrow", Reading(), ImportReport()))


def test_a_column_that_only_a_later_file_has_is_not_lost(tmp_path: Path) -> None:
    """The first file says which columns are read: ends that only the second marks would be nowhere."""
    columns = recording()
    write_table(tmp_path / "0.parquet", without(part(columns, slice(0, 90)), "terminals"))
    write_table(tmp_path / "1.parquet", part(columns, slice(90, 120)))
    with pytest.raises(DatasetError, match=r"1\.parquet: has the column 'terminals', which 0\.parquet lacks.*apart"):
        list(FORMATS["table"].rows(tmp_path, Reading(), ImportReport()))
