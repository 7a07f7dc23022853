"""A trial: scored on two sets of episodes, continued bit for bit, and copied exactly with other settings in force."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dipole_ray import DIPOLE
from dipole_ray.errors import ConfigError
from dipole_ray.files.checkpoint import newest_valid, read_checkpoint
from dipole_ray.files.lock import FolderLock
from dipole_ray.serving.policy import load_policy
from dipole_ray.stopping import Stopped
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.trial import TrialRun
from tests.chaos.kit import ring_rows
from tests.sweep.small import PBT, POPULATION, small_plan

pytestmark = pytest.mark.usefixtures("cluster")

FIRST = {"agent.beta": 2.0, "agent.expectile": 0.8, "agent.learning_rate": 1e-3}
SECOND = {"agent.beta": 9.0, "agent.expectile": 0.65, "agent.learning_rate": 2e-4}
ONLINE = {"training": {"offline_learner_steps": 40, "online_env_steps": 120, "env_steps_per_iteration": 60}}


def agent_tensors(run: TrialRun) -> dict[str, torch.Tensor]:
    """Return a copy of everything the learner has."""
    return {name: tensor.clone() for name, tensor in run.algorithm.learner.agent_state().items()}


def different(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that are not equal bit for bit."""
    assert left.keys() == right.keys()
    return [name for name, tensor in left.items() if not torch.equal(tensor, right[name])]


@pytest.fixture(scope="module")
def offline(pendulum: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return small_plan(pendulum, tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def finished(offline: Plan) -> tuple[TrialRun, list[dict[str, Any]]]:
    """A trial run to its end without a break, and its results."""
    run = TrialRun("whole", {"agent.beta": 5.0}, offline, offline.folder / "trials")
    results = [run.advance(), run.advance()]
    return run, results


def test_every_rung_scores_the_whole_grid_and_the_last_reports(finished: Any, offline: Plan) -> None:
    run, results = finished
    assert [result["rung"] for result in results] == [1, 2] and [result["done"] for result in results] == [False, True]
    assert [result["learner_steps"] for result in results] == [20, 40]
    first, last = run.results
    assert first["report"] is None and last["report"] is not None
    for rung in run.results:
        assert [(row["omega"], row["candidates"]) for row in rung["rows"]] == [(0.0, 1), (1.0, 1), (0.0, 2), (1.0, 2)]
        assert {row["episodes"] for row in rung["rows"]} == {2}
        assert rung["score"] == max(row["return"] for row in rung["rows"]) == rung["best"]["return"]
    cell = (last["best"]["omega"], last["best"]["candidates"])
    assert (last["report"]["omega"], last["report"]["candidates"]) == cell and last["report"]["episodes"] == 3


def test_reported_episodes_are_others_than_those_that_selected(finished: Any) -> None:
    """Three other starts: equal means would mean equal episodes."""
    run, _ = finished
    assert run.results[-1]["report"]["return"] != run.results[-1]["best"]["return"]
    assert run.results[-1]["report"]["return"] not in [row["return"] for row in run.results[-1]["rows"]]


def test_a_trial_folder_is_a_runs_folder(finished: Any) -> None:
    run, _ = finished
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {"run.yaml", "metrics.jsonl", "checkpoints", "evaluation.json", "trial.json"}
    policy = load_policy(run.folder)
    assert policy.learner_steps == 40 and policy.policy.config.beta == 5.0
    notes = json.loads((run.folder / "trial.json").read_text())
    assert notes["finished"] and notes["results"] == run.results and list(run.folder.rglob("*.pkl")) == []


def test_a_trial_that_is_cut_off_continues_bit_for_bit(finished: Any, offline: Plan) -> None:
    whole, _ = finished
    trials = offline.folder / "trials"
    run = TrialRun("cut", {"agent.beta": 5.0}, offline, trials)
    run.advance()
    run.algorithm.train()  # beyond the rung: lost with the process, and done again
    run.close()
    again = TrialRun("cut", {"agent.beta": 5.0}, offline, trials)
    assert again.rung == 1 and again.algorithm.learner_steps == 20 and len(again.results) == 1
    again.advance()
    ends = [read_checkpoint(newest_valid(trials / name / "checkpoints") or Path()) for name in ("whole", "cut")]
    assert different(ends[0].tensors["agent"], ends[1].tensors["agent"]) == []
    assert again.results == whole.results


def test_no_trial_is_compared_by_its_success_with_another_by_its_return(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An environment that tells success only when it is solved: what the first score is, all of the sweep are."""
    online = {"offline_learner_steps": 0, "online_env_steps": 16, "env_steps_per_iteration": 8}
    run = {"env": {"id": "tests.odd_envs:WhenSolvable-v0"}, "data": {"path": None}, "training": online}
    space = {"env.kwargs": {"grid": [{"solvable": False}, {"solvable": True}]}}

    def scores(name: str, order: list[bool]) -> list[tuple[float, float | None]]:
        plan = small_plan(tmp_path, tmp_path, space=space, run=run, sweep={"rungs": 1})
        found = []
        for solvable in order:
            trial = TrialRun(str(solvable), {"env.kwargs": {"solvable": solvable}}, plan, tmp_path / name / "trials")
            trial.advance()
            trial.close()
            found.append((trial.results[-1]["score"], trial.results[-1]["best"]["success"]))
        return found

    assert scores("solved first", [True, False]) == [(1.0, 1.0), (0.0, 0.0)]
    assert "env.success=true" not in caplog.text
    assert scores("solved last", [False, True]) == [(-4.0, None), (-4.0, None)]
    assert "scores stay returns; with env.success=true" in caplog.text


class _InTheLastUpdates(Sized):
    """Asks an algorithm to stop once its last environment step is done and updates are owed for it."""

    def __init__(self, algorithm: DIPOLE) -> None:
        self._algorithm = algorithm

    def __len__(self) -> int:
        return int(self._algorithm.env_steps == 120 and self._algorithm.learner_steps < 100)


def test_a_stop_in_the_last_updates_of_a_trial_loses_none_of_them(pendulum: Path, tmp_path: Path) -> None:
    plan = small_plan(pendulum, tmp_path, sweep={"rungs": 1}, run=ONLINE)
    run = TrialRun("only", {"agent.beta": 5.0}, plan, tmp_path / "trials")
    run.end_early_on(_InTheLastUpdates(run.algorithm))
    with pytest.raises(Stopped):
        run.advance()
    again = TrialRun("only", {"agent.beta": 5.0}, plan, tmp_path / "trials")
    assert again.algorithm.env_steps == 120 and again.algorithm.learner_steps < 100
    assert again.advance()["learner_steps"] == 40 + 60


def test_a_finished_trial_is_not_trained_again(finished: Any, offline: Plan) -> None:
    whole, results = finished
    before = (whole.folder / "metrics.jsonl").read_bytes()
    again = TrialRun("whole", {"agent.beta": 5.0}, offline, offline.folder / "trials")
    assert again.advance() == results[-1]
    assert (whole.folder / "metrics.jsonl").read_bytes() == before


def test_two_processes_do_not_write_into_one_trial(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, 0.0)
    with pytest.raises(ConfigError, match="another process writes there"):
        FolderLock(tmp_path, 0.3)
    lock.release()
    FolderLock(tmp_path, 0.0).release()


@pytest.fixture(scope="module")
def population(pendulum: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TrialRun, TrialRun]]:
    """Two trials of a population, online, the first at its first rung and beyond, and what it exported there."""
    folder = tmp_path_factory.mktemp("population")
    plan = small_plan(pendulum, folder, sweep=PBT, space=POPULATION, run=ONLINE)
    donor = TrialRun("donor", FIRST, plan, folder / "trials")
    taker = TrialRun("taker", SECOND, plan, folder / "trials")
    yield donor, taker
    donor.close()
    taker.close()


def test_a_copy_is_exact_and_its_own_settings_are_in_force(
    population: tuple[TrialRun, TrialRun], tmp_path: Path
) -> None:
    donor, taker = population
    donor.advance()
    taker.advance()
    state, rows = agent_tensors(donor), ring_rows(donor.algorithm.replay_directory / "online.arrow")
    counts = donor.algorithm.learner_steps, donor.algorithm.env_steps, donor.algorithm.replay.sizes()
    assert counts[1] > 0, "the copy has a replay to take over"
    donor.export(tmp_path / "export")
    donor.algorithm.train()  # the donor goes on; its copy is of the rung
    taker.take_over(tmp_path / "export")

    assert different(agent_tensors(taker), state) == []
    assert (taker.algorithm.learner_steps, taker.algorithm.env_steps, taker.algorithm.replay.sizes()) == counts
    copied = ring_rows(taker.algorithm.replay_directory / "online.arrow")
    for name in ("observations", "actions", "rewards"):
        assert np.array_equal(copied[name], rows[name]), name
    _assert_in_force(taker)

    before = agent_tensors(taker)
    taker.algorithm.train()
    assert different(agent_tensors(taker), before), "it trains"
    _assert_in_force(taker)
    assert agent_tensors(donor).keys() == state.keys() and donor.algorithm.replay_directory != taker.folder / "replay"


def _assert_in_force(taker: TrialRun) -> None:
    """The learner itself, its optimizer included, works with the values of the second trial."""
    agent = taker.algorithm.learner.learners[0].agent
    assert (agent.config.beta, agent.config.expectile, agent.config.learning_rate) == (9.0, 0.65, 2e-4)
    assert {group["lr"] for group in agent.optimizer.param_groups} == {2e-4}


def test_a_mutated_learning_rate_sets_the_size_of_the_steps(
    population: tuple[TrialRun, TrialRun], tmp_path: Path
) -> None:
    """From one state and one batch, Adam's step grows with the learning rate and with nothing else."""
    donor, taker = population
    if donor.rung == 0:
        donor.advance()
    donor.export(tmp_path / "export")
    taker.copied.clear()
    taker.take_over(tmp_path / "export")
    checkpoint = read_checkpoint(tmp_path / "export")
    steps = []
    for run in (donor, taker):
        run.algorithm.learner.load_agent_state(checkpoint.tensors["agent"])
        agent = run.algorithm.learner.learners[0].agent
        before = [p.detach().clone() for group in agent.optimizer.param_groups for p in group["params"]]
        for group in agent.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        agent.optimizer.step()
        after = [p.detach() for group in agent.optimizer.param_groups for p in group["params"]]
        steps.append(torch.cat([(new - old).abs().flatten() for new, old in zip(after, before, strict=True)]))
    ratio = float(steps[0].mean() / steps[1].mean())
    assert ratio == pytest.approx(1e-3 / 2e-4, rel=1e-2)
    donor.algorithm.learner.load_agent_state(checkpoint.tensors["agent"])
    taker.algorithm.learner.load_agent_state(checkpoint.tensors["agent"])


def test_a_copy_is_taken_once_and_survives_a_restart(population: tuple[TrialRun, TrialRun], tmp_path: Path) -> None:
    donor, taker = population
    if donor.rung == 0:
        donor.advance()
    donor.export(tmp_path / "export")
    taker.copied.clear()
    taker.take_over(tmp_path / "export")
    taker.advance()
    state = agent_tensors(taker)
    taker.take_over(tmp_path / "export")  # as Tune does when the trial's process died after the copy
    assert different(agent_tensors(taker), state) == [], "what was trained since is kept"
    taker.export(tmp_path / "own")
    taker.take_over(tmp_path / "own")
    assert different(agent_tensors(taker), state) == [], "its own folder has the same or later"
    plan, trials, rung = taker.plan, taker.folder.parent, taker.rung
    taker.close()
    again = TrialRun("taker", SECOND, plan, trials)
    assert again.rung == rung and again.copied == [["donor", again.copied[0][1]]]
    assert different(agent_tensors(again), state) == []
    _assert_in_force(again)
    again.close()
