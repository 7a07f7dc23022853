"""LeRobot's folders, v2.1 and v3.0, become the transitions that their frames hold, without LeRobot."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import concatenate
from dipole_ray.data.sources.formats import dataset_kind
from dipole_ray.errors import ConfigError, DatasetError
from tests.cli.test_data_cli import dipole
from tests.data.test_table import transitions

LENGTHS = [12] * 11  # so that episode 10 sorts before episode 2 by name
SUCCEEDS = np.arange(11) % 2 == 0
FRAMES = sum(LENGTHS)
EPISODE = np.repeat(np.arange(11), LENGTHS)
LAST = np.cumsum(LENGTHS) - 1


def frames() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "observation.state": random.normal(size=(FRAMES, 3)).astype(np.float32),
        "action": random.uniform(10, 90, size=(FRAMES, 2)).astype(np.float32),
        "timestamp": np.concatenate([np.arange(length) / 30 for length in LENGTHS]).astype(np.float32),
        "frame_index": np.concatenate([np.arange(length) for length in LENGTHS]),
        "episode_index": EPISODE,
        "index": np.arange(FRAMES),
        "task_index": np.zeros(FRAMES, np.int64),
    }


def write(folder: Path, version: str, columns: dict[str, np.ndarray], **files: pa.Table) -> Path:
    """Write the folder as LeRobot's writers do: a file an episode (v2.1), or several episodes a file (v3.0)."""
    kept = {name: list(values) if values.ndim > 1 else values for name, values in columns.items()}
    table, is_old = pa.table(kept), version.startswith("v2")
    (folder / "data" / "chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    starts = [0, *(LAST + 1)] if is_old else [0, 60, FRAMES]
    for number, (start, stop) in enumerate(pairwise(starts)):
        name = f"episode_{number:06d}" if is_old else f"file-{number:03d}"
        pq.write_table(table.slice(start, stop - start), folder / "data" / "chunk-000" / f"{name}.parquet")
    info = {"codebase_version": version, "total_episodes": 11, "total_frames": FRAMES, "fps": 30, "features": {}}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    bounds = {"action": {"min": [0.0, 0.0], "max": [100.0, 100.0]}}
    if is_old:
        lines = [json.dumps({"episode_index": index, "stats": bounds}) for index in range(11)]
        (folder / "meta" / "episodes_stats.jsonl").write_text("\n".join(lines))
    else:
        (folder / "meta" / "stats.json").write_text(json.dumps(bounds))
    for name, made in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(made, path.with_suffix(".parquet"))
    return folder


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_frames_become_transitions_and_an_episodes_last_frame_closes_it(
    tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = frames()
    success = np.isin(np.arange(FRAMES), LAST[SUCCEEDS])
    labels = {"next.reward": success.astype(np.float32), "next.success": success}
    labels["next.done"] = np.isin(np.arange(FRAMES), LAST)
    path = write(tmp_path / "robot", version, columns | labels)
    assert dataset_kind(path) == "lerobot" and dipole("columns", path) == 0
    assert dipole("import", path, "--out", tmp_path / "data") == 0
    told = capsys.readouterr().out
    assert "not read: timestamp, index, task_index, next.done" in told and "from [0, 0] ... [100, 100]" in told
    found = transitions(concatenate(list(open_dataset(tmp_path / "data").iter_rows())))
    kept = np.delete(np.arange(FRAMES), LAST[~SUCCEEDS])  # where the task ended, nobody needs what came after
    np.testing.assert_array_equal(found["observations"], columns["observation.state"][kept])
    np.testing.assert_allclose(found["actions"], columns["action"][kept] / 50 - 1, atol=2e-5)
    np.testing.assert_array_equal(found["rewards"], success[kept])
    np.testing.assert_array_equal(found["masks"], 1.0 - success[kept])
    inner = found["masks"] == 1
    np.testing.assert_array_equal(found["next_observations"][inner], columns["observation.state"][kept[inner] + 1])


PROGRESS = np.concatenate([np.linspace(0, 1, length) for length in LENGTHS])
EPISODES = pa.table({"episode_index": range(11), "success": SUCCEEDS})
SIDECARS: dict[str, tuple[dict[str, np.ndarray], dict[str, pa.Table], float, int]] = {
    "success column": ({"next.success": np.isin(np.arange(FRAMES), LAST[SUCCEEDS])}, {}, 6.0, 6),
    "episodes": ({}, {"meta__episodes__chunk-000__file-000": EPISODES}, 6.0, 6),
    "progress": ({}, {"sarm_progress": pa.table({"index": np.arange(FRAMES), "progress_sparse": PROGRESS})}, 11.0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SIDECARS)
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_rewards_come_from_the_labels_that_exist(tmp_path: Path, version: str, name: str) -> None:
    columns, files, total, ended = SIDECARS[name]
    path = write(tmp_path / "robot", version, frames() | columns, **files)
    assert dipole("import", path, "--out", tmp_path / "data") == 0
    found = transitions(concatenate(list(open_dataset(tmp_path / "data").iter_rows())))
    assert found["rewards"].sum() == pytest.approx(total) and int((found["masks"] == 0).sum()) == ended
    assert len(found["rewards"]) == FRAMES - 11 + ended


def test_what_is_missing_is_said_with_what_would_serve(tmp_path: Path) -> None:
    path = write(tmp_path / "robot", "v3.0", frames())
    with pytest.raises(DatasetError, match=r"holds no rewards: .*next\.success.*success.*_progress\.parquet.*--map"):
        dipole("import", path, "--out", tmp_path / "data")
    rewarded = frames() | {"next.reward": np.ones(FRAMES, np.float32), "next.done": np.isin(np.arange(FRAMES), LAST)}
    path = write(tmp_path / "done", "v3.0", rewarded)
    assert any("next.done" in finding.what for finding in inspect_dataset(path).findings)
    (path / "data" / "chunk-000" / "file-001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"says 132 frames and the files hold 60; get the rest of data/"):
        dipole("import", path, "--out", tmp_path / "data")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_inspection_shows_a_folder_without_rewards_and_says_what_it_lacks(tmp_path: Path, version: str) -> None:
    inspection: Any = inspect_dataset(write(tmp_path / "robot", version, frames()))
    assert inspection.verdict != "error" and inspection.figures["trajectories"] == 11
    assert "return_max" not in inspection.figures
    assert any("no rewards" in one.what and "--map rewards=" in one.remedy for one in inspection.findings)


def test_episodes_of_v2_tell_success_by_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "robot", "v2.1", frames())
    lines = [{"episode_index": i, "tasks": ["reach"], "length": 12, "success": bool(SUCCEEDS[i])} for i in range(11)]
    (path / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert dipole("import", path, "--out", tmp_path / "data") == 0
    found = transitions(concatenate(list(open_dataset(tmp_path / "data").iter_rows())))
    assert found["rewards"].sum() == (found["masks"] == 0).sum() == 6
    solved = "\n".join(
        json.dumps(line if line["success"] else {"episode_index": line["episode_index"]}) for line in lines
    )
    (path / "meta" / "episodes.jsonl").write_text(solved)  # only where there is one
    inspection = inspect_dataset(path)
    assert any("5 of 11 episodes have no label of success" in finding.what for finding in inspection.findings)
    for wrong, found in (("[1, 2]", "not lines of JSON"), ('{"episode_index": 1, "success": "no"}', "success is 'no'")):
        (path / "meta" / "episodes.jsonl").write_text('{"episode_index": 0, "success": true}\n' + wrong)
        with pytest.raises(DatasetError, match=rf"{found}.*; "):
            dipole("import", path, "--out", tmp_path / "again")


@pytest.mark.parametrize("names", [["x", "y", "z"], {"motors": ["x", "y", "z"]}, {"x": 0, "y": 1, "z": 2}])
def test_an_offset_names_a_dimension_as_the_info_does(tmp_path: Path, names: Any) -> None:
    rewarded = frames() | {"next.reward": np.ones(FRAMES, np.float32)}
    seen = rewarded["observation.state"].astype(np.float64)
    far = rewarded | {"observation.state": seen + np.array([0, 0, 5.4e6])}
    path = write(tmp_path / "robot", "v3.0", far)
    info = json.loads((path / "meta" / "info.json").read_text())
    info["features"] = {"observation.state": {"dtype": "float64", "shape": [3], "names": names}}
    (path / "meta" / "info.json").write_text(json.dumps(info))
    assert any("dimension 2 ('z') of the observations" in finding.what for finding in inspect_dataset(path).findings)
    assert dipole("import", path, "--offset", "z=5400000", "--out", tmp_path / "data") == 0
    rows = concatenate(list(open_dataset(tmp_path / "data").iter_rows()))
    np.testing.assert_allclose(rows["observations"], rewarded["observation.state"], atol=1e-6)
    with pytest.raises(ConfigError, match=r"--offset w=1: .* or one of x, y, z"):
        dipole("import", path, "--offset", "w=1", "--out", tmp_path / "no")


def test_a_label_that_only_later_files_have_is_not_lost(tmp_path: Path) -> None:
    """As where success is written only when there is one."""
    path = write(tmp_path / "robot", "v2.1", frames() | {"next.reward": np.ones(FRAMES, np.float32)})
    later = path / "data" / "chunk-000" / "episode_000003.parquet"
    table = pq.read_table(later)
    pq.write_table(table.append_column("next.success", pa.array(np.arange(len(table)) == 11)), later)
    with pytest.raises(DatasetError, match=r"episode_000003\.parquet: has the column 'next\.success', which episode_0"):
        dipole("import", path, "--out", tmp_path / "data")
