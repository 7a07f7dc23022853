"""Any table, by its mapping, becomes the same transitions; what the mapping leaves open is asked, not guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from dipole_ray.data.schema import ACTION_LIMIT, Rows, concatenate
from dipole_ray.data.sources.formats import FORMATS, dataset_kind
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.reading import ImportReport, Reading
from dipole_ray.data.sources.table import table_columns
from dipole_ray.errors import ConfigError, DatasetError
from tests.data.reading import read_table, table_schema
from tests.synthetic import transition_columns, write_d4rl, write_table

LENGTHS = [5, 8, 1, 12, 3]  # the second and fourth terminate, the others are cut by a time limit
LAST = np.cumsum(LENGTHS) - 1


def columns_of_table() -> dict[str, np.ndarray]:
    return transition_columns(np.random.default_rng(0), LENGTHS)


def without(columns: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: values for name, values in columns.items() if name not in names}


def read(path: Path, mapping: TableMapping) -> Rows:
    return concatenate(list(read_table(path, mapping)))


def transitions(rows: Rows) -> dict[str, np.ndarray]:
    moving = np.flatnonzero(rows["remaining"])
    found = {name: rows[name][moving] for name in ("observations", "actions", "rewards", "masks")}
    return found | {"next_observations": rows["observations"][moving + 1]}


@pytest.mark.parametrize("name", ["table.parquet", "table.feather"])
@pytest.mark.parametrize(
    "ends", [("terminals", "timeouts"), ("terminals", "episode"), ("terminals", "timeouts", "episode")], ids="+".join
)
def test_every_transition_with_its_next_observation(tmp_path: Path, name: str, ends: tuple[str, ...]) -> None:
    columns = columns_of_table()
    path = write_table(tmp_path / name, columns)
    mapping = TableMapping(next_observations="next_observations", **{end: end for end in ends})  # type: ignore[arg-type]
    rows = read(path, mapping)
    found = transitions(rows)
    for key in ("observations", "next_observations", "rewards"):
        np.testing.assert_array_equal(found[key], columns[key])
    np.testing.assert_array_equal(found["actions"], np.clip(columns["actions"], -ACTION_LIMIT, ACTION_LIMIT))
    np.testing.assert_array_equal(found["masks"], 1.0 - columns["terminals"])
    np.testing.assert_array_equal(np.flatnonzero(rows["remaining"] == 0), LAST + 1 + np.arange(5))
    schema = table_schema(path, mapping)
    assert (schema.observation_dim, schema.action_dim) == (3, 2)


def test_without_next_observations_only_time_limits_cost_their_last_transition(tmp_path: Path) -> None:
    columns = columns_of_table()
    path = write_table(tmp_path / "table.parquet", without(columns, "next_observations"))
    rows = read(path, TableMapping(terminals="terminals", timeouts="timeouts"))
    kept = np.setdiff1d(np.arange(sum(LENGTHS)), LAST[0::2])
    np.testing.assert_array_equal(transitions(rows)["rewards"], columns["rewards"][kept])
    np.testing.assert_array_equal(transitions(rows)["masks"], 1.0 - columns["terminals"][kept])


def test_boundaries_are_found_where_the_next_observation_is_another_ones(tmp_path: Path) -> None:
    columns = columns_of_table() | {"masks": 1.0 - columns_of_table()["terminals"]}
    path = write_table(tmp_path / "table.parquet", without(columns, "terminals", "timeouts", "episode"))
    rows = read(path, TableMapping(next_observations="next_observations", masks="masks"))
    np.testing.assert_array_equal(np.flatnonzero(rows["remaining"] == 0), LAST + 1 + np.arange(5))


def test_terminals_as_mere_boundaries_keep_the_bootstrap(tmp_path: Path) -> None:
    path = write_table(tmp_path / "table.parquet", without(columns_of_table(), "timeouts", "episode"))
    rows = read(path, TableMapping(terminals="terminals", terminals_are="boundary"))
    assert (rows["masks"] == 1).all()


def test_a_folder_of_files_with_scalar_columns_is_one_table(tmp_path: Path) -> None:
    columns = columns_of_table()
    flat = {f"obs_{index}": columns["observations"][:, index] for index in (2, 0, 1)}
    flat |= {"gas": columns["actions"][:, 0], "steer": columns["actions"][:, 1]}
    flat |= {"r": columns["rewards"], "run": np.array([f"run {index}" for index in columns["episode"]])}
    (tmp_path / "tables").mkdir()
    for number, part in enumerate((slice(0, 9), slice(9, 16), slice(16, None))):
        pq.write_table(
            pa.table({name: values[part] for name, values in flat.items()}), tmp_path / f"tables/{number}.parquet"
        )
    pairs = ["observations=obs_*", "actions=gas,steer", "rewards=r", "episode=run"]
    rows = read(tmp_path / "tables", TableMapping.from_pairs(pairs))
    kept = np.setdiff1d(np.arange(sum(LENGTHS)), LAST)
    np.testing.assert_array_equal(transitions(rows)["observations"], columns["observations"][kept])
    np.testing.assert_array_equal(transitions(rows)["next_observations"], columns["observations"][kept + 1])


def test_non_finite_rows_are_refused_or_dropped(tmp_path: Path) -> None:
    columns = columns_of_table()
    columns["rewards"][7] = np.nan
    path = write_table(tmp_path / "table.parquet", columns)
    mapping = TableMapping.guess(list(columns))
    with pytest.raises(DatasetError, match=r"1 transition touches NaN .* row 7 \(rewards\)"):
        read(path, mapping)
    report = ImportReport()
    pieces = list(read_table(path, mapping, non_finite="drop", report=report))
    assert sum(int((piece["remaining"] > 0).sum()) for piece in pieces) == report.transitions == sum(LENGTHS) - 1
    assert (report.dropped_transitions, report.trajectories, report.rows_read) == (1, 6, sum(LENGTHS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"no column is known to say where trajectories end; give --map terminals=COLUMN"),
        ({"terminals": "done"}, r"does not tell a time limit from the end of the task; give --map terminals_are="),
        ({"terminals_are": "boundary", "episode": "run"}, "no terminals are; give --map terminals=COLUMN"),
        ({"terminals": "done", "terminals_are": "sometimes"}, "must be 'termination' or 'boundary'"),
        ({"terminals": "done", "terminals_are": "termination", "masks": "m"}, "both say where the task ends"),
    ],
)
def test_an_open_mapping_is_refused_with_the_question(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TableMapping(**settings).check()  # type: ignore[arg-type]


def test_unknown_meanings_and_columns_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'rewards'"):
        TableMapping.from_pairs(["reward=r"])
    with pytest.raises(ConfigError, match="MEANING=COLUMN"):
        TableMapping.from_pairs(["rewards"])
    path = write_table(tmp_path / "table.parquet", columns_of_table())
    with pytest.raises(DatasetError, match="no column 'rewadrs' for rewards; did you mean 'rewards'"):
        read(path, TableMapping(rewards="rewadrs", episode="episode"))
    with pytest.raises(DatasetError, match="needs one column"):
        read(path, TableMapping(rewards="t*", episode="episode"))


def ragged(columns: dict[str, np.ndarray]) -> pa.Table:
    lists = [values.tolist() for values in columns["observations"]]
    lists[4] = lists[4][:2]
    return pa.table(without(columns, "observations", "next_observations", "actions")).append_column(
        "observations", pa.array(lists)
    ).append_column("actions", pa.array(list(columns["actions"])))  # fmt: skip


def test_tables_that_cannot_be_read_give_one_sentence(tmp_path: Path) -> None:
    columns = columns_of_table()
    path = tmp_path / "table.parquet"
    mapping = TableMapping(terminals="terminals", timeouts="timeouts")
    full = TableMapping.guess(list(columns))

    def check(message: str, mapping: TableMapping) -> None:
        with pytest.raises(DatasetError, match=f"table.parquet: .*{message}"):
            read(path, mapping)

    swapped = {name: values.copy() for name, values in columns.items()}
    swapped["next_observations"][[6, 7]] = swapped["next_observations"][[7, 6]]
    write_table(path, swapped)
    check(r"2 next observations differ .* the first at row 6; sort", full)
    write_table(path, columns | {"next_observations": columns["observations"][:, :2]})
    check("next_observations have 2 dimensions, observations 3", full)
    write_table(path, columns | {"actions": columns["actions"] * 4})
    check(r"actions lie outside \[-1, 1\]", full)
    pq.write_table(ragged(columns), path)
    check(r"column 'observations' has 2 values at row 4 and 3 at row 0", mapping)
    table = pa.table({"rewards": pa.array([1.0, None, 2.0]), "episode": [0, 0, 0]})
    table = table.append_column("observations", pa.array([[1.0]] * 3)).append_column("actions", pa.array([[0.1]] * 3))
    pq.write_table(table, path)
    check("column 'rewards' has 1 missing value, the first near row 1", TableMapping(episode="episode"))
    pq.write_table(table.set_column(0, "rewards", pa.array(["a", "b", "c"])), path)
    check("column 'rewards' is of type string", TableMapping(episode="episode"))
    path.write_bytes(path.read_bytes()[:-20])
    check("damaged or cut short", TableMapping(episode="episode"))
    with pytest.raises(DatasetError, match="no table here"):
        read(tmp_path / "table.csv", mapping)


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_a_file_reads_the_same_whatever_types_this_process_knows(tmp_path: Path, suffix: str) -> None:
    """Tensor columns are extensions to a process with `ray.data`, lists to one without; texts may be dictionaries."""
    from ray.data.extensions import ArrowTensorArray

    def table(vectors: Callable[[np.ndarray], pa.Array]) -> pa.Table:
        columns = {name: vectors(v) if v.ndim > 1 else pa.array(v) for name, v in columns_of_table().items()}
        run = pa.array([f"run {index}" for index in columns_of_table()["episode"]])
        return pa.table(columns | {"episode": run.dictionary_encode()})

    def rows_of(vectors: Callable[[np.ndarray], pa.Array]) -> Rows:
        path = tmp_path / f"table.{suffix}"
        write = pq.write_table if suffix == "parquet" else feather.write_feather
        write(table(vectors), str(path))
        return read(path, TableMapping.guess(table_columns(path)))

    expected = rows_of(lambda values: pa.array(list(values)))
    for vectors in (pa.FixedShapeTensorArray.from_numpy_ndarray, ArrowTensorArray.from_numpy):
        assert all(np.array_equal(values, expected[name]) for name, values in rows_of(vectors).items())


@pytest.mark.parametrize("timeouts", [True, False])
@pytest.mark.parametrize("kind", ["parquet", "feather", "hdf5"])
def test_ends_that_nothing_marks_are_the_same_in_every_format(tmp_path: Path, kind: str, timeouts: bool) -> None:
    """Without timeouts, or with one forgotten, a next observation that is not the next row's shows where one ends."""
    columns = without(columns_of_table(), "episode", *([] if timeouts else ["timeouts"]))
    if timeouts:
        columns["timeouts"][LAST[0]] = False
    path, report = tmp_path / f"table.{kind}", ImportReport()
    write = write_d4rl if kind == "hdf5" else write_table
    rows = concatenate(list(FORMATS[dataset_kind(write(path, columns))].rows(path, Reading(), report)))
    found = transitions(rows)
    np.testing.assert_array_equal(found["next_observations"], columns["next_observations"])
    np.testing.assert_array_equal(found["masks"], 1.0 - columns["terminals"])
    assert [
        ("1 trajectory ends" if timeouts else "2 trajectories end") + ", unmarked" in note for note in report.notes
    ].count(True) == 1


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
@pytest.mark.parametrize("ends", [("terminals", "timeouts"), ("episode", "terminals"), ("terminals",)], ids="+".join)
def test_a_next_observation_that_is_missing_on_a_last_row_is_not_needed_there(
    tmp_path: Path, suffix: str, ends: tuple[str, ...]
) -> None:
    """As `groupby(episode).shift(-1)` leaves them: where the task ended it is not used, elsewhere the row closes."""
    columns = columns_of_table()
    following = [None if row in LAST else vector for row, vector in enumerate(columns["next_observations"])]
    table = pa.table({"next_observations": pa.array(following, pa.list_(pa.float32()))})
    for name in ("observations", "actions", "rewards", *ends):
        values = columns[name]
        table = table.append_column(name, pa.array(list(values) if values.ndim > 1 else values))
    path = tmp_path / f"table.{suffix}"
    pq.write_table(table, path) if suffix == "parquet" else feather.write_feather(table, str(path))
    found = transitions(concatenate(list(FORMATS["table"].rows(path, Reading()))))
    kept = np.setdiff1d(np.arange(sum(LENGTHS)), LAST[0::2])
    np.testing.assert_array_equal(found["rewards"], columns["rewards"][kept])
    np.testing.assert_array_equal(found["masks"], 1.0 - columns["terminals"][kept])
