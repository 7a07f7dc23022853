"""`dipole sweep` as a user runs it: to its end, again, and where it cannot be placed."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dipole_ray.cli import main
from dipole_ray.runs.config import load
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.result import SweepResult
from dipole_ray.tracking.mlflow_server import connect
from tests.cli.commands import dipole_here
from tests.local_ray import CPUS
from tests.sweep.small import sweep_mapping, write_sweep

pytestmark = pytest.mark.usefixtures("cluster")

MLFLOW = {"tracking": {"mlflow": True}}


@pytest.fixture(scope="module")
def user(
    cluster: None, pendulum: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a user who ran the small sweep, with MLflow, and what was printed."""
    folder = tmp_path_factory.mktemp("user")
    one_at_a_time = {"resources": {"trial_cpus": CPUS}}  # in one process, which imports torch once
    mapping = sweep_mapping(pendulum, folder / "runs", sweep=one_at_a_time, run=MLFLOW)
    write_sweep(folder / "small.yaml", mapping)
    ended = dipole_here("sweep", "small.yaml", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder, ended


def sweep_folder(user: Path) -> Path:
    found = list((user / "runs").glob("small-*"))
    assert len(found) == 1, found
    return found[0]


def mlflow_runs(user: Path) -> dict[str, Any]:
    """Return all MLflow runs by name; a name that is there twice fails."""
    client = connect(f"sqlite:///{user / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len({run.info.run_name for run in runs}) == len(runs), [run.info.run_name for run in runs]
    return {run.info.run_name: run for run in runs}


def test_a_sweep_ends_with_a_leaderboard_and_what_to_do_next(user: Any) -> None:
    folder, ended = user
    sweep = sweep_folder(folder)
    assert "trial-000" in ended.stdout and "trial-001" in ended.stdout and "return, selected" in ended.stdout
    assert f"dipole train {sweep}/best.yaml" in ended.stdout and "Traceback" not in ended.stderr
    assert "small: 4/4 rungs" in ended.stderr and "trials=2/2" in ended.stderr and "best=" in ended.stderr
    assert load(sweep / "best.yaml").agent.beta in (1.0, 5.0)
    assert {path.name for path in sweep.glob("*.png")} == {"surface-beta.png", "parallel.png"}
    assert not (sweep / "tune").exists() and list(sweep.rglob("*.pkl")) == [], "Tune's pickles are gone"
    stored = json.loads((sweep / "sweep.json").read_text())
    assert [trial["status"] for trial in stored["trials"]] == ["done", "done"]


def test_mlflow_has_one_run_a_sweep_and_one_below_it_a_trial(user: Any) -> None:
    folder, _ = user
    sweep, runs = sweep_folder(folder), mlflow_runs(folder)
    assert set(runs) == {sweep.name, "small/trial-000", "small/trial-001"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs.pop(sweep.name)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    client = connect(f"sqlite:///{folder / 'mlflow.db'}")
    assert {run.data.tags["mlflow.source.name"] for run in (parent, *runs.values())} == {"dipole sweep"}
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert names == {"best.yaml", "leaderboard.csv", "leaderboard.json", "pictures"}
    for number, run in enumerate(runs[f"small/trial-00{i}"] for i in range(2)):
        notes = json.loads((sweep / "trials" / f"trial-00{number}" / "trial.json").read_text())
        assert notes["run_id"] == run.info.run_id, "kept beside the checkpoint"
        assert run.data.params["agent.beta"] == str(notes["values"]["agent.beta"])
        assert run.data.metrics["sweep/rung"] == 2.0 and "report/return" in run.data.metrics
        assert len(client.get_metric_history(run.info.run_id, "sweep/score")) == 2
        cells = {name for name in run.data.metrics if "omega_" in name}
        assert cells == {f"eval/return/omega_{o}_candidates_{c}" for o in (0, 1) for c in (1, 2)}, "one chart a cell"
        assert not any(name.endswith("/confidence") for name in run.data.metrics)


def test_the_same_command_finds_nothing_left_to_do(user: Any) -> None:
    folder, first = user
    sweep = sweep_folder(folder)
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("trials/*/checkpoints/*/*")}
    runs = {name: run.info.run_id for name, run in mlflow_runs(folder).items()}
    again = dipole_here("sweep", "small.yaml", "sweep.resources.trial_cpus=1", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in sweep.glob("trials/*/checkpoints/*/*")} == before
    assert "rungs" not in again.stderr, "no trial was started"
    table = [line for line in first.stdout.splitlines() if "trial-00" in line]
    assert [line for line in again.stdout.splitlines() if "trial-00" in line] == table
    assert {name: run.info.run_id for name, run in mlflow_runs(folder).items()} == runs


def test_what_could_never_be_placed_fails_at_once_with_the_arithmetic(pendulum: Path, tmp_path: Path) -> None:
    huge = {"rollout": {"num_workers": 3, "cpus_per_worker": 50.0}, "learner": {"remote": True}}
    write_sweep(tmp_path / "huge.yaml", sweep_mapping(pendulum, tmp_path / "runs", run=huge))
    ended = dipole_here("sweep", "huge.yaml", cwd=tmp_path)
    assert ended.returncode == 2
    assert "error: trial-000 could never be placed: needed 1 process of the trial of 0.5 CPU" in ended.stderr
    assert "1 learner of 1 CPU + 3 rollout workers of 50 CPU" in ended.stderr and "available " in ended.stderr
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_a_stopped_sweep_prints_a_command_that_a_shell_takes(
    pendulum: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(plan: Plan) -> SweepResult:
        return SweepResult(plan=plan, folder=tmp_path, finished=False, board=[], failed={}, files=[], view_command=None)

    monkeypatch.setattr("dipole_ray.sweep.driver.run_sweep", stopped)
    file = write_sweep(tmp_path / "small.yaml", sweep_mapping(pendulum, tmp_path / "runs"))
    monkeypatch.setenv("RAY_ADDRESS", "")  # which the option sets for this process
    words = ["sweep", str(file), "space.agent.beta={grid: [1, 3]}", "--address=10.0.0.1:6379"]
    assert main(words) == 130
    assert shlex.split(capsys.readouterr().out.partition("same command:")[2]) == ["dipole", *words]


def test_help_teaches_and_mistakes_are_one_sentence(tmp_path: Path) -> None:
    shown = dipole_here("sweep", "--help", cwd=tmp_path).stdout
    for word in ("space:", "loguniform", "from: quickstart", "asha", "cost no training", "The same command again"):
        assert word in shown
    assert "sweep.rungs: a whole number = 4" in dipole_here("sweep", "--help-config", cwd=tmp_path).stdout
    wrong = dipole_here("train", "smoke", cwd=tmp_path)
    assert wrong.returncode == 2 and "dipole sweep smoke" in wrong.stderr and "Traceback" not in wrong.stderr
