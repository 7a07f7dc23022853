"""One number in ten thousand rows that is not finite: named by row and column, refused or cut out, never spliced."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dipole_ray.cli import main
from dipole_ray.columns import Schema
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.data.schema import Rows, concatenate
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.reading import ImportReport
from dipole_ray.errors import DatasetError, NonFiniteError
from tests.data.reading import read_ogbench, read_table
from tests.synthetic import ogbench_arrays, random_trajectory, transition_columns, write_ogbench, write_table

ROWS = 50_000
EVERY = 10_000
LENGTH = 249
COLUMNS = ("rewards", "observations", "actions", "next_observations")


def spoil(values: dict[str, np.ndarray], names: tuple[str, ...], seed: int) -> list[tuple[int, str]]:
    """Put one NaN or infinity into every 10 000 rows, a column at a time in turn; return where."""
    random = np.random.default_rng(seed)
    places = []
    for block in range(ROWS // EVERY):
        row = int(random.integers(block * EVERY, (block + 1) * EVERY))
        name = names[block % len(names)]
        if row % (LENGTH + 1) == LENGTH:
            row -= 1  # not a closing row, whose reward and action are nobody's
        values[name].reshape(len(values[name]), -1)[row, 0] = (np.nan, np.inf, -np.inf)[block % 3]
        places.append((row, name))
    return places


def transitions(rows: Rows) -> np.ndarray:
    """Return every transition as one row of observation, action, reward and next observation."""
    moving = np.flatnonzero(rows["remaining"])
    parts = (rows["observations"][moving], rows["actions"][moving], rows["rewards"][moving, None])
    return np.concatenate([*parts, rows["observations"][moving + 1]], axis=1)


def assert_cut_and_not_spliced(before: np.ndarray, after: np.ndarray, lost: int) -> None:
    """Every transition that is left was there before, in the same order, and exactly `lost` are gone."""
    assert np.isfinite(after).all()
    assert len(after) == len(before) - lost
    assert {row.tobytes() for row in after} < {row.tobytes() for row in before}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_archive_with_one_bad_row_in_ten_thousand(tmp_path: Path, seed: int) -> None:
    arrays = ogbench_arrays(np.random.default_rng(seed), [LENGTH] * (ROWS // (LENGTH + 1)))
    arrays["actions"] *= 0.5  # or the import would clip some
    arrays["rewards"] = np.random.default_rng(seed).normal(size=ROWS).astype(np.float32)
    before = transitions(concatenate(list(read_ogbench(write_ogbench(tmp_path / "good.npz", arrays)))))
    places = spoil(arrays, COLUMNS[:3], seed)
    path = write_ogbench(tmp_path / "bad.npz", arrays)
    with pytest.raises(DatasetError, match=re.escape(f"the first at row {places[0][0]} ({places[0][1]}); ")):
        list(read_ogbench(path))
    report = ImportReport()
    after = concatenate(list(read_ogbench(path, non_finite="drop", report=report)))
    assert report.non_finite == [f"row {row} ({name})" for row, name in places]
    lost = sum(1 + (name == "observations" and row % (LENGTH + 1) > 0) for row, name in places)
    assert report.dropped_transitions == lost
    assert_cut_and_not_spliced(before, transitions(after), lost)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ends", ["timeouts", "episode", "next_observations"])
def test_a_table_with_one_bad_row_in_ten_thousand(tmp_path: Path, seed: int, ends: str) -> None:
    columns = transition_columns(np.random.default_rng(seed), [LENGTH + 1] * (ROWS // (LENGTH + 1)))
    columns["actions"] *= 0.5
    columns["masks"] = 1.0 - columns["terminals"]
    names = {"next_observations": "next_observations", "masks": "masks"}
    names |= {"terminals": "terminals", "timeouts": "timeouts"} if ends == "timeouts" else {}
    names |= {"episode": "episode"} if ends == "episode" else {}
    mapping = TableMapping(**names)  # type: ignore[arg-type]
    before = transitions(concatenate(list(read_table(write_table(tmp_path / "good.parquet", columns, ROWS), mapping))))
    assert len(before) == ROWS
    places = spoil(columns, COLUMNS, seed)
    path = write_table(tmp_path / "bad.parquet", columns, ROWS)
    with pytest.raises(DatasetError, match=re.escape(f"the first at row {places[0][0]} ({places[0][1]}); ")):
        list(read_table(path, mapping))
    report = ImportReport()
    after = transitions(concatenate(list(read_table(path, mapping, non_finite="drop", report=report))))
    assert {int(place.split()[1]) for place in report.non_finite} == {row for row, _ in places}
    assert len(places) <= report.dropped_transitions <= 2 * len(places)
    assert_cut_and_not_spliced(before, after, report.dropped_transitions)


def test_import_names_the_rows_it_drops_and_drops_only_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), [LENGTH] * (ROWS // (LENGTH + 1)), 3, 1)
    arrays["rewards"] = np.zeros(ROWS, np.float32)
    places = spoil(arrays, COLUMNS[:3], 0)
    words = ["data", "import", str(write_ogbench(tmp_path / "data.npz", arrays)), "--out", str(tmp_path / "out")]
    assert main(words) == 2, "refused is the default"
    assert f"row {places[0][0]} ({places[0][1]})" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--non-finite", "drop"]) == 0
    said = capsys.readouterr().out
    assert all(f"row {row} ({name})" in said for row, name in places)
    for rows in open_dataset(tmp_path / "out").iter_rows():
        assert all(np.isfinite(rows[name]).all() for name in ("observations", "actions", "rewards", "masks"))


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "masks"])
def test_no_writer_stores_them(tmp_path: Path, name: str) -> None:
    """Whoever made the rows: what is not finite is refused where rows become files."""
    piece = random_trajectory(np.random.default_rng(0), 20)
    piece[name].reshape(len(piece[name]), -1)[7, 0] = np.nan
    with pytest.raises(NonFiniteError, match=rf"row 7 of column '{name}'"):
        write_dataset(tmp_path / "data", [random_trajectory(np.random.default_rng(1), 20), piece], Schema(3, 2), {})
    assert not (tmp_path / "data").exists()
