"""Trials that share a process are each the trial that they would be alone, and end alone where they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dipole_ray.errors import ConfigError, DipoleError
from dipole_ray.stopping import Stopped
from dipole_ray.sweep.group import TrialGroup, grouped
from dipole_ray.sweep.records import STOP_FILE, TRIALS
from dipole_ray.sweep.trial import TrialRun
from tests.cli.commands import dipole_here
from tests.local_ray import CPUS
from tests.sweep.small import PBT, POPULATION, small_plan, sweep_mapping, write_sweep

GRID: dict[str, Any] = {"agent.beta": {"grid": [1.0, 5.0]}, "agent.expectile": {"grid": [0.7]}}
STACKED = {"resources": {"stacked": 4, "trial_cpus": CPUS}}
VALUES = {"trial-000": {"agent.beta": 1.0}, "trial-001": {"agent.beta": 5.0}}


def results_of(folder: Path, trial: str) -> list[dict[str, Any]]:
    """Return what a trial measured, but for with how many it shared a process."""
    found = json.loads((folder / TRIALS / trial / "trial.json").read_text())["results"]
    return [{**one, "stacked": None} for one in found]


@pytest.mark.slow
def test_a_grid_in_one_process_has_the_results_of_trials_alone(cluster: None, pendulum: Path, tmp_path: Path) -> None:
    plan = small_plan(pendulum, tmp_path / "alone", space=GRID)
    for number, values in enumerate(plan.trials()):
        trial = TrialRun(f"trial-{number:03d}", values, plan, plan.folder / TRIALS)
        trial.advance(), trial.advance()
    write_sweep(tmp_path / "small.yaml", sweep_mapping(pendulum, tmp_path / "runs", space=GRID, sweep=STACKED))
    ended = dipole_here("sweep", "small.yaml", cwd=tmp_path)
    assert ended.returncode == 0 and "trials=2/2" in ended.stderr, ended.stderr
    assert "failed" not in ended.stderr, ended.stderr
    (folder,) = (tmp_path / "runs").glob("small-*")
    for number in range(2):
        assert results_of(folder, f"trial-{number:03d}") == results_of(plan.folder, f"trial-{number:03d}")
    board = json.loads((folder / "leaderboard.json").read_text())
    assert [(item["status"], item["stacked"]) for item in board] == [("done", 2)] * 2


def test_trials_that_are_stopped_go_on_and_change_nothing(cluster: None, pendulum: Path, tmp_path: Path) -> None:
    whole, plan = (small_plan(pendulum, tmp_path / name) for name in ("whole", "stopped"))
    group = TrialGroup(VALUES, whole, whole.folder / TRIALS)
    assert (group.advance()["rung"], group.advance()["done"]) == (1, True)
    group = TrialGroup(VALUES, plan, plan.folder / TRIALS)
    group.advance()
    (plan.folder / STOP_FILE).touch()
    with pytest.raises(Stopped):
        group.advance()
    (plan.folder / STOP_FILE).unlink()
    again = TrialGroup(VALUES, plan, plan.folder / TRIALS)  # each folder is free again
    assert again.advance()["done"]
    for trial in VALUES:
        assert results_of(plan.folder, trial) == results_of(whole.folder, trial)


def test_a_trial_that_fails_ends_alone_and_is_named_at_the_end(cluster: None, pendulum: Path, tmp_path: Path) -> None:
    plan = small_plan(pendulum, tmp_path, space={"agent.learning_rate": {"grid": [1e-3, 1e12]}})
    values = {f"trial-{number:03d}": values for number, values in enumerate(plan.trials())}
    group = TrialGroup(values, plan, plan.folder / TRIALS)
    assert group.advance()["trial"] == "trial-000"
    with pytest.raises(DipoleError, match=r"^trial-001: NonFiniteError: .* in 10 updates in a row"):
        group.advance()
    assert len(results_of(plan.folder, "trial-000")) == 2
    group.close()


def test_trials_share_a_process_that_differ_in_what_a_stack_allows() -> None:
    trials = {"a": {"agent.beta": 1.0, "seed": 0}, "b": {"agent.beta": 3.0, "seed": 1}, "c": {"agent.tau": 0.1}}
    trials |= {"d": {"agent.beta": 9.0, "seed": 0}, "e": {"agent.tau": 0.1}}
    assert grouped(trials, 2) == ["a+b", "d", "c+e"]
    assert grouped(trials, 1) == ["a", "b", "d", "c", "e"]


def test_what_decides_trial_by_trial_shares_no_process(pendulum: Path, tmp_path: Path) -> None:
    stacked = {"resources": {"stacked": 2}}
    with pytest.raises(ConfigError, match=r"decide trial by trial: set it to 1, or sweep.search=grid"):
        small_plan(pendulum, tmp_path, space=POPULATION, sweep={**PBT, **stacked})
    with pytest.raises(ConfigError, match=r"learner.remote True: set rollout.num_workers=0"):
        small_plan(pendulum, tmp_path, sweep=stacked, run={"learner": {"remote": True}})
    with pytest.raises(ConfigError, match=r"seeds is \[0, 1\].*seed: \{grid: \[0, 1\]\}"):
        small_plan(pendulum, tmp_path, run={"seeds": [0, 1]})
