"""What Tune is told of a trial: its name, its bundles, and nothing before its first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.experiment.trial import _TrialInfo
from ray.tune.trainable.trainable import TRIAL_INFO

from dipole_ray.errors import ResourcesUnavailable
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import TRIALS, SweepRecords
from dipole_ray.sweep.trainable import SWEEP, TRIAL, SweepTrial, name_of, require_placeable
from dipole_ray.sweep.trial import TrialRun
from tests.sweep.small import small_plan

pytestmark = pytest.mark.usefixtures("cluster")

REMOTE = {"learner": {"remote": True}, "rollout": {"num_workers": 3, "cpus_per_worker": 0.25}}
SHARED = {"resources": {"trial_cpus": 0.5, "learner_cpus": 0.75}}


def planned(plan: Plan, of: str, beta: float) -> dict[str, object]:
    """Return the config of the trial `of` as Tune holds it."""
    SweepRecords(folder=plan.folder, plan=plan.to_mapping()).save()
    return {SWEEP: str(plan.folder), TRIAL: of, "agent.beta": beta}


def tune_config(plan: Plan, name: str, of: str, beta: float) -> dict[str, object]:
    """Return what Tune hands the process of a trial called `name` whose config PBT copied from the trial `of`."""
    info = _TrialInfo.__new__(_TrialInfo)
    info.__dict__ = {"_trial_name": name, "_trial_id": "1", "_trial_resources": None, "_experiment_name": "e"}
    return {**planned(plan, of, beta), TRIAL_INFO: info}


def test_a_trial_that_was_given_anothers_config_writes_into_its_own_folder(pendulum: Path, tmp_path: Path) -> None:
    plan = small_plan(pendulum, tmp_path)
    trial = SweepTrial(tune_config(plan, "trial-001", "trial-000", 3.0))
    assert not (plan.folder / TRIALS).exists(), "Tune may start an actor and take another one instead"
    result = trial.train()
    assert (result["trial"], result["rung"], result["learner_steps"], result["done"]) == ("trial-001", 1, 20, False)
    assert [path.name for path in (plan.folder / TRIALS).iterdir()] == ["trial-001"]
    trial.reset(tune_config(plan, "trial-002", "trial-001", 7.0))
    assert trial.train()["trial"] == "trial-002" and isinstance(trial.run, TrialRun)
    assert trial.run.algorithm.config.agent_settings().beta == 7.0
    trial.reset(tune_config(plan, "trial-001", "trial-001", 3.0))
    assert trial.train()["rung"] == 2, "it went on where it was"
    trial.stop()


def test_every_process_of_a_trial_has_its_bundle(pendulum: Path, tmp_path: Path) -> None:
    plan = small_plan(pendulum, tmp_path, sweep=SHARED, run=REMOTE)
    request = SweepTrial.default_resource_request(planned(plan, "trial-000", 1.0))
    assert request.bundles == [{"CPU": 0.5}, {"CPU": 0.75}, {"CPU": 0.25}, {"CPU": 0.25}, {"CPU": 0.25}]
    assert request.strategy == "PACK"
    local = small_plan(pendulum, tmp_path, sweep=SHARED)
    assert SweepTrial.default_resource_request(planned(local, "t", 1.0)).bundles == [{"CPU": 0.5}]


def test_only_what_no_node_could_ever_hold_is_refused(pendulum: Path, tmp_path: Path) -> None:
    """The cluster of these tests has four cores; what is busy now does not matter."""
    plan = small_plan(pendulum, tmp_path, sweep=SHARED, run=REMOTE)
    require_placeable(plan, [("trial-000", {"agent.beta": 1.0}), ("trial-001", {"rollout.num_workers": 11})])
    needed = r"trial-002 could never be placed: .*0\.5 CPU \+ 1 learner of 0\.75 CPU \+ 12 rollout workers of 0\.25 CPU"
    with pytest.raises(ResourcesUnavailable, match=rf"{needed}; available 4 CPU on .*add a node"):
        require_placeable(plan, [("trial-001", {}), ("trial-002", {"rollout.num_workers": 12})])


def test_tune_calls_trials_by_our_names() -> None:
    assert name_of(SimpleNamespace(config={TRIAL: "trial-007"})) == "trial-007"
