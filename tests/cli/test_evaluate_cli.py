"""`dipole evaluate` on a checkpoint: the grid that was asked for, and clear refusals."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dipole_ray.agents.agent import make_agent
from dipole_ray.agents.config import AgentConfig
from dipole_ray.cli import main
from dipole_ray.columns import Schema
from dipole_ray.files.checkpoint import write_checkpoint
from dipole_ray.files.durable import replacing, write_text
from dipole_ray.serving.policy import load_policy
from dipole_ray.settings import to_mapping


def saved_run(folder: Path, config: AgentConfig) -> Path:
    """Write the checkpoint of a fresh agent for Pendulum as a run's."""
    agent = make_agent(config, Schema(3, 1), seed=0)
    metadata = {
        "algorithm": {"agent": to_mapping(config), "env": {"id": "Pendulum-v1", "max_episode_steps": 20}},
        "observation_dim": 3,
        "action_dim": 1,
        "env_steps": 0,
    }
    write_checkpoint(folder / "checkpoints", 7, {"agent": agent.state_dict()}, metadata)
    return folder


def small(**changes: object) -> AgentConfig:
    """Return a tiny agent's config."""
    return AgentConfig.preset("small", hidden_dims=(8, 8), denoise_steps=2, **changes)


def test_one_cell_without_ray_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved_run(tmp_path / "run", small())
    table = tmp_path / "rows.json"
    words = ["--omega", "1.5", "--candidates", "3", "--episodes", "2", "--json", str(table)]
    assert main(["evaluate", str(run), *words]) == 0
    rows = json.loads(table.read_text())
    assert [(row["method"], row["omega"], row["candidates"], row["episodes"]) for row in rows] == [
        ("DIPOLE", 1.5, 3, 2)
    ]
    assert rows[0]["length"] == 20 and rows[0]["success"] is None
    assert "Pendulum-v1 after 7 updates" in capsys.readouterr().out
    # The same seed gives the same episodes, also from the checkpoint's own folder.
    again = tmp_path / "again.json"
    newest = run / "checkpoints" / "000000007"
    assert main(["evaluate", str(newest), *words[:-1], str(again)]) == 0
    assert json.loads(again.read_text()) == rows
    assert main(["evaluate", str(newest), *words[:-1], str(again), "--seed", "1"]) == 0
    assert json.loads(again.read_text()) != rows


def test_solver_and_steps_are_the_runs_unless_given_and_rows_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, found = tmp_path / "rows.json", {}
    for solver in ("euler", "midpoint"):
        run = saved_run(tmp_path / solver, small(solver=solver))
        for given in ([], ["--solver", "euler"], ["--solver", "midpoint", "--steps", "2"], ["--steps", "3"]):
            words = ["--omega", "1.5", "--candidates", "3", "--episodes", "2", "--json", str(table), *given]
            assert main(["evaluate", str(run), *words]) == 0
            found[solver, *given] = json.loads(table.read_text())[0]
    returns = {how: row["return"] for how, row in found.items()}
    assert returns["euler",] == returns["euler", "--solver", "euler"] == returns["midpoint", "--solver", "euler"]
    assert returns["midpoint",] == returns["euler", "--solver", "midpoint", "--steps", "2"] != returns["euler",]
    assert returns["euler", "--steps", "3"] not in (returns["euler",], returns["midpoint", "--steps", "3"])
    assert found["midpoint", "--steps", "3"]["denoise_steps"] == 3 and "denoise_steps 3" in capsys.readouterr().out
    flat = saved_run(tmp_path / "iql", small(algorithm="iql", bootstrap="value"))
    assert main(["evaluate", str(flat), "--solver", "midpoint", "--episodes", "1"]) == 2
    assert "agent.solver" in capsys.readouterr().err


def test_single_field_agent_is_evaluated_without_omega(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", small(weight_scheme="bc"))
    table = tmp_path / "rows.json"
    for candidates, method in (("1", "BC"), ("2", "IFQL")):
        assert main(["evaluate", str(run), "--candidates", candidates, "--episodes", "1", "--json", str(table)]) == 0
        (row,) = json.loads(table.read_text())
        assert (row["method"], row["omega"], row["candidates"]) == (method, None, int(candidates))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--candidates", "0"], "evaluation.candidates"),
        (["--omega", "-2"], "evaluation.omegas"),
        (["--omega", "nan"], "evaluation.omegas"),
        (["--episodes", "0"], "evaluation.episodes"),
        (["--json", "nowhere/rows.json"], "the folder does not exist"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved_run(tmp_path / "run", small())
    assert main(["evaluate", str(run), *words]) == 2
    shown = capsys.readouterr().err
    assert shown.count("error:") == 1 and said in shown and "Traceback" not in shown


def test_no_run_and_damaged_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path):
        assert main(["evaluate", str(path)]) == 2
        shown = capsys.readouterr().err
        assert shown.count("error:") == 1 and "checkpoint" in shown and "Traceback" not in shown
    run = saved_run(tmp_path / "run", small())
    file = run / "checkpoints" / "000000007" / "agent.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert main(["evaluate", str(run)]) == 2
    assert "checkpoint" in capsys.readouterr().err


def test_checkpoint_of_another_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "checkpoints", 1, {"other": {}}, {"hello": "world"})
    assert main(["evaluate", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("error:") == 1 and "Traceback" not in shown


def test_policy_without_ray(tmp_path: Path) -> None:
    """The loaded policy acts as the saved one would."""
    config = small(omega=1.0)
    policy = load_policy(saved_run(tmp_path / "run", config))
    assert policy.policy.config == config and policy.learner_steps == 7 and policy.env.id == "Pendulum-v1"
    saved = make_agent(config, Schema(3, 1), seed=0).policy.policy_state()
    assert all((tensor == saved[name]).all() for name, tensor in policy.policy.policy_state().items())


def test_a_full_disk_and_a_place_that_takes_no_file_are_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, few = saved_run(tmp_path / "run", small()), ["--omega", "0", "--candidates", "1", "--episodes", "1"]
    assert main(["evaluate", str(run), *few, "--json", "/dev/full"]) == 2
    printed = capsys.readouterr()
    assert "DIPOLE" in printed.out and "--json /dev/full: cannot be written (No space left on device)" in printed.err
    assert main(["evaluate", str(run), *few, "--json", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert not printed.out and f"--json {tmp_path} is a folder; give a file, such as {tmp_path}/json" in printed.err

    def fill(*_: object) -> int:
        with replacing(tmp_path / "leaderboard.json"):
            Path("/dev/full").write_text("more than there is room for")
        return 0

    monkeypatch.setattr("dipole_ray.cli.doctor.run_doctor", fill)
    assert main(["doctor"]) == 2
    assert f"error: {tmp_path}/leaderboard.json cannot be written (No space left" in capsys.readouterr().err


def test_a_pipe_takes_a_text_and_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        write_text(pipe, "all of it")
        assert read.result(10) == "all of it" and pipe.is_fifo()


def test_a_working_directory_that_is_gone_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["evaluate", "run"]) == 2
    assert "error: the working directory is gone" in capsys.readouterr().err
