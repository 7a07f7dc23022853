"""`dipole train` as a user runs it: its folder, Ctrl-C, the resume that changes nothing, and the evaluation after."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from dipole_ray.cli import main
from dipole_ray.collect import collect
from dipole_ray.files.checkpoint import newest_valid, read_checkpoint
from dipole_ray.runs.run import Run
from dipole_ray.tracking.metrics_file import read_metrics
from dipole_ray.tracking.mlflow_server import connect
from tests.cli.commands import LAUNCH, dipole_here, environment, write_config

ROW_KEYS = {
    "method", "omega", "candidates", "episodes", "success", "success_low", "success_high", "return", "return_low",
    "return_high", "length", "length_low", "length_high",
}  # fmt: skip
DEADLINE_S = 120.0

pytestmark = pytest.mark.usefixtures("no_pictures")  # but of the run `finished`, which is over before


def only(folder: Path, pattern: str) -> Path:
    """Return the one path that matches."""
    found = list(folder.glob(pattern))
    assert len(found) == 1, found
    return found[0]


def iterations(run: Path) -> list[tuple[int, int]]:
    """Return updates and environment steps after each iteration in `metrics.jsonl`."""
    return [(line["learner_steps"], line["env_steps"]) for line in read_metrics(run) if "critic/loss" in line]


def final_agent(run: Path) -> bytes:
    """Return the agent's file in the newest checkpoint."""
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    return (newest / "agent.safetensors").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a config that names it."""
    folder = tmp_path_factory.mktemp("user")
    data = collect("Pendulum-v1", 1000, 0, folder / "data", progress=False)[0]
    write_config(folder / "small.yaml", data={"path": str(data)})
    return folder


@pytest.fixture(scope="module")
def finished(cluster: None, folder: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An uninterrupted run, with MLflow."""
    ended = dipole_here("train", "small.yaml", "tracking.mlflow=true", "folder=whole", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return only(folder, "whole/small-*"), ended


def test_run_folder_holds_what_is_documented(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, ended = finished
    assert {path.name for path in run.iterdir()} >= {
        "run.yaml", "metrics.jsonl", "checkpoints", "replay", "evaluation.json"
    }  # fmt: skip
    assert yaml.safe_load((run / "run.yaml").read_text())["agent"]["hidden_dims"] == [16, 16]
    lines = read_metrics(run)
    assert any(line["env_steps"] == 0 and line["learner_steps"] == 20 for line in lines), "the offline phase"
    assert (lines[-1]["learner_steps"], lines[-1]["env_steps"]) == (60 + 120, 240)
    assert all(line["learner_steps"] <= 60 or line["env_steps"] > 0 for line in lines)
    assert sum("critic/loss" in line for line in lines) == 3 + 4, "one line an iteration"
    assert f"dipole evaluate {run.relative_to(run.parent.parent)}" in ended.stdout and "mlflow ui" in ended.stdout
    again = "dipole train small.yaml tracking.mlflow=true folder=whole agent.beta="
    assert again in ended.stdout and "quickstart" not in ended.stdout, "what comes next is about this run"
    assert list(run.parent.iterdir()) == [run], "the folder of runs holds runs"
    assert list(run.rglob("*.pkl")) == []
    assert not (run.parent.parent / "ray_results").exists() or not any((run.parent.parent / "ray_results").iterdir())


def test_evaluation_has_every_cell_of_both_phases(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, ended = finished
    stored = json.loads((run / "evaluation.json").read_text())
    text = json.dumps(stored)
    for phase in ("offline", "online"):
        assert phase in text
    rows = _rows_by_phase(stored)
    cells = [(method, omega, n) for n in (1, 2) for method, omega in (("BC", None), ("DIPOLE", 0.0), ("DIPOLE", 1.0))]
    for phase in ("offline", "online"):
        assert sorted((r["method"], r["omega"], r["candidates"]) for r in rows[phase] if r["omega"] is not None) == [
            cell for cell in sorted(c for c in cells if c[1] is not None)
        ]
        assert sum(row["method"] == "BC" for row in rows[phase]) == 2
        for row in rows[phase]:
            assert row.keys() >= ROW_KEYS
            assert row["success"] is None and row["return_low"] <= row["return"] <= row["return_high"] <= 0
    assert "omega" in ended.stdout.lower() and "BC" in ended.stdout


def _rows_by_phase(stored: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of `evaluation.json` by phase."""
    phases: Any = stored.get("phases", stored) if isinstance(stored, dict) else stored
    if isinstance(phases, list):
        by_phase: dict[str, list[dict[str, Any]]] = {}
        for row in phases:
            by_phase.setdefault(row["phase"], []).append(row)
        return by_phase
    return {phase: phases[phase] for phase in ("offline", "online")}


def test_mlflow_has_parameters_metrics_pictures_and_the_checkpoint(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, _ = finished
    state = json.loads((run / "mlflow.json").read_text())
    assert state["tracking_uri"].startswith("sqlite:///") and (run.parent.parent / "mlflow.db").is_file()
    client = connect(state["tracking_uri"])
    stored = client.get_run(state["run_id"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["agent.denoise_steps"] == "2" and stored.data.params["env.id"] == "Pendulum-v1"
    assert {"critic/loss", "env_steps", "learner_steps"} & stored.data.metrics.keys() >= {"critic/loss"}
    artifacts = {item.path for item in client.list_artifacts(state["run_id"])}
    assert artifacts >= {"run.yaml", "evaluation.json", "checkpoint", "pictures"}
    pictures = [item.path for item in client.list_artifacts(state["run_id"], "pictures")]
    assert pictures and all(name.endswith(".png") for name in pictures)
    kept = {item.path for item in _files(client, state["run_id"], "checkpoint")}
    assert any(path.endswith("agent.safetensors") for path in kept)


def _files(client: Any, run_id: str, folder: str) -> list[Any]:
    """Return every file under an artifact folder."""
    files = []
    for item in client.list_artifacts(run_id, folder):
        files += _files(client, run_id, item.path) if item.is_dir else [item]
    return files


def interrupt(folder: Path, runs: str, reached: tuple[str, int], compiled: Path | None) -> tuple[int, str, Path]:
    """Train on the tests' Ray until a metric reaches a value, press Ctrl-C; return status, output and run folder."""
    words = (f"folder={runs}", "training.online_env_steps=240", "--address", ray.get_runtime_context().gcs_address)
    command = [sys.executable, "-c", LAUNCH, "train", "small.yaml", *words]
    variables = environment(folder) | ({"NUMBA_CACHE_DIR": str(compiled)} if compiled else {})
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + DEADLINE_S
    try:
        while not any(
            line[reached[0]] >= reached[1] for run in folder.glob(f"{runs}/small-*") for line in read_metrics(run)
        ):
            assert process.poll() is None and time.monotonic() < deadline, "never got there"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return process.returncode, output, only(folder, f"{runs}/small-*")


@pytest.mark.parametrize(
    ("reached", "anew"),
    [
        pytest.param(("learner_steps", 20), False, id="in the offline phase", marks=pytest.mark.slow),
        pytest.param(("env_steps", 60), False, id="in the online phase"),
        pytest.param(("env_steps", 80), True, id="of a run that compiles anew", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_and_resume_end_where_the_whole_run_ends(
    folder: Path, finished: tuple[Path, subprocess.CompletedProcess[str]], reached: tuple[str, int], anew: bool
) -> None:
    """Status 130, the command that continues, and then the very same agent, whoever compiled its updates."""
    whole, _ = finished
    compiled = folder / "compiled" if anew else None
    status, output, run = interrupt(folder, f"broken-{reached[0]}-{reached[1]}", reached, compiled)
    assert status == 130, output
    assert f"dipole train --resume {run.relative_to(folder)}" in output
    stopped = read_checkpoint(run / "checkpoints")
    steps = stopped.learner_steps, stopped.metadata["env_steps"]
    assert steps < (180, 240)
    ended = dipole_here("train", "--resume", run.relative_to(folder), cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert final_agent(run) == final_agent(whole)
    assert _rows_by_phase(json.loads((run / "evaluation.json").read_text())) == _rows_by_phase(
        json.loads((whole / "evaluation.json").read_text())
    )
    assert iterations(run) == iterations(whole)


def test_an_offline_run_goes_on_online_as_if_that_had_been_planned(
    folder: Path, finished: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    assert dipole_here("train", "small.yaml", "folder=first", "training.online_env_steps=0", cwd=folder).returncode == 0
    run = only(folder, "first/small-*")
    ended = dipole_here("train", "--resume", run.relative_to(folder), "training.online_env_steps=240", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert final_agent(run) == final_agent(finished[0])
    assert iterations(run) == iterations(finished[0])


class InTheLastUpdates(Run):
    """A run that gets a SIGTERM after its last environment step, while updates are owed for it."""

    def end_early_on(self, interrupted: Sized) -> None:
        run = self

        class Signalled(Sized):
            def __len__(self) -> int:
                if not interrupted and run.algorithm.env_steps == 240 and run.algorithm.learner_steps < 180:
                    os.kill(os.getpid(), signal.SIGTERM)
                return len(interrupted)

        super().end_early_on(Signalled())


def test_a_stop_in_the_last_updates_loses_none_of_them(
    folder: Path, finished: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All environment steps are done then, yet the phase is not over."""
    whole, _ = finished
    monkeypatch.setattr("dipole_ray.runs.start.Run", InTheLastUpdates)
    assert dipole_here("train", "small.yaml", "folder=last", cwd=folder).returncode == 128 + signal.SIGTERM
    monkeypatch.undo()
    run = only(folder, "last/small-*")
    stopped = read_checkpoint(run / "checkpoints")
    assert stopped.metadata["env_steps"] == 240 and stopped.learner_steps < 180
    assert dipole_here("train", "--resume", run.relative_to(folder), cwd=folder).returncode == 0
    assert final_agent(run) == final_agent(whole)
    assert iterations(run) == iterations(whole)


def test_an_environment_that_fails_later_ends_the_run_with_its_own_line_and_what_is_kept(folder: Path) -> None:
    ended = dipole_here("train", "small.yaml", "env.id=tests.odd_envs:BreaksLater-v0", "folder=breaks", cwd=folder)
    run = only(folder, "breaks/small-*").relative_to(folder)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "fails in step: OSError: motor offline (" in ended.stderr and 'raise OSError("motor' in ended.stderr
    kept = "kept up to update 60 and environment step 0; once it is mended, continue with:\n  dipole train --resume"
    assert f"{kept} {run}" in ended.stderr


def test_resume_refuses_what_the_checkpoint_cannot_be_continued_with(
    folder: Path, finished: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = finished
    before = final_agent(whole)
    for change, said in (
        ("agent.hidden_dims=[8,8]", "agent.hidden_dims: [16, 16] -> [8, 8]"),
        ("env.id=MountainCarContinuous-v0", "env.id: Pendulum-v1 -> MountainCarContinuous-v0"),
        ("seed=3", "seed: 0 -> 3"),
    ):
        assert main(["train", "--resume", str(whole), change]) == 2
        errors = capsys.readouterr().err
        assert errors.count("error:") == 1 and said in errors and "Traceback" not in errors
    for words, said in (
        (["--resume", str(folder / "nowhere")], "this is no run"),
        (["small.yaml", "--resume", str(whole)], "give only KEY=VALUE"),
    ):
        assert main(["train", *words]) == 2 and said in capsys.readouterr().err
    assert final_agent(whole) == before


def test_resume_warns_of_an_allowed_change_and_goes_further(
    folder: Path, finished: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    run = folder / "further" / "small-copy"
    shutil.copytree(finished[0], run)
    checkpoint = newest_valid(run / "checkpoints")
    assert checkpoint is not None
    changes = ["agent.learning_rate=0.0001", "training.online_env_steps=360", "tracking.mlflow=false"]
    ended = dipole_here("train", "--resume", run, *changes, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert "agent.learning_rate: 0.001 -> 0.0001" in ended.stderr
    last = read_metrics(run)[-1]
    assert (last["learner_steps"], last["env_steps"]) == (60 + 180, 360), "the finished run goes on to its new end"


def test_evaluate_gives_the_rows_that_were_asked_for(
    folder: Path, finished: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    run = finished[0]
    ended = dipole_here(
        "evaluate", run, "--omega", "0", "1", "--candidates", "2", "--episodes", "4", "--json", "rows.json",
        cwd=folder,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((folder / "rows.json").read_text())
    assert all(row.keys() >= ROW_KEYS and row["episodes"] == 4 for row in rows)
    assert len(rows) == 3
    assert {(row["omega"], row["candidates"]) for row in rows} == {(omega, 2) for omega in (None, 0.0, 1.0)}
    assert {row["method"] for row in rows if row["omega"] is None} == {"BC"}
    assert "omega" in ended.stdout.lower()
