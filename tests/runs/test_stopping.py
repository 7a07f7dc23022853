"""Requests to stop: whoever asks, and whenever, the run saves, says how it goes on, and ends with 128 + the signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dipole_ray.cli import main
from dipole_ray.collect import collect
from dipole_ray.errors import ConfigError, FolderTaken
from dipole_ray.files.checkpoint import read_checkpoint
from dipole_ray.files.lock import FolderLock
from dipole_ray.runs import session
from dipole_ray.runs.config import load
from dipole_ray.runs.session import new_folder, new_folders
from dipole_ray.runs.start import resume_run, start_run
from dipole_ray.stopping import SIGNALS, Stopped, ending_on_stops, keeping_handlers, noting_stops
from dipole_ray.tracking.mlflow_feed import connect
from tests.bench.small import write_suite
from tests.cli.commands import environment, write_config

GRACE_S = 20.0
ENDLESS = {"offline_learner_steps": 10**6, "learner_steps_per_iteration": 10**6, "learner_steps_per_call": 10}


def processes_of(session: int) -> list[int]:
    """Return the processes of a session, those of Ray included."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(folder.name))
        except (OSError, ValueError):  # it has just ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "everyone"),
    [
        pytest.param(signal.SIGTERM, True, id="SIGTERM to every process, as systemd sends it"),
        pytest.param(signal.SIGHUP, False, id="SIGHUP"),
    ],
)
def test_a_request_in_the_middle_of_an_iteration_is_met(tmp_path: Path, number: int, everyone: bool) -> None:
    data = collect("Pendulum-v1", 1000, 0, tmp_path / "data", progress=False)[0]
    parts: dict[str, Any] = {"data": {"path": str(data)}, "training": ENDLESS, "tracking": {"mlflow": True}}
    write_config(tmp_path / "small.yaml", **parts, rollout={"num_workers": 1}, learner={"remote": True})
    command = [sys.executable, "-m", "dipole_ray.cli", "train", "small.yaml"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), **pipes)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("runs/small-*/mlflow.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3.0)
        asked = time.time()
        for one in processes_of(process.pid) if everyone else [process.pid]:
            os.kill(one, number)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    run = next(tmp_path.glob("runs/small-*"))
    assert process.returncode == 128 + number, errors
    assert f"dipole train --resume {run.relative_to(tmp_path)}" in output
    assert "Traceback" not in errors and "logging.cc" not in errors and "core dumped" not in errors, errors
    saved = read_checkpoint(run / "checkpoints")
    assert 0 < saved.learner_steps < 10**6 and saved.metadata["done_of_iteration"] == saved.learner_steps
    assert (saved.path / "state.json").stat().st_mtime - asked < GRACE_S
    state = json.loads((run / "mlflow.json").read_text())
    assert connect(state["tracking_uri"]).get_run(state["run_id"]).info.status == "KILLED"


@pytest.mark.slow
def test_a_suite_that_is_asked_to_stop_saves_its_runs_where_they_are(tmp_path: Path) -> None:
    data = collect("Pendulum-v1", 1000, 0, tmp_path / "data", progress=False)[0]
    training = {"offline_learner_steps": 40_000, "learner_steps_per_iteration": 40_000}
    base = {"training": training, "evaluation": {"every_learner_steps": 40_000}, "folder": str(tmp_path / "bench")}
    base |= {"checkpoint": {"every_learner_steps": 40_000}}
    write_suite(
        tmp_path / "suite.yaml", data, base=base, suite={"seeds": [0], "evaluations": 1}, methods={"dipole": {}}
    )
    command = [sys.executable, "-m", "dipole_ray.cli", "bench", "run", "suite.yaml"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), **pipes)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("metrics.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3.0)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "dipole bench run suite.yaml" in output and "Traceback" not in errors
    (saved,) = tmp_path.rglob("checkpoints/[0-9]*")
    assert 0 < int(saved.name) < 40_000


@pytest.mark.usefixtures("no_pictures")
def test_a_run_in_a_thread_is_a_run(cluster: None, tmp_path: Path) -> None:
    """Handlers of signals can be set in the main thread alone."""
    data = collect("Pendulum-v1", 300, 0, tmp_path / "data", progress=False)[0]
    config = load(write_config(tmp_path / "small.yaml", data={"path": str(data)}), [f"folder={tmp_path}/runs"])
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(start_run(config).finished))
    thread.start()
    thread.join(180)
    assert ended == [True]


def test_ctrl_c_twice_ends_at_once_and_other_signals_come_twice_of_themselves() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with ending_on_stops(), noting_stops() as stops:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stops.numbers == [signal.SIGTERM] * 2 and stops.exit_status == 143
        with pytest.raises(Stopped), stops.ending_at_once():
            raise AssertionError("the request came before")
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped), noting_stops() as stops, stops.ending_at_once():
        signal.raise_signal(signal.SIGTERM)  # not SIGHUP, which is ignored where the tests run under nohup
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_library_that_raises_its_own_interrupt_hides_no_signal() -> None:
    """Ray's waits end by a plain KeyboardInterrupt, whatever the handler raised."""

    def wait() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with pytest.raises(Stopped) as stop, ending_on_stops():
        wait()
    assert stop.value.number == signal.SIGTERM
    with pytest.raises(Stopped) as stop, noting_stops() as stops, stops.ending_at_once():
        wait()
    assert stop.value.number == signal.SIGTERM


def test_a_request_while_a_library_starts_is_met_afterwards() -> None:
    """Threads that a library has started before take a signal that the main thread blocks, and its handler hears it."""
    before, done = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(Stopped) as stop, ending_on_stops(), keeping_handlers():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))  # as Ray does
        unmasked, waiting = threading.Event(), threading.Event()

        def listen() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            unmasked.set()
            waiting.wait()

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        unmasked.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        done += [time.sleep(0.1) for _ in range(3)]
        waiting.set()
        listener.join()
    assert stop.value.number == signal.SIGTERM and len(done) == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_on_stops(), noting_stops() as stops:
            signal.raise_signal(signal.SIGHUP)
            assert not stops
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_without_a_run_ends_with_the_signals_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any) -> int:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr("dipole_ray.cli.doctor.run_doctor", ask)
    assert main(["doctor"]) == 143


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    config = load("quickstart", [f"folder={tmp_path}/runs"])
    assert len({new_folder(config) for _ in range(30)}) == 30
    both = [new_folders(config, endings) for endings in (["-seed-0", "-seed-1"], ["-seed-2", "-seed-1"]) for _ in "ab"]
    assert len({folder for folders in both for folder in folders}) == 8
    assert len(list((tmp_path / "runs").iterdir())) == 30 + 8, "nothing of what another had begun is left"
    for name in ("a/b", "", "/tmp/a"):
        with pytest.raises(ConfigError, match="give the name of one folder"):
            new_folder(load("quickstart", [f"folder={tmp_path}/runs", f"name={name!r}"]))


def test_a_run_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RUN_LOCK_WAIT_S", 0.1)
    config = load(write_config(tmp_path / "small.yaml", data={"path": "elsewhere"}))
    session.write_config(tmp_path / "run", config)
    with FolderLock(tmp_path / "run", 0.0), pytest.raises(FolderTaken, match=rf"another process .*{os.getpid()}"):
        resume_run(tmp_path / "run", [])


def test_a_reader_that_leaves_changes_no_status(tmp_path: Path) -> None:
    """As in `dipole train | head -1`, of both streams."""
    for words, status in ((["train", "--help-config"], 0), (["--help"], 0), (["data", "inspect", "nowhere"], 2)):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "dipole_ray.cli", *words]
        ended = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=writing, check=False, timeout=120)
        os.close(writing)
        assert ended.returncode == status, words
