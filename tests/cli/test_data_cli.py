"""`dipole data` from files to a dataset, and one clear sentence where that is not possible."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import ogbench
import pytest

from dipole_ray.cli.data import add_data_parser
from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.replay import Replay
from dipole_ray.errors import ConfigError, DatasetError
from tests.synthetic import ogbench_arrays, transition_columns, write_ogbench, write_table

TASK = "pointmaze-medium-navigate-singletask-task1-v0"


def dipole(*words: str | Path) -> int:
    """Run `dipole data ...` in this process."""
    parser = argparse.ArgumentParser(prog="dipole")
    add_data_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["data", *map(str, words)])
    code: int = args.run(args)
    return code


def test_collect_import_inspect_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way of a new user's data, with the real collector, and OGBench's loader as the witness."""
    name = "pointmaze-medium-navigate-v0"
    assert dipole("collect", name, "--transitions", "2000", "--seed", "0", "--out", tmp_path, "--workers", "1") == 0
    npz = tmp_path / f"{name}.npz"
    assert f"next: dipole data import {npz} --env" in capsys.readouterr().out
    assert dipole("import", npz, "--env", TASK, "--out", tmp_path / "data") == 0
    assert "2000 transitions in 2 trajectories" in capsys.readouterr().out
    _, expected, _ = ogbench.make_env_and_datasets(TASK, dataset_path=str(npz))
    dataset = open_dataset(tmp_path / "data")
    rows = dataset.segments[0].columns
    np.testing.assert_array_equal(rows["rewards"][rows["remaining"] > 0], expected["rewards"])
    assert dataset.source["env"] == TASK
    verdict, picture = tmp_path / "verdict.json", tmp_path / "picture.png"
    assert dipole("inspect", tmp_path / "data", "--json", verdict, "--plot", picture) == 0
    shown = capsys.readouterr().out
    assert "2,000 in 2 trajectories" in shown and ("data (dataset): ok" in shown or ": warning" in shown)
    assert json.loads(verdict.read_text())["figures"]["transitions"] == 2000
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(Replay(schema=dataset.schema, offline=[tmp_path / "data"]).sample(256)["rewards"]) == 256


def test_import_of_a_table_by_its_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = transition_columns(np.random.default_rng(0), [50, 60])
    columns["r"] = columns.pop("rewards")
    path = write_table(tmp_path / "log.parquet", columns)
    words = ["--map", "rewards=r", "--map", "terminals=terminals", "--map", "timeouts=timeouts"]
    assert (
        dipole("import", path, "--out", tmp_path / "data", *words, "--map", "next_observations=next_observations") == 0
    )
    assert open_dataset(tmp_path / "data").num_transitions == 110
    assert "next: dipole data inspect" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="no column 'rewards'"):
        dipole("import", path, "--out", tmp_path / "other", "--map", "episode=episode")
    assert not (tmp_path / "other").exists()


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), [20, 30], 2, 2)
    path = write_ogbench(tmp_path / "data.npz", arrays)
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match="holds no rewards; name the task to label it for, such as --env"):
        dipole("import", path, "--out", out)
    with pytest.raises(DatasetError, match=r"observations have 2 .* 'cube-single-play-singletask-v0' has 28"):
        dipole("import", path, "--out", out, "--env", "cube-single-play-singletask-v0")
    with pytest.raises(ConfigError, match="pointmaze"):
        dipole("import", path, "--out", out, "--env", "pointmaze-mediun-navigate-singletask-v0")
    with pytest.raises(ConfigError, match="--map is for tables"):
        dipole("import", path, "--out", out, "--map", "rewards=r")
    arrays["observations"][3] = np.nan
    write_ogbench(path, arrays)
    with pytest.raises(DatasetError, match=r"the first at row 2 .* --non-finite drop"):
        dipole("import", path, "--out", out, "--env", TASK)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="cut short"):
        dipole("import", path, "--out", out, "--env", TASK)
    assert not out.exists()
    assert dipole("inspect", path) == 1
    with pytest.raises(ConfigError, match="no picture"):
        dipole("inspect", path, "--plot", tmp_path / "x.png")


def test_a_dataset_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), [20, 30], 2, 2)
    arrays["observations"][3] = np.nan
    path = write_ogbench(tmp_path / "data.npz", arrays)
    words: list[str | Path] = ["import", path, "--out", tmp_path / "data", "--env", TASK, "--non-finite", "drop"]
    assert dipole(*words) == 0
    assert open_dataset(tmp_path / "data").num_transitions == 48
    with pytest.raises(DatasetError, match="--overwrite"):
        dipole(*words)
    assert dipole(*words, "--overwrite") == 0
    with pytest.raises(DatasetError, match="is a dataset already"):
        dipole("import", tmp_path / "data", "--out", tmp_path / "again")


@pytest.mark.parametrize("command", ["import", "inspect", "collect"])
def test_help_teaches_by_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        dipole(command, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "examples:" in text and text.count(f"dipole data {command}") >= 4
