"""What a file holds decides how it is read, whatever its name; what is read, and what is not, is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import Rows, concatenate
from dipole_ray.data.sources.formats import FORMATS, dataset_kind
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.reading import ImportReport, Reading
from dipole_ray.errors import DatasetError
from tests.cli.test_data_cli import dipole
from tests.data.test_d4rl import d4rl_arrays
from tests.data.test_table import columns_of_table, transitions, without
from tests.synthetic import ogbench_arrays, transition_columns, write_d4rl, write_ogbench, write_table


def imported(folder: Path) -> Rows:
    return transitions(concatenate(list(open_dataset(folder).iter_rows())))


def test_one_map_does_not_switch_off_the_columns_with_usual_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = columns_of_table() | {"battery": np.ones(29)}
    columns["r"] = columns.pop("rewards")
    path = write_table(tmp_path / "log.parquet", columns)
    assert dipole("import", path, "--map", "rewards=r", "--out", tmp_path / "data") == 0
    told = capsys.readouterr().out
    assert (
        "read: observations, actions, rewards = r, next_observations, terminals, timeouts, episode"
        in told.replace("\n", " ")
        and "not read: battery" in told
    )
    found = imported(tmp_path / "data")
    np.testing.assert_array_equal(found["masks"], 1.0 - columns["terminals"])
    np.testing.assert_array_equal(found["next_observations"], columns["next_observations"])
    finding = next(item for item in inspect_dataset(path, Reading(mapping=TableMapping(rewards="r"))).findings)
    assert any(
        "battery" in item.where for item in inspect_dataset(path, Reading(mapping=TableMapping(rewards="r"))).findings
    ), finding


def test_a_column_with_a_usual_name_is_left_out_where_that_is_said_or_it_means_another_thing(tmp_path: Path) -> None:
    columns = columns_of_table()
    given = TableMapping.from_pairs(["timeouts=terminals", "episode=", "next_observations="]).complete(list(columns))
    assert (given.timeouts, given.terminals, given.episode, given.next_observations) == ("terminals", None, None, None)


def test_columns_are_shown_before_any_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"state": columns_of_table()["observations"], "a": np.ones(29), "truncated": np.zeros(29, bool)}
    for path in (write_table(tmp_path / "log.parquet", columns), write_table(tmp_path / "log.feather", columns)):
        assert dipole("columns", path, "--map", "actions=a") == 0
        told = capsys.readouterr().out
        rows = [line.split() for line in told.splitlines()]
        assert any(row[0] == "state" and row[-2:] == ["(29,", "3)"] for row in rows if row)
        assert ["a", "double", "(29,)", "actions"] in rows and ["truncated", "bool", "(29,)", "timeouts"] in rows
        assert "an import would ask" in told and "'observations'" in told
    npz = write_ogbench(tmp_path / "log.npz", ogbench_arrays(np.random.default_rng(0), [4]))
    hdf5 = write_d4rl(tmp_path / "log.hdf5", d4rl_arrays())
    for path in (npz, hdf5):
        assert dipole("columns", path) == 0 and "observations" in capsys.readouterr().out


def test_an_npz_with_one_row_a_transition_is_a_table(tmp_path: Path) -> None:
    columns = columns_of_table()
    expected = FORMATS["table"].rows(write_table(tmp_path / "same.parquet", columns), Reading())
    want = concatenate(list(expected))
    path = tmp_path / "own.npz"
    np.savez(path, **columns)  # type: ignore[arg-type]
    assert dataset_kind(path) == "table" and dipole("import", path, "--out", tmp_path / "data") == 0
    found = concatenate(list(open_dataset(tmp_path / "data").iter_rows()))
    assert all(np.array_equal(found[name], want[name]) for name in want)
    for names in (("next_observations",), ("timeouts",), ("masks",)):
        more = columns | {"masks": 1 - columns["terminals"].astype(np.float32)}
        kept = without(more, *({"next_observations", "timeouts", "masks", "episode"} - {*names}))
        np.savez(path, **{name: values[:, None] if values.ndim == 1 else values for name, values in kept.items()})  # type: ignore[arg-type]
        assert dataset_kind(path) == "table" and inspect_dataset(path).figures["transitions"] >= 26
    with pytest.raises(DatasetError, match=r"has 'timeouts', so one row a transition.*leave --format out"):
        np.savez(path, **without(columns, "next_observations"))  # type: ignore[arg-type]
        list(FORMATS["ogbench"].rows(path, Reading()))


def test_layouts_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    columns = columns_of_table()
    np.savez(tmp_path / "both.npz", **columns, valids=np.ones(29))  # type: ignore[arg-type]
    finding = inspect_dataset(tmp_path / "both.npz").findings[0]
    assert finding.level == "error" and "contradict" in finding.what
    path = write_table(tmp_path / "inverted.parquet", columns | {"masks": columns["terminals"].astype(np.float32)})
    with pytest.raises(DatasetError, match="'masks' equals 'terminals'"):
        list(FORMATS["table"].rows(path, Reading()))
    closed = ogbench_arrays(np.random.default_rng(0), [5, 6]) | {
        "rewards": np.ones(13, np.float32),
        "wind": np.ones(13),
    }
    report = ImportReport()
    list(FORMATS["ogbench"].rows(write_ogbench(tmp_path / "closed.npz", closed), Reading(), report))
    assert "2 rewards are not used" in report.warnings[0] and report.unread == ["wind"]


def test_a_wrong_suffix_misleads_nobody(tmp_path: Path) -> None:
    columns = transition_columns(np.random.default_rng(0), [20, 30])
    for made, name, kind in (
        (write_table(tmp_path / "a.parquet", columns), "a.arrow", "table"),
        (write_table(tmp_path / "b.feather", columns), "b.parquet", "table"),
        (write_table(tmp_path / "c.parquet", columns), "c", "table"),
        (write_d4rl(tmp_path / "d.hdf5", d4rl_arrays()), "d.npz", "d4rl"),
        (write_ogbench(tmp_path / "e.npz", ogbench_arrays(np.random.default_rng(0), [9])), "e.hdf5", "ogbench"),
    ):
        path = Path(shutil.move(made, tmp_path / name))
        assert dataset_kind(path) == kind and inspect_dataset(path).figures["transitions"] > 8
