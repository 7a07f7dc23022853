"""`inspect` says what is wrong with a dataset, where and what to do, and is content with a good one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import Rows, close_trajectory
from dipole_ray.errors import DatasetError
from tests.synthetic import ogbench_arrays, transition_columns, write_ogbench, write_table

SCHEMA = Schema(3, 2)


def walk(random: np.random.Generator, length: int, ends: bool = True) -> Rows:
    """Return a trajectory of small steps whose last transition may end the task."""
    masks = np.ones(length)
    masks[-1] = 0.0 if ends else 1.0
    return close_trajectory(
        np.cumsum(random.normal(size=(length + 1, 3)), axis=0),
        random.uniform(-1, 1, size=(length, 2)),
        random.normal(size=length),
        masks,
    )


def good(random: np.random.Generator) -> list[Rows]:
    return [walk(random, int(random.integers(30, 90)), ends=index % 2 == 0) for index in range(40)]


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.random.Generator], list[Rows]]:
    return lambda random: [piece | {name: change(piece[name]).astype(np.float32)} for piece in good(random)]


def with_jump(random: np.random.Generator) -> list[Rows]:
    pieces = good(random)
    pieces[3]["observations"][20:] += 1000.0
    return pieces


CASES: list[tuple[str, Callable[[np.random.Generator], list[Rows]], str, str]] = [
    ("good", good, "ok", ""),
    ("few", lambda random: good(random)[:3], "warning", "only .* transitions"),
    ("one", lambda random: [walk(random, 12_000)], "warning", "a single trajectory of 12000"),
    ("jump", with_jump, "warning", "1 transition jumps"),
    (
        "limit",
        lambda random: [walk(random, 50) for _ in range(30)],
        "warning",
        "30 of 30 trajectories end the task after 50",
    ),
    ("never", lambda random: [walk(random, 50, ends=False) for _ in range(30)], "ok", "no transition ends the task"),
    ("copies", lambda random: good(random) + good(np.random.default_rng(0))[:2], "warning", "2 of 42 trajectories, "),
    ("constant state", changed("observations", lambda x: x * [1, 0, 1]), "ok", "1 of 3 observation dimensions"),
    ("saturated", changed("actions", lambda x: np.sign(x)), "warning", "100% of the action entries"),
    ("constant action", changed("actions", lambda x: x * [1, 0]), "warning", "1 of 2 action dimensions never"),
    ("small actions", changed("actions", lambda x: x * 0.01), "warning", "no action is larger than 0.0"),
    ("no reward", changed("rewards", lambda x: x * 0 - 1), "warning", "every reward is -1"),
]


@pytest.mark.parametrize(("make", "verdict", "what"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_verdict(tmp_path: Path, make: Callable[[np.random.Generator], list[Rows]], verdict: str, what: str) -> None:
    write_dataset(tmp_path / "data", make(np.random.default_rng(0)), SCHEMA, {})
    inspection = inspect_dataset(tmp_path / "data")
    assert inspection.verdict == verdict, inspection.findings
    if what:
        assert any(re.search(what, finding.what) for finding in inspection.findings)
    else:
        assert inspection.findings == ()
    assert all(finding.where and finding.remedy for finding in inspection.findings)
    json.dumps(inspection.to_json())


def test_masks_the_wrong_way_round(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pieces = [
        close_trajectory(
            random.normal(size=(41, 3)), random.uniform(-1, 1, (40, 2)), random.normal(size=40), np.zeros(40)
        )
        for _ in range(30)
    ]
    write_dataset(tmp_path / "data", pieces, SCHEMA, {})
    findings = inspect_dataset(tmp_path / "data").findings
    assert any("100% of the transitions end the task" in finding.what for finding in findings)


def test_raw_files_are_judged_by_the_same_rules(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = ogbench_arrays(random, [300] * 5)
    arrays["observations"] = np.cumsum(arrays["observations"], axis=0)
    arrays["observations"][7] = np.nan
    npz = inspect_dataset(write_ogbench(tmp_path / "data.npz", arrays))
    assert (npz.kind, npz.verdict) == ("ogbench", "error")
    assert (
        "2 transitions (0.133 %) touch NaN" in npz.findings[0].what and npz.findings[0].where == "row 7 (observations)"
    )
    assert any("no rewards" in finding.what for finding in npz.findings) and "return_max" not in npz.figures
    table = inspect_dataset(write_table(tmp_path / "t.parquet", transition_columns(random, [300] * 6)))
    assert (table.kind, table.figures["transitions"], table.figures["trajectories"]) == ("table", 1800, 6)
    assert table.figures["terminated_fraction"] == 0.5


def test_a_damaged_dataset_is_a_finding_and_a_missing_one_an_error(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", good(np.random.default_rng(0)), SCHEMA, {})
    (tmp_path / "data" / manifest.files[0].name).write_bytes(b"")
    inspection = inspect_dataset(tmp_path / "data")
    assert inspection.verdict == "error" and "length is 0 bytes" in inspection.findings[0].what
    with pytest.raises(DatasetError, match="no such file"):
        inspect_dataset(tmp_path / "nothing")


def test_figures_are_the_datasets(tmp_path: Path) -> None:
    pieces = good(np.random.default_rng(0))
    write_dataset(tmp_path / "data", pieces, SCHEMA, {}, segment_rows=500)
    inspection = inspect_dataset(tmp_path / "data")
    lengths = [len(piece["rewards"]) - 1 for piece in pieces]
    returns = [float(piece["rewards"].sum()) for piece in pieces]
    figures = inspection.figures
    assert (figures["transitions"], figures["trajectories"]) == (sum(lengths), 40)
    assert (figures["length_min"], figures["length_max"]) == (min(lengths), max(lengths))
    assert figures["return_max"] == pytest.approx(max(returns), rel=1e-5)
    assert figures["terminated_fraction"] == figures["solved_fraction"] == 0.5
    assert figures["masked_fraction"] == pytest.approx(20 / sum(lengths))
    for name, total in (("actions", 2 * sum(lengths)), ("lengths", 40), ("returns", 40)):
        edges, counts = inspection.histograms[name]
        assert sum(counts) == total and len(edges) == len(counts) + 1


def test_a_partly_damaged_dataset_is_an_error_that_names_the_rows_and_the_rest_is_judged(tmp_path: Path) -> None:
    manifest = write_dataset(
        tmp_path / "data", good(np.random.default_rng(0)), SCHEMA, {"file": "robot.parquet"}, segment_rows=500
    )
    sizes = [entry.rows for entry in manifest.files]
    (tmp_path / "data" / manifest.files[1].name).unlink()
    inspection = inspect_dataset(tmp_path / "data")
    finding = inspection.findings[0]
    assert inspection.verdict == finding.level == "error" and "the file is missing" in finding.what
    assert finding.where == f"rows {sizes[0]} to {sizes[0] + sizes[1] - 1} of {sum(sizes)}"
    assert f"dipole data import robot.parquet --out {tmp_path / 'data'} --overwrite" in finding.remedy
    assert inspection.figures["transitions"] == manifest.num_transitions - manifest.files[1].transitions


def test_a_table_without_rewards_is_shown(tmp_path: Path) -> None:
    columns = transition_columns(np.random.default_rng(0), [50] * 30)
    del columns["rewards"]
    inspection = inspect_dataset(write_table(tmp_path / "own.parquet", columns))
    assert inspection.figures["transitions"] == 1500 and "return_max" not in inspection.figures
    assert any("--map rewards=COLUMN" in finding.remedy for finding in inspection.findings)
