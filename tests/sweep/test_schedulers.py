"""ASHA compares with what earlier sessions saw, PBT mutates within the space, Optuna is told what it missed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from dipole_ray.sweep.records import TRIAL_FILE, SweepRecords
from dipole_ray.sweep.tuning import ContinuedASHA, ContinuedOptuna, scheduler_of
from tests.sweep.small import PBT, POPULATION, small_plan

ASHA = {"scheduler": "asha", "rungs": 4, "asha": {"grace_rungs": 1, "reduction_factor": 2.0}}


def records_with(plan: Any, scores: dict[str, list[float]], status: str = "planned") -> SweepRecords:
    """Return records of trials that wrote these scores down, one a rung."""
    records = SweepRecords(folder=plan.folder, plan=plan.to_mapping())
    for trial, of_trial in scores.items():
        record = records.add({"agent.beta": float(len(records.trials) + 1)})
        assert record.id == trial
        results = [{"rung": rung, "score": score} for rung, score in enumerate(of_trial, start=1)]
        folder = records.trial_folder(trial)
        folder.mkdir(parents=True)
        notes = {
            "values": record.values,
            "rung": len(results),
            "run_id": None,
            "checkpoint": None,
            "finished": False,
            "results": results,
        }
        (folder / TRIAL_FILE).write_text(json.dumps(notes))
        record.rung, record.status = len(results), status  # type: ignore[assignment]
        record.score = of_trial[-1] if of_trial else None
    return records


def result(rung: int, score: float) -> dict[str, Any]:
    return {"rung": rung, "score": score, "training_iteration": 1}


def decide(scheduler: ContinuedASHA, name: str, rung: int, score: float) -> str:
    """Return what the scheduler says to a trial's result, in a session that has just begun."""
    trial = SimpleNamespace(trial_id=f"tune-{name}", config={"trial": name})
    if trial.trial_id not in scheduler._trial_info:
        scheduler.on_trial_add(None, trial)
    return str(scheduler.on_trial_result(None, trial, result(rung, score)))


def test_asha_compares_with_results_of_an_earlier_session(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, tmp_path, sweep=ASHA)
    seen = {"trial-000": [1.0], "trial-001": [3.0], "trial-002": []}
    scheduler = scheduler_of(plan, records_with(plan, seen))
    assert isinstance(scheduler, ContinuedASHA)
    assert decide(scheduler, "trial-002", 1, 0.5) == TrialScheduler.STOP, "worse than both that came before"
    fresh = scheduler_of(plan, SweepRecords(folder=plan.folder, plan={}))
    assert decide(fresh, "trial-002", 1, 0.5) == TrialScheduler.CONTINUE  # type: ignore[arg-type]


def test_asha_does_not_compare_a_continued_trial_with_itself(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, tmp_path, sweep=ASHA)
    scheduler = scheduler_of(plan, records_with(plan, {"trial-000": [5.0], "trial-001": [1.0]}))
    assert isinstance(scheduler, ContinuedASHA)
    assert decide(scheduler, "trial-000", 2, 0.1) == TrialScheduler.CONTINUE, "the first at rung 2"
    recorded = [recorded for _, recorded in scheduler._brackets[0]._rungs]
    assert sum("000" in name for rung in recorded for name in rung) == 2, "once at each rung"


def test_asha_minimises_where_less_is_better(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, tmp_path, sweep={**ASHA, "mode": "min", "metric": "length"})
    scheduler = scheduler_of(plan, records_with(plan, {"trial-000": [100.0], "trial-001": [50.0], "trial-002": []}))
    assert isinstance(scheduler, ContinuedASHA)
    assert decide(scheduler, "trial-002", 1, 200.0) == TrialScheduler.STOP


def test_pbt_mutates_within_the_space(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, tmp_path, sweep=PBT, space=POPULATION)
    scheduler = scheduler_of(plan, SweepRecords(folder=plan.folder, plan={}))
    edge = {"agent.beta": 20.0, "agent.expectile": 0.95, "agent.learning_rate": 1e-4, "trial": "trial-000"}
    donor = SimpleNamespace(config=edge)
    changed = set()
    for _ in range(200):
        new, _ = scheduler._get_new_config(None, donor)  # type: ignore[attr-defined]
        assert new["trial"] == "trial-000"
        for key, domain in plan.space.items():
            low, high = domain.values
            assert low <= new[key] <= high, (key, new[key])
            changed |= {key} if new[key] != edge[key] else set()
        plan.run_config({key: new[key] for key in plan.space})
    assert changed == set(plan.space)


def test_optuna_goes_on_after_the_unfinished_and_knows_the_finished(tmp_path: Path) -> None:
    space = {"agent.beta": {"loguniform": [0.5, 20.0]}}
    plan = small_plan(tmp_path, tmp_path, sweep={"search": "optuna", "num_samples": 4}, space=space)
    records = records_with(plan, {"trial-000": [1.0, 2.0], "trial-001": [0.5]})
    records.trials["trial-000"].status = "done"
    search = ContinuedOptuna(plan, records)
    study = search._optuna._ot_study  # type: ignore[attr-defined]
    assert [trial.value for trial in study.trials] == [2.0]
    assert search.num_left == 3
    first = search.suggest("a")
    assert first is not None and first["trial"] == "trial-001" and first["agent.beta"] == 2.0
    new = [search.suggest(name) for name in "bc"]
    assert [one and one["trial"] for one in new] == ["trial-002", "trial-003"]
    assert search.suggest("d") == "FINISHED" and len(records.trials) == 4
    search.on_trial_complete("a", {"score": 7.0})
    search.on_trial_complete("b", {"score": 8.0, "training_iteration": 2})
    values = [trial.value for trial in study.trials if trial.value is not None]
    assert sorted(values) == [2.0, 7.0, 8.0]
    assert len(SweepRecords.open(plan.folder, {}).trials) == 4, "a proposed trial is written down before it starts"
