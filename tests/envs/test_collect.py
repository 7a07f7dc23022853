import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from dipole_ray.collect import collect, dataset
from dipole_ray.collect.episode import Columns
from dipole_ray.collect.manipulation import ManipulationCollector
from dipole_ray.collect.registry import RECIPES
from dipole_ray.data.dataset import open_dataset
from dipole_ray.errors import ConfigError, DatasetError

MAZE = "pointmaze-medium-navigate-v0"
TRANSITIONS = 12_500


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return collect(MAZE, TRANSITIONS, 3, tmp_path_factory.mktemp("one"), num_workers=1, progress=False)


def contents(files: list[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files]


def test_the_files_hold_exactly_what_was_asked_for(reference: list[Path]) -> None:
    assert [file.name for file in reference] == [f"{MAZE}.npz", f"{MAZE}-val.npz"]
    for file, transitions in zip(reference, (TRANSITIONS, TRANSITIONS // 10), strict=True):
        with np.load(file, allow_pickle=False) as columns:
            ends = np.flatnonzero(columns["terminals"])
            rows = len(columns["terminals"])
            assert rows - len(ends) == transitions and ends[-1] == rows - 1
            assert np.all(np.diff(ends)[: len(ends) - 2] == 1001)
            types = {key: columns[key].dtype.name for key in columns.files}
            assert types == dict.fromkeys(("observations", "actions", "qpos", "qvel"), "float32") | {
                "terminals": "bool"
            }
            assert np.abs(columns["actions"]).max() <= 1.0
    record = json.loads(reference[0].with_suffix(".json").read_text())
    assert record["request"]["seed"] == 3 and set(record["versions"]) == {"ogbench", "mujoco", "gymnasium", "numpy"}


def test_pointmaze_data_covers_the_maze_and_reaches_its_goals(reference: list[Path]) -> None:
    from dipole_ray.envs.relabel import ogbench_relabel

    with np.load(reference[0], allow_pickle=False) as columns:
        cells = np.unique(np.floor((columns["qpos"] + 6.0) / 4.0), axis=0)
        reached = [
            (ogbench_relabel(f"pointmaze-medium-navigate-singletask-task{task}-v0", columns)[1] == 0).sum()
            for task in range(1, 6)
        ]
    assert len(cells) >= 26, "some free cells were never visited"
    assert min(reached) > 5, reached


def test_another_seed_gives_other_data(reference: list[Path], tmp_path: Path) -> None:
    other = collect(MAZE, 50, 4, tmp_path, num_workers=1, progress=False)
    with np.load(other[0]) as new, np.load(reference[0]) as old:
        assert not np.array_equal(new["observations"][:50], old["observations"][:50])


def test_workers_and_shards_make_no_difference_to_the_bytes(
    no_ray: None, reference: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD_TRANSITIONS", 4000)
    files = collect(MAZE, TRANSITIONS, 3, tmp_path, num_workers=2, progress=False)
    assert contents(files) == contents(reference)
    assert not ray.is_initialized(), "the Ray that was started here was left running"


COLLECT = """
from dipole_ray.collect import collect, dataset
dataset.SHARD_TRANSITIONS = 2000
collect("{name}", {transitions}, 3, "{out}", num_workers=1)
"""


def test_a_killed_collection_goes_on_from_its_finished_shards(
    reference: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD_TRANSITIONS", 2000)
    code = COLLECT.format(name=MAZE, transitions=TRANSITIONS, out=tmp_path)
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (kept := sorted(tmp_path.glob(".*.partial/train-*.npz"))) and time.monotonic() < deadline:
        assert child.poll() is None, "the collection ended before it could be killed"
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert not list(tmp_path.glob("*.npz")), "files appeared before the collection was complete"
    played, play = list[str](), dataset.play

    def play_and_note(shard: dataset.Shard) -> list[Columns]:
        played.append(shard.file_name)
        return play(shard)

    monkeypatch.setattr(dataset, "play", play_and_note)
    kept = sorted(tmp_path.glob(".*.partial/train-*.npz"))
    files = collect(MAZE, TRANSITIONS, 3, tmp_path, num_workers=1, progress=False)
    assert contents(files) == contents(reference)
    planned = {shard.file_name for shard in dataset.plan(MAZE, TRANSITIONS, 3)}
    assert set(played) == planned - {path.name for path in kept} and len(played) < len(planned)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"{MAZE}-val.npz", f"{MAZE}.json", f"{MAZE}.npz"]
    )


def test_the_same_request_is_answered_from_disk_and_another_does_not_overwrite(tmp_path: Path) -> None:
    first = collect(MAZE, 60, 0, tmp_path, progress=False)
    stamps = [file.stat().st_mtime_ns for file in first]
    assert collect(MAZE, 60, 0, tmp_path, progress=False) == first
    assert [file.stat().st_mtime_ns for file in first] == stamps
    with pytest.raises(DatasetError, match=r"already holds .*seed 0"):
        collect(MAZE, 60, 1, tmp_path, progress=False)
    assert [file.stat().st_mtime_ns for file in first] == stamps
    before = contents(first)
    assert contents(collect(MAZE, 60, 1, tmp_path, progress=False, overwrite=True)) != before


@pytest.mark.parametrize(("env_id", "kind"), [("cube-double-v0", "play"), ("scene-v0", "noisy")])
def test_a_manipulation_episode_depends_on_its_seed_alone(env_id: str, kind: str) -> None:
    """The same from a fresh and a used collector, whatever was drawn from the global stream in between."""

    def play(collector: ManipulationCollector, seed: int) -> Columns:
        return collector.episode(np.random.SeedSequence(seed), 60)

    used, fresh = ManipulationCollector(env_id, kind), ManipulationCollector(env_id, kind)
    expected = play(used, 0)
    other = play(used, 1)
    np.random.seed(99)
    for again in (play(used, 0), play(fresh, 0)):
        assert again.keys() == expected.keys()
        assert all(np.array_equal(again[key], expected[key]) for key in expected)
    assert not np.array_equal(other["actions"], expected["actions"])
    assert ("button_states" in expected) == (env_id == "scene-v0")
    used.close()
    fresh.close()


def test_pendulum_data_is_a_dataset_of_mixed_quality(tmp_path: Path) -> None:
    (folder,) = collect("Pendulum-v1", 20_050, 0, tmp_path / "one", progress=False)
    pendulum = open_dataset(folder)
    assert pendulum.num_transitions == 20_050 and pendulum.source["request"]["seed"] == 0
    rows = next(pendulum.iter_rows(chunk_rows=30_000))
    assert (rows["masks"] == 1).all()
    closing = np.flatnonzero(rows["remaining"] == 0)
    returns = np.add.reduceat(rows["rewards"], [0, *closing[:-1] + 1])[:100]
    assert -1300 < returns.mean() < -800 and -500 < returns.max() < -100
    (again,) = collect("Pendulum-v1", 20_050, 0, tmp_path / "two", progress=False)
    assert np.array_equal(next(open_dataset(again).iter_rows(30_000))["observations"], rows["observations"])
    with pytest.raises(DatasetError, match="already holds"):
        collect("Pendulum-v1", 400, 0, tmp_path / "one", progress=False)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("antmaze-medium-navigate-v0", "trained experts"),
        ("pointmaze-medium-navigate-singletask-task1-v0", "collect 'pointmaze-medium-navigate-v0'"),
        ("cube-single-plya-v0", "'cube-single-play-v0'"),
        ("visual-antmaze-medium-navigate-v0", "trained experts"),
        ("x", "'Pendulum-v1'"),
    ],
)
def test_an_unknown_dataset_is_refused_with_the_way_out(name: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        collect(name, 100, 0, tmp_path)
    assert hint in str(caught.value) and not list(tmp_path.iterdir())


def test_impossible_requests_leave_nothing_behind(tmp_path: Path) -> None:
    for arguments in ((0, 0, None), (10, -1, None), (10, 0, 0)):
        transitions, seed, num_workers = arguments
        with pytest.raises(ConfigError, match="must be at least"):
            collect(MAZE, transitions, seed, tmp_path, num_workers)
    blocked = tmp_path / "a file"
    blocked.touch()
    with pytest.raises(DatasetError, match=r"another place with --out, in a run with data\.cache=PATH"):
        collect(MAZE, 10, 0, blocked, progress=False)
    assert list(tmp_path.iterdir()) == [blocked]


def test_each_scripted_family_has_collectors() -> None:
    names = {"pointmaze-giant-navigate-v0", "cube-triple-noisy-v0", "scene-play-v0", "puzzle-4x4-noisy-v0"}
    assert names <= RECIPES.keys()
