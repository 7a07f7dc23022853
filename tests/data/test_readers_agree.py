"""One rule for whatever a file is called and however its numbers are stored: what one reader takes, all take alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest

from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import Rows, concatenate
from dipole_ray.data.sources.formats import FORMATS, dataset_kind
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.reading import ImportReport, Reading
from dipole_ray.errors import ConfigError, DatasetError
from tests.cli.test_data_cli import dipole
from tests.data.test_table import columns_of_table, without
from tests.synthetic import ogbench_arrays, write_ogbench, write_table

VECTORS = ("observations", "next_observations")
Columns = dict[str, np.ndarray]
SHORT = {
    "observations": "obs",
    "actions": "action",
    "rewards": "reward",
    "next_observations": "next_obs",
    "terminals": "terminated",
    "timeouts": "truncated",
}


def save(path: Path, columns: Columns) -> Path:
    """Write columns in the format that a name ends in."""
    if path.suffix == ".npz":
        np.savez(path, **columns)  # type: ignore[arg-type]
    elif path.suffix == ".hdf5":
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values
    else:
        write_table(path, columns)
    return path


def arrow_table(path: Path, columns: Columns, **more: pa.Array) -> Path:
    """Write columns, some of them as Arrow has them."""
    table = pa.table({name: list(values) if values.ndim > 1 else values for name, values in columns.items()} | more)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def rows_of(path: Path, report: ImportReport | None = None, **reading: Any) -> Rows:
    return concatenate(list(FORMATS[dataset_kind(path)].rows(path, Reading(**reading), report)))


def steps(columns: Columns) -> Columns:
    """Return the table without names of episodes: flags say where they end."""
    return without(columns, "episode")


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: {SHORT[name]: values for name, values in columns.items()},
        lambda columns: {name: v[:, None] if v.ndim == 1 else v for name, v in columns.items()},
        lambda columns: (
            columns | {name: columns[name][:, 0] for name in ("actions", "observations", "next_observations")}
        ),
        lambda columns: columns | {name: (100 * columns[name]).astype(np.int64) for name in VECTORS},
        lambda columns: columns | {name: np.clip(9 * columns[name], 0, 9).astype(np.uint8) for name in VECTORS},
        lambda columns: columns | {name: columns[name].astype(bool) for name in ("terminals", "timeouts")},
        lambda columns: without(columns, "terminals", "timeouts") | {"masks": 1 - columns["terminals"]},
        lambda columns: without(columns, "terminals"),
    ],
    ids=["names", "one-number rows", "vectors of one", "int64", "uint8", "bool", "masks", "timeouts alone"],
)
def test_what_one_reader_takes_all_take_alike(tmp_path: Path, change: Callable[[Columns], Columns]) -> None:
    columns = change(steps(columns_of_table()))
    want, *others = (
        rows_of(save(tmp_path / f"log{end}", columns)) for end in (".npz", ".hdf5", ".parquet", ".feather")
    )
    for found in others:
        assert all(np.array_equal(found[name], want[name]) for name in want)
    assert int((want["remaining"] > 0).sum()) == 29


def test_what_somebody_maps_is_a_table_in_any_file_and_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An .npz with three usual names counts as OGBench's, and a HDF5 as D4RL's, until somebody says otherwise."""
    columns = without(steps(columns_of_table()), "next_observations", "timeouts")
    columns["dones"] = columns.pop("terminals") * 1.0
    columns["dones"][-1] = 1
    for path in (save(tmp_path / "log.npz", columns), save(tmp_path / "log.hdf5", columns)):
        words = ("--map", "terminals=dones", "--map", "terminals_are=termination")
        assert dipole("import", path, "--out", tmp_path / path.suffix[1:], *words) == 0
        assert dipole("columns", path, *words) == 0 and dipole("inspect", path, *words) == 0
        assert "29 transitions" in capsys.readouterr().out
        with pytest.raises(ConfigError, match=r"where trajectories end; give --map terminals=COLUMN"):
            dipole("import", path, "--out", tmp_path / "no")
    closed = write_ogbench(
        tmp_path / "closed.npz", ogbench_arrays(np.random.default_rng(0), [5, 6]) | {"rewards": np.ones(13)}
    )
    report = ImportReport()
    rows_of(closed, report)
    assert "say so with --map terminals_are=termination" in report.warnings[0]
    assert dipole("import", closed, "--out", tmp_path / "all", "--map", "terminals_are=termination") == 0
    assert open_dataset(tmp_path / "all").manifest.num_transitions == 13
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 2))
    with pytest.raises(DatasetError, match=r"holds groups \(data\).*one row a transition at the top of a file"):
        dipole("import", tmp_path / "demos.hdf5", "--out", tmp_path / "no")


def test_columns_say_what_is_read_of_ogbenchs_and_d4rls_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), [5, 6]) | {"rewards": np.ones(13), "wind": np.ones(13)}
    for path in (write_ogbench(tmp_path / "a.npz", arrays), save(tmp_path / "a.hdf5", steps(columns_of_table()))):
        assert dipole("columns", path) == 0
        read_as = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line}
        assert [read_as[name] for name in ("observations", "rewards", "terminals")] == [
            "observations",
            "rewards",
            "terminals",
        ]


CLOSED = {"observations": np.arange(16.0).reshape(8, 2), "actions": np.linspace(-0.9, 0.9, 8)[:, None]}
CLOSED |= {"rewards": np.arange(8.0), "terminals": np.arange(8) % 4 == 3}


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"step": np.array([0, 1, 2, 3, 0, 2, 1, 3])}, r"time runs backwards 1 time .*row 5 \(from 2 to 1 in 'step'\)"),
        ({"timestep": np.array([5, 6, 7, 8, 3, 2, 1, 0], np.uint8)[:, None]}, r"time runs backwards 3 times"),
        (
            {"episode": np.array([0, 0, 1, 1, 1, 1, 1, 1])},
            r"'episode' and 'terminals' contradict .*row 1; .*save the file",
        ),
        ({"episode_id": np.zeros(8, np.int64)}, r"'episode_id' and 'terminals' contradict .*row 3"),
    ],
)
def test_the_order_of_ogbenchs_rows_is_checked_where_they_tell_it(tmp_path: Path, more: Columns, found: str) -> None:
    with pytest.raises(DatasetError, match=found):
        rows_of(save(tmp_path / "log.npz", CLOSED | more))
    right = {"step": np.array([0, 1, 2, 3, 0, 1, 2, 3]), "episode": np.repeat([7, 3], 4)}
    report = ImportReport()
    assert rows_of(save(tmp_path / "right.npz", CLOSED | right), report)["remaining"].tolist() == [
        3,
        2,
        1,
        0,
        3,
        2,
        1,
        0,
    ]
    assert {"time = step", "episode"} <= {*report.columns} and not report.unread


@pytest.mark.parametrize("end", [".hdf5", ".parquet", ".npz"])
def test_episodes_that_come_again_are_noticed_in_every_format(tmp_path: Path, end: str) -> None:
    flat = {"observations": np.arange(64.0).reshape(32, 2), "actions": np.linspace(-0.9, 0.9, 32)[:, None]}
    flat |= {"rewards": np.arange(32.0), "masks": np.ones(32), "episode": np.repeat([0, 1, 0, 1], 8)}
    report = ImportReport()
    rows_of(save(tmp_path / f"again{end}", flat), report)
    assert any("2 times an episode comes again" in warning for warning in report.warnings)
    parted = flat | {"step": np.concatenate([np.arange(8), np.arange(8), np.arange(8, 16), np.arange(8, 16)])}
    with pytest.raises(DatasetError, match="episode 0 stops at row 7 and goes on at row 16, after others; sort"):
        rows_of(save(tmp_path / f"parted{end}", parted))


def test_shuffled_frames_of_pandas_are_noticed_by_the_numbers_that_it_keeps(tmp_path: Path) -> None:
    columns = without(steps(columns_of_table()), "next_observations")
    order = np.random.default_rng(0).permutation(29)
    shuffled = {name: values[order] for name, values in columns.items()} | {"__index_level_0__": order}
    with pytest.raises(DatasetError, match=r"time runs backwards .* in '__index_level_0__'.*--map time="):
        rows_of(save(tmp_path / "frame.parquet", shuffled))
    assert len(rows_of(save(tmp_path / "frame.parquet", shuffled), mapping=TableMapping(time="")))


@pytest.mark.parametrize("nothing", [None, [], [None, None, None]], ids=["null", "empty", "list of nulls"])
@pytest.mark.parametrize("fixed", [False, True])
def test_next_observations_are_missing_however_a_list_says_so(tmp_path: Path, nothing: Any, fixed: bool) -> None:
    columns = steps(columns_of_table())
    ends = columns["terminals"] + columns["timeouts"] > 0
    lists = [
        nothing if end else values for end, values in zip(ends, columns["next_observations"].tolist(), strict=True)
    ]
    if fixed and nothing == []:
        return  # there is no such list
    kind = pa.list_(pa.float32(), 3) if fixed else pa.list_(pa.float32())
    path = arrow_table(tmp_path / "log.arrow", columns, next_observations=pa.array(lists, kind))
    assert int((rows_of(path)["remaining"] > 0).sum()) == 29 - int((columns["timeouts"] > 0).sum())
    lists[3] = [1.0, None, 2.0]
    path = arrow_table(tmp_path / "log.arrow", columns, next_observations=pa.array(lists, pa.list_(pa.float32())))
    with pytest.raises(DatasetError, match=r"'next_observations' has 1 missing value"):
        rows_of(path)
    broken = [None if row == 9 else 1.0 for row in range(29) for _ in range(3)]
    observed = pa.FixedSizeListArray.from_arrays(pa.array(broken, pa.float32()), 3)
    with pytest.raises(DatasetError, match=r"'observations' has 3 missing values, the first near row 9"):
        rows_of(arrow_table(tmp_path / "log.arrow", columns, observations=observed))


def test_numbers_are_numbers_whatever_arrow_calls_them(tmp_path: Path) -> None:
    columns = steps(columns_of_table())
    columns["rewards"] = np.round(columns["rewards"].astype(np.float64), 2)
    want = rows_of(save(tmp_path / "log.npz", columns))
    exact = [Decimal(f"{value:.2f}") for value in columns["rewards"]]
    seen = columns["observations"].tolist()
    for more in (
        {"rewards": pa.array(exact), "terminals": pa.array([[bool(value)] for value in columns["terminals"]])},
        {"observations": pa.array(seen, pa.list_view(pa.float32())), "rewards": pa.array([[one] for one in exact])},
    ):
        found = rows_of(arrow_table(tmp_path / "log.arrow", columns, **more))
        assert all(np.array_equal(found[name], want[name]) for name in want)


def test_copies_are_said_with_their_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    columns = columns_of_table()
    for number in range(2):
        save(tmp_path / "log" / f"{number}.parquet", columns | {"episode": columns["episode"] + 10 * number})
    assert dipole("import", tmp_path / "log", "--out", tmp_path / "data") == 0
    found = "of 10 trajectories, 50 % of the transitions, are exact copies of others"
    assert f"warning: 5 {found}" in capsys.readouterr().out
    for path in (tmp_path / "log", tmp_path / "data"):
        assert [finding.level for finding in inspect_dataset(path).findings if found in finding.what] == ["warning"]


@pytest.mark.parametrize(
    ("actions", "reading", "found"),
    [
        (np.arange(29) % 2, {}, "every recorded action is a whole number"),
        (np.linspace(-4, 4, 29), {"clip_actions": True}, r"\d+ transitions \(.* %\) have an action outside the bounds"),
        (np.linspace(-0.9, 0.9, 29), {"high": 1e30}, r"use less than 1% of the bounds of dimension 0, .*1e\+30"),
    ],
)
def test_actions_that_are_hardly_the_environments_are_named(
    tmp_path: Path, actions: np.ndarray, reading: dict[str, Any], found: str
) -> None:
    columns = steps(columns_of_table()) | {"actions": actions.astype(np.float32)[:, None]}
    high, report = np.array([reading.pop("high", 1.0)]), ImportReport()
    rows_of(save(tmp_path / "log.parquet", columns), report, action_bounds=(-high, high), **reading)
    assert any(re.search(found, warning) for warning in report.warnings)
