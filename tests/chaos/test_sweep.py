"""C8: a sweep whose process is killed at three points goes on by the same command, into the same MLflow runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dipole_ray.collect import collect
from dipole_ray.tracking.mlflow_server import connect
from tests.chaos.conftest import Measured
from tests.chaos.tracking_server import Server
from tests.cli.commands import LAUNCH, dipole, environment
from tests.sweep.small import PBT, POPULATION, sweep_mapping, write_sweep

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
CALLBACK = "dipole_ray.sweep.callback:SweepCallback"
KILLS = (
    (f"{CALLBACK}.on_trial_start", 2),
    (f"{CALLBACK}.on_trial_result", 3),
    ("dipole_ray.sweep.driver:deliver_trials", 1),
)
"""Where the sweep's process dies: as its second trial starts, as a result comes, and before MLflow has all trials."""
THREE = {"agent.beta": {"grid": [1.0, 3.0, 9.0]}}


def killed(folder: Path, target: str, call: int) -> None:
    """Run the sweep until the process is killed before the call."""
    command = [sys.executable, "-m", "tests.chaos.die_at", target, str(call), "sweep", "small.yaml"]
    variables = {**environment(folder), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def done(sweep: Path) -> dict[str, int]:
    """Return when each finished trial last wrote its metrics, by name."""
    found = {}
    for notes in sweep.glob("trials/*/trial.json"):
        if json.loads(notes.read_text())["finished"]:
            found[notes.parent.name] = max(p.stat().st_mtime_ns for p in notes.parent.glob("checkpoints/*/*"))
    return found


def cut_short(sweep: Path) -> int:
    """Cut Tune's own state files in half and return how many there were."""
    files = [path for path in sweep.glob("tune/**/*") if path.is_file() and path.suffix in (".json", ".pkl")]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return len(files)


def test_a_killed_sweep_goes_on_and_runs_nothing_twice(tmp_path: Path, measured: Measured) -> None:
    data = collect("Pendulum-v1", 1000, 0, tmp_path / "data", progress=False)[0]
    mlflow = {"tracking": {"mlflow": True}}
    write_sweep(tmp_path / "small.yaml", sweep_mapping(data, tmp_path / "runs", space=THREE, run=mlflow))
    finished: dict[str, int] = {}
    ids: dict[str, str] = {}
    truncated = 0
    for target, call in KILLS:
        killed(tmp_path, target, call)
        sweep = next((tmp_path / "runs").glob("small-*"))
        truncated += cut_short(sweep)
        now = done(sweep)
        assert {name: now[name] for name in finished} == finished, "a finished trial was run again"
        finished = now
        for notes in sweep.glob("trials/*/trial.json"):
            run_id = json.loads(notes.read_text())["run_id"]
            if run_id is not None:
                assert ids.setdefault(notes.parent.name, run_id) == run_id, "another MLflow run"
    assert truncated > 0, "Tune had state files to lose"
    start = time.monotonic()
    ended = dipole("sweep", "small.yaml", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    measured("C8", "sweep killed for the third time: leaderboard", time.monotonic() - start, "s", bar="none")

    stored = json.loads((sweep / "sweep.json").read_text())
    assert [trial["status"] for trial in stored["trials"]] == ["done"] * 3
    now = done(sweep)
    assert {name: now[name] for name in finished} == finished
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert sorted(run.info.run_name for run in runs) == sorted([sweep.name, *(f"small/trial-00{i}" for i in range(3))])
    assert {run.info.status for run in runs} == {"FINISHED"}, "none is left running"
    for run in runs:
        if run.info.run_name != sweep.name:
            trial = run.info.run_name.rpartition("/")[2]
            assert ids.get(trial, run.info.run_id) == run.info.run_id
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "sweep/score")]
            assert steps == [20, 40], "every rung once"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_saves_trials_within_a_rung_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    data = collect("Pendulum-v1", 1000, 0, tmp_path / "data", progress=False)[0]
    long = {"training": {"offline_learner_steps": 4000}, "tracking": {"mlflow": True}}
    mapping = sweep_mapping(data, tmp_path / "runs", sweep={"rungs": 2}, run=long)
    write_sweep(tmp_path / "small.yaml", mapping)
    command = [sys.executable, "-c", LAUNCH, "sweep", "small.yaml"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not any(file.stat().st_size for file in (tmp_path / "runs").glob("*/trials/*/metrics.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number, stderr
    assert "dipole sweep small.yaml" in stdout and "Traceback" not in stderr
    saved = [int(path.name) for path in (tmp_path / "runs").glob("*/trials/*/checkpoints/[0-9]*")]
    assert any(saved) and max(saved) < 2000, "the first rung is at 2000"
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {run.info.status for run in runs} == {"KILLED"}
    again = dipole("sweep", "small.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_sweep_does_not_notice_an_outage_and_the_same_command_delivers(tmp_path: Path) -> None:
    data = collect("Pendulum-v1", 1000, 0, tmp_path / "data", progress=False)[0]
    server = Server(tmp_path / "server")
    tracking = {"tracking": {"mlflow": True, "tracking_uri": server.url}}
    write_sweep(tmp_path / "small.yaml", sweep_mapping(data, tmp_path / "runs", run=tracking))
    ended = dipole("sweep", "small.yaml", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    sweep = next((tmp_path / "runs").glob("small-*"))
    assert len(done(sweep)) == 2 and (sweep / "leaderboard.csv").exists()
    assert "the same command again delivers" in ended.stderr and "Traceback" not in ended.stderr
    server.start()
    try:
        server.wait()
        before = done(sweep)
        again = dipole("sweep", "small.yaml", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert done(sweep) == before
        client = connect(server.url)
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        assert sorted(run.info.run_name for run in runs) == sorted([sweep.name, "small/trial-000", "small/trial-001"])
        assert {run.info.status for run in runs} == {"FINISHED"}
        parent = next(run.info.run_id for run in runs if run.info.run_name == sweep.name)
        for run in runs:
            if run.info.run_id != parent:
                assert run.data.tags["mlflow.parentRunId"] == parent
                assert len(client.get_metric_history(run.info.run_id, "sweep/score")) == 2
    finally:
        server.kill()


def test_a_population_is_replaced_by_copies_of_its_best(tmp_path: Path) -> None:
    """PBT as a user runs it, offline and online; what the copies hold is tested in tests/sweep/test_trial.py.

    Tune replaces a trial only if it is among the worst when it reports, and a best one has saved since its own report:
    with three trials and three rungs chance left everybody in place at times. Here each report has a chance of 1/4.
    """
    data = collect("Pendulum-v1", 1000, 0, tmp_path / "data", progress=False)[0]
    run = {"training": {"online_env_steps": 420}, "tracking": {"mlflow": True}}
    halves = {**PBT, "num_samples": 4, "pbt": {"quantile": 0.5}, "rungs": 8}
    mapping = sweep_mapping(data, tmp_path / "runs", space=POPULATION, sweep=halves, run=run)
    write_sweep(tmp_path / "small.yaml", mapping)
    ended = dipole("sweep", "small.yaml", cwd=tmp_path, timeout=600)
    assert ended.returncode == 0, ended.stderr
    sweep = next((tmp_path / "runs").glob("small-*"))
    notes = {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("trials/*/trial.json")}
    copied = {name: note for name, note in notes.items() if note["copied"]}
    assert copied, "nobody was replaced"
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name, note in notes.items():
        stored = client.get_run(note["run_id"])
        assert stored.info.status == "FINISHED"
        histories = {key: {result["values"][key] for result in note["results"]} for key in POPULATION}
        assert name in copied or all(len(values) == 1 for values in histories.values())
        for key, values in histories.items():
            if len(values) > 1:
                assert stored.data.tags[f"changed.{key}"] == str(note["values"][key]), "a parameter cannot change"
                points = client.get_metric_history(note["run_id"], f"settings/{key}")
                assert {point.value for point in points} <= values and points
