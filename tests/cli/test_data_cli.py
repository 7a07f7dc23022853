"""`dipole data` from files to a dataset, and one clear sentence where that is not possible."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ogbench
import pytest

from dipole_ray.cli import main
from dipole_ray.cli.data import add_parser
from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.quarantine import restore_hint
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.replay.replay import Replay
from dipole_ray.runs.config import DataConfig
from dipole_ray.runs.prepare import prepare_dataset
from tests.cli.commands import LAUNCH
from tests.data.file_server import Fault, FileServer, file_server
from tests.synthetic import ogbench_arrays, transition_columns, write_ogbench, write_table

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
DATASET = "pointmaze-medium-navigate-v0"


def dipole(*words: str | Path) -> int:
    """Run `dipole data ...` in this process."""
    parser = argparse.ArgumentParser(prog="dipole")
    add_parser(parser.add_subparsers(required=True))
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
    shown = " ".join(capsys.readouterr().out.split())  # a long path wraps the title
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
        dipole("import", path, "--out", out, "--format", "ogbench", "--map", "rewards=r")
    arrays["observations"][3] = np.nan
    write_ogbench(path, arrays)
    with pytest.raises(DatasetError, match=r"the first at row 3 \(observations\); .* --non-finite drop"):
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


@pytest.fixture
def server() -> Iterator[FileServer]:
    """Run a server that has the pointmaze dataset's two files."""
    with file_server() as server:
        yield server


def place(server: FileServer, folder: Path, *faults: Fault) -> dict[str, bytes]:
    """Put OGBench's file pair on a server, the training file with faults."""
    found = {}
    for name, lengths in ((f"{DATASET}.npz", [2000] * 4), (f"{DATASET}-val.npz", [1000])):
        path = write_ogbench(folder / name, ogbench_arrays(np.random.default_rng(len(name)), lengths, 2, 2))
        found[name] = path.read_bytes()
        server.put(name, found[name], *(faults if name == f"{DATASET}.npz" else ()))
        path.unlink()
    return found


def command(*words: str | Path, home: Path) -> tuple[list[str], dict[str, str]]:
    """Return `dipole data ...` as a process; the official hosts lie behind a proxy that refuses."""
    away = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    variables = os.environ | away | {"no_proxy": "127.0.0.1", "HOME": str(home)}
    return [sys.executable, "-c", LAUNCH, "data", *map(str, words)], variables


def dipole_process(*words: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run `dipole data ...` to its end."""
    argv, variables = command(*words, home=home)
    return subprocess.run(argv, env=variables, cwd=home, capture_output=True, text=True, timeout=120, check=False)


def test_a_downloaded_dataset_is_what_inspect_import_and_training_take(
    tmp_path: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way of F3's user: a task's name, a mirror, and the commands that the end message names."""
    files = place(server, tmp_path)
    ran = dipole_process("download", "ogbench", TASK, "--base-url", server.url, home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path / ".cache" / "dipole_ray" / "downloads" / "ogbench"
    train = folder / f"{DATASET}.npz"
    for name, data in files.items():
        assert (folder / name).read_bytes() == data
        assert f"sha256 {hashlib.sha256(data).hexdigest()}" in ran.stdout
    assert f"{TASK} is learned from the dataset {DATASET}" in ran.stderr
    assert "its server publishes no checksum; verified by its structure: 8004 rows in" in ran.stdout
    assert f"dipole train data.path={train} env.id={TASK}" in ran.stdout
    steps = [line for line in ran.stdout.splitlines() if "dipole data" in line]
    assert len(steps) == 2
    for step in steps:
        words = step.partition("dipole data ")[2].replace("DIR", str(tmp_path / "dataset")).split()
        assert dipole(*words) == 0
    assert open_dataset(tmp_path / "dataset").num_transitions == 8000
    data = DataConfig(path=str(train), cache=str(tmp_path / "cache"))
    prepared = prepare_dataset(data, EnvConfig(id=TASK))
    assert prepared is not None and open_dataset(prepared).num_transitions == 8000
    capsys.readouterr()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_the_same_command_asks_only_for_the_rest(
    tmp_path: Path, server: FileServer, kill: signal.Signals
) -> None:
    name = f"{DATASET}.npz"
    data = place(server, tmp_path, Fault(chunk=4000, pause_s=0.05))[name]
    words = ("download", "ogbench", DATASET, "--base-url", server.url, "--out", tmp_path / "out")
    argv, variables = command(*words, home=tmp_path)
    part, deadline = tmp_path / "out" / f"{name}.part", time.monotonic() + 60
    with subprocess.Popen(argv, env=variables, stderr=subprocess.PIPE, text=True) as process:
        while not part.exists() or part.stat().st_size < 20_000:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(kill)
        _, shown = process.communicate(timeout=60)
    if kill == signal.SIGINT:
        assert process.returncode == 130 and "what arrived is kept; the same command continues there" in shown
    kept = part.stat().st_size
    assert kept < len(data) and not (tmp_path / "out" / name).exists()
    ran = dipole_process(*words, home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / name).read_bytes() == data and not part.exists()
    again = server.asked(name)[1:]
    assert [(request.range, request.sent) for request in again] == [(f"bytes={kept}-", len(data) - kept)]
    count = len(server.requests)
    assert dipole_process(*words, home=tmp_path).returncode == 0 and len(server.requests) == count


def test_a_download_that_fails_everywhere_ends_with_one_message(tmp_path: Path, server: FileServer) -> None:
    name = f"{DATASET}.npz"
    place(server, tmp_path, Fault(cut=30_000), Fault(status=404, stays=True))
    words = ("download", "ogbench", DATASET, "--base-url", server.url, "--out", tmp_path / "out", "--retries", "0")
    ran = dipole_process(*words, home=tmp_path)
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    message = ran.stderr[ran.stderr.index("error: ") :].splitlines()
    assert message[0] == f"error: {name} could not be downloaded:"
    assert message[1] == f"  {server.url}/{name}: broke the connection"
    assert message[2].startswith(f"  https://rail.eecs.berkeley.edu/datasets/ogbench/{name}: ")
    assert message[3].startswith("30.0 kB are kept in ") and "the same command continues there" in message[3]
    assert len(message) == 4


def test_exorl_mirrors_from_the_environment_and_a_pinned_checksum(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = b"as the checksum says"
    server.put("mirror/walker/rnd.zip", data)
    monkeypatch.setenv("DIPOLE_EXORL_URL", f"{server.url}/mirror")
    monkeypatch.setenv("no_proxy", "*")
    words = ["download", "exorl", "walker/rnd", "--out", tmp_path, "--sha256", hashlib.sha256(data).hexdigest().upper()]
    assert dipole(*words) == 0
    shown = capsys.readouterr().out
    path = tmp_path / "walker" / "rnd.zip"
    assert path.read_bytes() == data and "its SHA-256 is as given by you" in shown
    assert f"next: unzip -q {path} -d {tmp_path / 'walker' / 'rnd'}" in shown and "--env exorl/walker-stand" in shown


def test_download_options_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    ogbench = ("download", "ogbench", DATASET, "--out", tmp_path)
    for words, reason in (
        ((*ogbench, "--sha256", "0" * 64), f"write it as --sha256 {DATASET}.npz=0000"),
        ((*ogbench, "--sha256", "other.npz=" + "0" * 64), "no file 'other.npz' here"),
        ((*ogbench, "--sha256", f"{DATASET}.npz=abc"), "64 hexadecimal digits, this has 3"),
        ((*ogbench, "--timeout", "0"), "positive timeout"),
        ((*ogbench, "--timeout", "nan"), "positive timeout"),
        ((*ogbench, "--retries", "-1"), "positive timeout"),
        ((*ogbench, "--base-url", "file:///data"), "no address of a web server"),
        (("download", "ogbench", "pointmaze-mediun-navigate-v0"), "the nearest: 'pointmaze-medium-navigate-v0'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(reason)):
            dipole(*words)
    assert not any(tmp_path.iterdir())


def test_the_domain_may_follow_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "collect", "exorl", "--algo", "random", "jaco", "--steps", "250", "--out", str(tmp_path)]
    assert main(words) == 0 and (tmp_path / "jaco/random/buffer/episode_000000_250.npz").exists()
    assert main([*words, "walker"]) == 2
    assert "jaco walker are several domains; name one of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--unheard", "of"])


@pytest.mark.parametrize("command", ["import", "inspect", "collect", "download"])
def test_help_teaches_by_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        dipole(command, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "examples:" in text and text.count(f"dipole data {command}") >= 4


def test_an_environment_is_told_its_limit_and_arguments_as_in_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), [20] * 5, 2, 1)
    arrays["rewards"] = np.zeros(len(arrays["observations"]), np.float32)
    path = str(write_ogbench(tmp_path / "data.npz", arrays))
    endless = ["data", "import", path, "--env", "tests.odd_envs:Endless-v0"]
    assert main([*endless, "--out", str(tmp_path / "a")]) == 2
    assert "set env.max_episode_steps" in capsys.readouterr().err
    for place, limit in (("a", ["env.max_episode_steps=20"]), ("b", ["--max-episode-steps", "20"])):
        assert main([*endless, "--out", str(tmp_path / place), *limit]) == 0
        assert "env.id=tests.odd_envs:Endless-v0 env.max_episode_steps=20\n" in capsys.readouterr().out
    assert open_dataset(tmp_path / "a").source["env_settings"] == ["env.max_episode_steps=20"]
    massive = ["data", "inspect", path, "--env", "tests.odd_envs:Massive-v0"]
    assert main(massive) == 2 and "give its arguments" in capsys.readouterr().err
    assert main([*massive, "env.kwargs={mass: 3}"]) == 0
    assert main([*massive, "agent.beta=3"]) == 2 and main(["data", "inspect", path, "env.kwargs.mass=3"]) == 2
    assert capsys.readouterr().err.count("give --env ENV_ID, and env.KEY=VALUE only") == 2


def test_collectors_take_an_environments_arguments_and_write_them_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "collect", "Pendulum-v1", "--transitions", "50", "--workers", "1", "--out"]
    assert main([*words, str(tmp_path / "a")]) == 0
    assert main([*words, str(tmp_path / "b"), "env.kwargs.g=1"]) == 0
    plain, light = (open_dataset(tmp_path / place / "Pendulum-v1") for place in "ab")
    assert light.source["request"]["env_kwargs"] == {"g": 1} and "env_kwargs" not in plain.source["request"]
    assert light.manifest.files[0].crc32 != plain.manifest.files[0].crc32
    assert "env.kwargs=" in restore_hint(light.directory, light.source)
    data = DataConfig(collect_transitions=50, cache=str(tmp_path))
    made = [prepare_dataset(data, EnvConfig(id="Pendulum-v1", kwargs=kwargs)) for kwargs in ({}, {"g": 1})]
    contents = [open_dataset(folder).manifest.files[0].crc32 for folder in made if folder is not None]
    assert contents == [dataset.manifest.files[0].crc32 for dataset in (plain, light)]
    capsys.readouterr()
    for wrong, found in (
        ("env.success=true", "give env.kwargs.KEY=VALUE"),
        ("env.kwargs.h=1", "change env.kwargs={'h'"),
    ):
        assert main([*words, str(tmp_path / "c"), wrong]) == 2 and found in capsys.readouterr().err
    assert main(["data", "collect", "exorl", "jaco", "env.kwargs.g=1", *words[3:], str(tmp_path)]) == 2
