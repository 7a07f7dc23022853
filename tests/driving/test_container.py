"""Folders of scenes: what comes back is what was written, and what is damaged is said."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

pytest.importorskip("shapely")

import shapely

from dipole_ray.driving import importing
from dipole_ray.driving.container import LIST_NAME, Origin, SceneFolder, finish_folder, start_folder, write_shard
from dipole_ray.driving.container import shard_bytes as packed
from dipole_ray.driving.geopackage import write_map
from dipole_ray.driving.importing import import_logs
from dipole_ray.driving.log import Camera, parsed_frames, write_log
from dipole_ray.driving.recorded import RecordedScene, scene_on_map
from dipole_ray.driving.rows import SCHEMA, scene_row
from dipole_ray.driving.score import PDMScorer
from dipole_ray.driving.split import FOLDER, read_split
from dipole_ray.errors import CorruptSegment, DatasetError
from tests.cli.commands import dipole_here
from tests.driving.drives import drive, town
from tests.driving.official import cache_bytes

ORIGIN = Origin("made by hand", "nobody", {"seed": 0})
CAMERA = {
    "data_path": "log/CAM_F0/1.jpg",
    "sensor2lidar_rotation": np.eye(3),
    "sensor2lidar_translation": np.array([1.0, 2.0, 3.0]),
    "cam_intrinsic": np.diag([500.0, 500.0, 1.0]),
    "distortion": np.zeros(5),
}


def scene(token: str, **changes: Any) -> RecordedScene:
    frames = drive(cams={"CAM_F0": CAMERA}, traffic_lights=[(51, True)], **changes)
    frames[3]["token"] = token
    return scene_on_map(parsed_frames(frames, "drive"), town())


@pytest.fixture(scope="module")
def two() -> list[RecordedScene]:
    return [scene("a"), scene("b", speed=5.0)]


@pytest.fixture
def folder(tmp_path: Path, two: list[RecordedScene]) -> Path:
    start_folder(tmp_path / "scenes", ORIGIN)
    shard = write_shard(tmp_path / "scenes", "drive", packed(two, ["scene c has no map"]))
    finish_folder(tmp_path / "scenes", ORIGIN, [shard])
    return tmp_path / "scenes"


def test_a_scene_comes_back_bit_by_bit(folder: Path, two: list[RecordedScene]) -> None:
    found = SceneFolder(folder)
    assert found.tokens == ("a", "b") and found.origin == ORIGIN
    for one, other in zip(two, found, strict=True):
        assert (one.token, one.log, one.map, one.command) == (other.token, other.log, other.map, other.command)
        assert (one.kinds, one.scene.objects, one.scene.route) == (other.kinds, other.scene.objects, other.scene.route)
        for name in ("history", "motion", "human"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(one.scene.reference, other.scene.reference)
        for mine, its in zip([*one.scene.frames, one.past], [*other.scene.frames, other.past], strict=True):
            assert list(mine.tokens) == list(its.tokens) and shapely.equals_exact(mine.polygons, its.polygons).all()
        assert shapely.equals_exact(one.scene.map_polygons, other.scene.map_polygons).all()
        camera: Camera = other.cameras["CAM_F0"]
        assert camera.path == "log/CAM_F0/1.jpg" and camera.translation.tolist() == [1.0, 2.0, 3.0]
        plans = np.stack([one.human, one.human * 1.2])
        np.testing.assert_array_equal(PDMScorer(one.scene).score(plans).pdms, PDMScorer(other.scene).score(plans).pdms)
    assert SceneFolder(folder).read("b").token == "b"
    with pytest.raises(DatasetError, match="no scene 'z'; it has 2 scenes"):
        found.read("z")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the rows of the file, with a checksum that fits: whoever writes a file can compute it."""
    with pa.ipc.open_file(folder / "drive.arrow") as reader:
        rows = [reader.get_batch(i).to_pylist()[0] for i in range(reader.num_record_batches)]
    change(rows[0])
    with pa.OSFile(str(folder / "drive.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for row in rows:
            writer.write_batch(pa.RecordBatch.from_pylist([row], schema=SCHEMA))
    listed = json.loads((folder / LIST_NAME).read_text())
    content = (folder / "drive.arrow").read_bytes()
    listed["shards"][0] |= {"bytes": len(content), "crc32": zlib.crc32(content)}
    (folder / LIST_NAME).write_text(json.dumps(listed))


def set_to(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        place: Any = row
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


DEEP = bytes.fromhex("010600000001000000") * 100_000
ROWS = {
    "NaN": (set_to("ego", 0, value=float("nan")), "ego is of another size, not finite"),
    "short": (set_to("human", value=[1.0]), "human is of another size"),
    "null": (set_to("objects", value=None), "cannot be read"),
    "no line": (set_to("centerline", value=b"x"), "no line in WKB"),
    "a stranger": (set_to("frames", 3, "tokens", 0, value="ufo"), "a frame has 'ufo', which is unknown"),
    "a token twice": (
        lambda row: row["frames"][3]["tokens"].__setitem__(0, row["frames"][3]["tokens"][1]),
        "one twice",
    ),
    "frames": (lambda row: row["frames"].pop(), "50 frames, 51 are needed"),
    "a map of nothing": (set_to("map_types", 0, value="RIVER"), "the map has 'RIVER'"),
    "geometries in geometries": (set_to("map_polygons", 0, value=DEEP), "its parts are something else"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_scene_is_one_sentence(folder: Path, name: str) -> None:
    change, said = ROWS[name]
    rewritten(folder, change)
    with pytest.raises(CorruptSegment, match="scene a cannot be read") as caught:
        SceneFolder(folder).read("a")
    assert said in str(caught.value)
    assert SceneFolder(folder).read("b").token == "b"


def test_a_damaged_folder_is_one_sentence(folder: Path) -> None:
    path, listed = folder / "drive.arrow", json.loads((folder / LIST_NAME).read_text())
    content = path.read_bytes()

    def said(damage: bytes | None = None, **changes: Any) -> str:
        path.write_bytes(content if damage is None else damage)
        (folder / LIST_NAME).write_text(json.dumps(listed | changes))
        with pytest.raises(DatasetError) as caught:
            SceneFolder(folder).read("a")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "the list says" in said(content[:-100])
    assert "checksum mismatch" in said(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    assert "not complete; run the command" in said(complete=False)
    assert "format 7, this version reads 1" in said(format=7)
    shard = listed["shards"][0]
    assert "not a list of scenes" in said(shards=[shard | {"name": "../drive.arrow"}])
    assert "not a list of scenes" in said(shards=[shard | {"tokens": [1]}])
    assert "names a scene twice" in said(shards=[shard | {"tokens": ["a", "a"]}])
    assert "2 scenes, the list says 1" in said(shards=[shard | {"tokens": ["a"]}])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("token", pa.int64())])):
        pass
    other = path.read_bytes()
    assert "it has other columns" in said(other, shards=[shard | {"bytes": len(other), "crc32": zlib.crc32(other)}])


def test_a_row_has_every_column(two: list[RecordedScene]) -> None:
    assert scene_row(two[0]).keys() == set(SCHEMA.names)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Two logs, the map, a checkout that names a split, and a metric cache for one scene."""
    (tmp_path / "logs").mkdir()
    for name, first in (("one", 0), ("two", 100)):
        frames = drive(18)
        for index, frame in enumerate(frames):
            frame |= {"log_name": name, "token": f"{first + index:016x}"}
        write_log(tmp_path / "logs" / f"{name}.pkl", frames)
    (tmp_path / "maps" / "town" / "9.12").mkdir(parents=True)
    write_map(tmp_path / "maps" / "town" / "9.12" / "map.gpkg", town())
    (tmp_path / "navsim" / FOLDER).mkdir(parents=True)
    split = {"_target_": "navsim.common.dataclasses.SceneFilter", "num_history_frames": 4, "num_future_frames": 10}
    split |= {"frame_interval": 1, "has_route": True, "log_names": ["two"], "tokens": [f"{i:016x}" for i in (104, 106)]}
    (tmp_path / "navsim" / FOLDER / "navtest.yaml").write_text(yaml.safe_dump(split))
    return tmp_path


def test_a_split_of_the_logs_becomes_a_folder_whose_plans_are_scored(logs: Path) -> None:
    words = ["logs", "scenes", "--maps", "maps", "--navsim", "navsim", "--split", "navtest"]
    done = dipole_here("drive", "import", *words, cwd=logs)
    assert done.returncode == 0 and "scenes: 2 scenes of 1 log" in done.stdout, done.stderr
    folder = SceneFolder(logs / "scenes")
    assert folder.tokens == (f"{104:016x}", f"{106:016x}")
    plans = {token: folder.read(token).human.tolist() for token in folder.tokens[:1]}
    (logs / "plans.json").write_text(json.dumps(plans))
    done = dipole_here("drive", "score", "plans.json", "scenes", "--csv", "scores.csv", cwd=logs)
    assert done.returncode == 0 and "1 scene without a plan" in done.stderr
    with (logs / "scores.csv").open() as stream:
        _, first, second, last = list(csv.reader(stream))
    assert first[1:3] == [folder.tokens[0], "True"] and second[1:3] == [folder.tokens[1], "False"]
    assert float(first[-1]) > 0.9 and last[1] == "average"
    done = dipole_here("drive", "score", "scenes", cwd=logs)
    assert done.returncode == 2 and "give a file of plans before it" in done.stderr


def test_an_import_goes_on_where_it_was_interrupted(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, seen = importing.scenes_of_log, list[str]()

    def interrupted(task: importing.LogTask) -> bytes:
        seen.append(str(task))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return work(task)

    monkeypatch.setattr(importing, "scenes_of_log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_logs(logs / "logs", logs / "scenes", maps=logs / "maps")
    with pytest.raises(DatasetError, match="not complete"):
        SceneFolder(logs / "scenes")
    import_logs(logs / "logs", logs / "scenes", maps=logs / "maps")
    assert seen == ["one.pkl", "two.pkl", "two.pkl"]
    assert len(SceneFolder(logs / "scenes")) == 2
    with pytest.raises(DatasetError, match="made with other settings"):
        import_logs(logs / "logs", logs / "scenes", maps=logs / "maps", split=read_split(logs / "navsim", "navtest"))


def test_scenes_of_metric_caches_are_taken_as_they_are_and_what_is_missing_is_said(logs: Path) -> None:
    one = scene_on_map(parsed_frames(drive(), "drive"), town())
    place = logs / "caches" / "two" / "unknown" / f"{104:016x}"
    place.mkdir(parents=True)
    (place / "metric_cache.pkl").write_bytes(cache_bytes(one))
    words = ["logs", "scenes", "--caches", "caches", "--navsim", "navsim", "--split", "navtest"]
    done = dipole_here("drive", "import", *words, cwd=logs)
    assert done.returncode == 0, done.stderr
    assert (
        f"1 scene could not be made and left out; the first: scene {106:016x} of two has no metric cache" in done.stderr
    )
    found = SceneFolder(logs / "scenes").read(f"{104:016x}")
    assert found.log == "two"
    np.testing.assert_allclose(found.scene.reference, one.scene.reference, atol=1e-6)


def test_what_an_import_lacks_is_said(logs: Path) -> None:
    def refused(said: str, *words: str) -> None:
        done = dipole_here("drive", "import", *words, cwd=logs)
        assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done.stderr

    refused("give the maps of nuPlan, or the metric caches", "logs", "scenes")
    refused("--split and --navsim belong together", "logs", "scenes", "--maps", "maps", "--split", "navtest")
    refused("known are: navtest", "logs", "scenes", "--maps", "maps", "--navsim", "navsim", "--split", "navtrain")
    refused("has 0 logs", "maps", "scenes", "--maps", "maps")
    refused("no LOG/TYPE/TOKEN/metric_cache.pkl", "logs", "scenes", "--caches", "maps")
    refused("one map of 'town' is needed", "logs", "scenes", "--maps", "navsim")
    path = logs / "navsim" / FOLDER / "navtest.yaml"
    for text, said in (("num_future_frames: 4", "scenes here have 10"), ("log_names: 3", "is no list"), ("[", "not a")):
        path.write_text(text)
        refused(said, "logs", "scenes", "--maps", "maps", "--navsim", "navsim", "--split", "navtest")
