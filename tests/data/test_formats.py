"""A format is one row of a table, and the schema's guarantees hold for whatever its reader finds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.cli.data import add_parser
from dipole_ray.columns import Schema
from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import ACTION_LIMIT, concatenate
from dipole_ray.data.sources.formats import FORMATS, Format, dataset_kind
from dipole_ray.data.sources.reading import Block, ImportReport, Reading
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import DatasetError
from dipole_ray.runs.config import DataConfig
from dipole_ray.runs.prepare import prepare_dataset
from tests.data.test_exorl import dipole


def block(path: Path, steps: int = 1200, **changes: Any) -> Block:
    """Return two trajectories of Pendulum's dimensions, of which nobody knows what the last actions led to."""
    random = np.random.default_rng(0)
    found: dict[str, Any] = {
        "observations": random.normal(size=(steps, 3)).astype(np.float32),
        "actions": random.uniform(-2, 2, size=(steps, 1)),
        "rewards": random.normal(size=steps).astype(np.float32),
        "masks": np.ones(steps, np.float32),
        "ends": np.isin(np.arange(steps), (steps // 2, steps - 1)),
    }
    return Block(path=path, columns=found | changes)


def format_of(make: Callable[[Path], Block], **row: Any) -> Format:
    def read(path: Path, reading: Reading, report: ImportReport) -> Iterator[Block]:
        yield make(path)

    options = {"suffixes": (".log",)} | row
    return Format(name="log", what="a log", schema=lambda path, reading: Schema(3, 1), read=read, **options)


BOUNDS = (np.array([-2.0]), np.array([2.0]))


def test_a_format_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Import, inspect, a run's data.path and the library take it, with its actions brought to [-1, 1]."""
    rows = {"log": format_of(block), **FORMATS}
    monkeypatch.setattr("dipole_ray.data.sources.formats.FORMATS", rows)
    for user in ("dipole_ray.data.inspection.inspect", "dipole_ray.collect.convert"):
        monkeypatch.setattr(f"{user}.FORMATS", rows)
    path = tmp_path / "robot.log"
    path.touch()
    assert dataset_kind(path) == "log"
    assert dipole("import", path, "--env", "Pendulum-v1", "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert (
        "1198 transitions in 2 trajectories, 2 transitions (0.167 %) left out because nothing says what they led to"
        in told
    )
    assert "note: actions were scaled to [-1, 1] from [-2] ... [2]" in told
    assert dipole("inspect", path, "--env", "Pendulum-v1") == 0
    assert inspect_dataset(path, Reading(action_bounds=BOUNDS)).kind == "log"
    prepared = prepare_dataset(DataConfig(path=str(path), cache=str(tmp_path)), EnvConfig(id="Pendulum-v1"))
    assert prepared is not None and prepared.parent == tmp_path / "converted"
    imported, converted = (concatenate(list(open_dataset(p).iter_rows())) for p in (tmp_path / "out", prepared))
    assert all(np.array_equal(imported[name], converted[name]) for name in imported)
    kept = np.delete(block(path).columns["actions"], (600, 1199), axis=0) / 2
    np.testing.assert_allclose(imported["actions"][imported["remaining"] > 0], kept, atol=2e-5)
    assert np.abs(imported["actions"]).max() <= np.float32(ACTION_LIMIT)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "range": (
        {"actions": np.full((1200, 1), 2.5)},
        r"1198 of 1198 actions lie outside \[-2, 2\], .* the bounds of",
    ),
    "width": ({"actions": np.zeros((1200, 2))}, "actions have 2 dimensions, the action space has 1"),
    "masks": ({"masks": np.full(1200, 0.5, np.float32)}, "masks must be 0 .* or 1, row 0 holds 0.5"),
    "nan": ({"rewards": np.full(1200, np.nan, np.float32)}, r"1198 transitions touch NaN .* row 0 \(rewards\)"),
    "order": ({"next_observations": np.zeros((1200, 3), np.float32)}, "1198 next observations differ from the next"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_a_guarantee_is_refused_whatever_the_format(tmp_path: Path, case: str) -> None:
    changes, told = BROKEN[case]
    broken = format_of(lambda path: block(path, **changes))
    with pytest.raises(DatasetError, match=rf"robot\.log: {told}"):
        list(broken.rows(tmp_path / "robot.log", Reading(action_bounds=BOUNDS)))


def test_the_task_ends_and_a_time_limit_are_two_things(tmp_path: Path) -> None:
    """Where the task ended nobody needs the next observation; where a limit cut, its transition is left out without."""
    masks = np.where(np.arange(1200) == 600, 0.0, 1.0).astype(np.float32)
    report = ImportReport()
    row = format_of(lambda path: block(path, masks=masks))
    with pytest.raises(DatasetError, match="lie outside"):
        list(row.rows(tmp_path, Reading(action_bounds=BOUNDS, actions_are="unit")))
    row = format_of(lambda path: block(path, masks=masks))
    rows = concatenate(list(row.rows(tmp_path, Reading(action_bounds=BOUNDS), report)))
    assert (report.transitions, report.trajectories, report.unfollowed_transitions) == (1199, 2, 1)
    assert np.flatnonzero(rows["masks"] == 0).tolist() == [600] and np.flatnonzero(rows["remaining"] == 0)[0] == 601


def test_the_command_offers_every_format() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    add_parser(commands)
    assert parser.parse_args(["data", "import", "x", "--out", "y"]).format is None
    for name in FORMATS:
        assert parser.parse_args(["data", "import", "x", "--out", "y", "--format", name]).format == name
