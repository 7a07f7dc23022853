"""The data of a run, found or made: by one process for all that want it."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dipole_ray import DIPOLEConfig
from dipole_ray.cli import main
from dipole_ray.collect.exorl import collect_exorl
from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.sources.reading import Arrays
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.lock import FolderLock
from dipole_ray.rllib.replay_actor import ArrowOfflineData
from dipole_ray.runs.config import DataConfig
from dipole_ray.runs.prepare import find_dataset, prepare_dataset
from tests.cli.test_data_cli import dipole
from tests.data.test_lerobot import frames
from tests.data.test_lerobot import write as write_lerobot
from tests.synthetic import ogbench_arrays, transition_columns, write_ogbench, write_table

POINTMAZE = "pointmaze-medium-navigate-singletask-task1-v0"


def be_one(me: int, folder: Path, work: Callable[[], int | None]) -> None:
    """Wait for the others, which begin in the same moment, do the work, and end with its status."""
    os.environ["HOME"] = str(folder)
    (folder / f"ready-{me}").touch()
    while not (folder / "go").exists():
        time.sleep(0.001)
    out, err = (folder / f"out-{me}").open("w"), (folder / f"err-{me}").open("w")
    with out, err, redirect_stdout(out), redirect_stderr(err):
        sys.exit(work())


def at_once(tmp_path: Path, work: Callable[[], int | None]) -> list[tuple[int | None, str, str]]:
    """Do `work` in two processes at the same time, and return what each ends with: status, output, errors."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once for all
    both = range(2)
    running = [context.Process(target=be_one, args=(me, tmp_path, work)) for me in both]
    for process in running:
        process.start()
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("ready-*"))) < len(running):
        assert time.monotonic() < deadline and all(process.is_alive() for process in running)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    for process in running:
        process.join(120)
    texts = [[(tmp_path / f"{name}-{me}").read_text() for name in ("out", "err")] for me in both]
    return [(process.exitcode, out, err) for process, (out, err) in zip(running, texts, strict=True)]


def prepare(data: DataConfig, env: str) -> None:
    print(prepare_dataset(data, EnvConfig(id=env)))


def test_two_processes_collect_one_dataset_between_them(tmp_path: Path) -> None:
    data = DataConfig(collect_transitions=40_000, cache=str(tmp_path / "cache"))
    ends = at_once(tmp_path, partial(prepare, data, "Pendulum-v1"))
    assert [status for status, _, _ in ends] == [0, 0], ends
    paths = {output.strip() for _, output, _ in ends}
    dataset = open_dataset(paths.pop(), strict=True)
    assert not paths and dataset.num_transitions == 40_000
    left = sorted(path.name for path in dataset.directory.parent.rglob("*"))
    assert left == ["Pendulum-v1", *(entry.name for entry in dataset.manifest.files), "manifest.json"]


def collect_jaco(folder: Path) -> None:
    collect_exorl("jaco", "random", 1500, 0, folder, num_workers=1)


def test_two_processes_collect_the_same_episodes(tmp_path: Path) -> None:
    ends = at_once(tmp_path, partial(collect_jaco, tmp_path / "data"))
    assert [status for status, _, _ in ends] == [0, 0], ends
    left = sorted(path.name for path in (tmp_path / "data/jaco").rglob("*"))
    assert left == ["buffer", "collect.json", *(f"episode_{index:06d}_250.npz" for index in range(6)), "random"]


def test_two_processes_label_and_convert_the_same_episodes(tmp_path: Path) -> None:
    episodes = collect_exorl("walker", "random", 5000, 0, tmp_path / "data", num_workers=1, progress=False)
    data = DataConfig(path=str(episodes), cache=str(tmp_path / "cache"))
    ends = at_once(tmp_path, partial(prepare, data, "exorl/walker-walk"))
    assert [status for status, _, _ in ends] == [0, 0], ends
    paths = {output.strip() for _, output, _ in ends}
    dataset = open_dataset(paths.pop(), strict=True)
    assert not paths and dataset.num_transitions == 5000
    assert [entry.name for entry in dataset.directory.parent.iterdir()] == [dataset.directory.name]


def test_two_imports_into_one_folder_give_one_dataset(tmp_path: Path) -> None:
    path = write_ogbench(tmp_path / "data.npz", ogbench_arrays(np.random.default_rng(0), [1000] * 200, 2, 2))
    words = ["data", "import", str(path), "--env", POINTMAZE, "--out", str(tmp_path / "out")]
    ends = at_once(tmp_path, partial(main, words))
    assert sorted(status for status, _, _ in ends) == [0, 2], ends
    refused = next(errors for status, _, errors in ends if status == 2)
    assert "already holds a dataset" in refused
    assert open_dataset(tmp_path / "out", strict=True).num_transitions == 200_000


def test_a_lock_that_was_given_back_leaves_no_file_and_excludes_whoever_comes_next(tmp_path: Path) -> None:
    first = FolderLock(tmp_path, 0.0)
    first.release()
    assert not any(tmp_path.iterdir())
    second = FolderLock(tmp_path, 0.0)
    first.release()
    assert (tmp_path / ".lock").read_text() == str(os.getpid())
    with pytest.raises(ConfigError, match=rf"another process writes there \(process {os.getpid()}\)"):
        FolderLock(tmp_path, 0.1)
    second.release()


def test_a_process_that_waits_says_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held, waiting = FolderLock(tmp_path, 0.0), threading.Thread(target=lambda: FolderLock(tmp_path, 60.0).release())
    waiting.start()
    while not caplog.messages and waiting.is_alive():
        time.sleep(0.01)
    held.release()
    waiting.join()
    assert caplog.messages == [f"{tmp_path}: waiting for process {os.getpid()}, which writes there"]


def test_a_cache_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    source, taken = tmp_path / "pointmaze-medium-navigate-v0.npz", tmp_path / "taken"
    write_ogbench(source, ogbench_arrays(np.random.default_rng(0), [20] * 5, 2, 2))
    taken.write_text("a file where a folder should be")
    with pytest.raises(DatasetError, match=r"cannot be made.*set data\.cache to another place"):
        prepare_dataset(DataConfig(path=str(source), cache=str(taken / "cache")), EnvConfig(id=POINTMAZE))


def test_a_run_takes_an_npz_with_rewards_for_an_environment_of_ones_own(tmp_path: Path) -> None:
    """As import and inspect do; without rewards, or of another size, it is refused in a sentence."""
    arrays = ogbench_arrays(np.random.default_rng(0), [20] * 5, 2, 1)
    rewards = np.random.default_rng(1).normal(size=len(arrays["observations"])).astype(np.float32)
    env = EnvConfig(id="tests.odd_envs:Always-v0")
    good = DataConfig(
        path=str(write_ogbench(tmp_path / "good.npz", arrays | {"rewards": rewards})), cache=str(tmp_path)
    )
    folder = prepare_dataset(good, env)
    assert folder is not None and open_dataset(folder).num_transitions == 100
    bare = DataConfig(path=str(write_ogbench(tmp_path / "bare.npz", arrays)), cache=str(tmp_path))
    with pytest.raises(ConfigError, match=r"no OGBench single task.*save the rows with rewards of their own"):
        prepare_dataset(bare, env)
    with pytest.raises(DatasetError, match="observations have 2 and actions 1 dimensions, 'Pendulum-v1' has 3 and 1"):
        prepare_dataset(good, EnvConfig(id="Pendulum-v1"))


def test_arguments_of_an_environment_give_a_conversion_of_its_own(tmp_path: Path) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), [20] * 5, 2, 1)
    arrays["rewards"] = np.zeros(len(arrays["observations"]), np.float32)
    data = DataConfig(path=str(write_ogbench(tmp_path / "data.npz", arrays)), cache=str(tmp_path))
    made = {prepare_dataset(data, EnvConfig(id="tests.odd_envs:Massive-v0", kwargs={"mass": mass})) for mass in (1, 2)}
    assert len(made) == 2


TABLES: dict[str, Callable[[Path, Arrays], Path]] = {
    "parquet": lambda folder, columns: write_table(folder / "own.parquet", columns),
    "folder": lambda folder, columns: write_table(folder / "0.feather", columns).parent,
    "npz": lambda folder, columns: write_ogbench(folder / "own.npz", columns),
    "lerobot": lambda folder, columns: write_lerobot(
        folder / "robot", "v3.0", frames() | {"next.reward": np.ones(132), "action": np.zeros((132, 2), np.float32)}
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_run_takes_what_import_takes(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its columns are, converted once and with a verdict; the same as an import gives."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    columns = transition_columns(np.random.default_rng(0), [50] * 30)
    path = TABLES[kind](tmp_path / "data", columns)
    env = EnvConfig(id="tests.odd_envs:Table-v0")
    data = DataConfig(path=str(path), cache=str(tmp_path / "cache"))
    assert find_dataset(data, env) is None
    folder = prepare_dataset(data, env)
    assert folder is not None and prepare_dataset(data, env) == find_dataset(data, env) == folder
    assert sum("verdict: " in text for text in caplog.messages) == 1
    dipole("import", path, "--env", env.id, "--out", tmp_path / "out")
    made, imported = (open_dataset(place) for place in (folder, tmp_path / "out"))
    assert [file.crc32 for file in made.manifest.files] == [file.crc32 for file in imported.manifest.files]
    offline = ArrowOfflineData(DIPOLEConfig().environment(env.id).offline_data(input_=str(path)))
    assert open_dataset(offline.paths[0]).num_transitions == made.num_transitions


def test_a_table_that_needs_choices_names_the_import_that_takes_them(tmp_path: Path) -> None:
    columns = transition_columns(np.random.default_rng(0), [50] * 30)
    columns["r"] = columns.pop("rewards")
    data = DataConfig(path=str(write_table(tmp_path / "own.parquet", columns)), cache=str(tmp_path / "cache"))
    env = EnvConfig(id="tests.odd_envs:Table-v0", max_episode_steps=9)
    command = rf"dipole data import {tmp_path}/own.parquet --env {env.id} env\.max_episode_steps=9 --out DIR"
    with pytest.raises(DatasetError, match=rf"no column 'rewards' .*--map rewards=COLUMN; .*'{command}'"):
        prepare_dataset(data, env)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no manifest\.json, so this is no dataset"):
        prepare_dataset(DataConfig(path=str(tmp_path / "empty")), env)
    with pytest.raises(DatasetError, match=r"no such file; give a table or a dataset folder"):
        prepare_dataset(DataConfig(path=str(tmp_path / "no.parquet")), env)


def test_a_table_is_converted_less_the_environments_offset(tmp_path: Path) -> None:
    columns = transition_columns(np.random.default_rng(0), [50] * 30)
    path = write_table(tmp_path / "own.parquet", columns)
    env = EnvConfig(id="tests.odd_envs:Table-v0", observation_offset={"2": 7})
    folder = prepare_dataset(DataConfig(path=str(path), cache=str(tmp_path / "cache")), env)
    assert folder is not None and open_dataset(folder).source["offset"] == {"2": 7.0}
