"""A sweep from its plan to its leaderboard: the same plan again goes on where it was left, however that was."""

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import yaml
from ray import tune

from dipole_ray import settings
from dipole_ray.envs.make import env_dims
from dipole_ray.errors import ConfigError
from dipole_ray.files.durable import write_text
from dipole_ray.files.lock import FolderLock
from dipole_ray.files.storage import require_lasting
from dipole_ray.parallel import ray_session
from dipole_ray.progress import Progress
from dipole_ray.rllib.core_privates import stop_ray
from dipole_ray.runs.prepare import prepare_datasets
from dipole_ray.stopping import StopRequests, noting_stops
from dipole_ray.sweep.callback import SweepCallback
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import STOP_FILE, SweepRecords
from dipole_ray.sweep.result import SweepResult, write_result
from dipole_ray.sweep.tracking import deliver_trials, sweep_tracker
from dipole_ray.sweep.trainable import SweepTrial, name_of, require_placeable
from dipole_ray.sweep.tuning import scheduler_of, search_of
from dipole_ray.tracking.mlflow_server import redacted
from dipole_ray.tracking.tracker import Tracker

PLAN_FILE = "sweep.yaml"
LOCK_WAIT_S = 10.0
# Checkpoints of a trial that Tune keeps while it runs: a copy may still be read while its owner goes on
KEPT_BY_TUNE = 3
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial's folder has its metrics already
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a trial as in a run
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end trials without a checkpoint
}


def run_sweep(plan: Plan) -> SweepResult:
    """Run what is left of a sweep and report all of it; after any DipoleError the same call goes on from there."""
    # What can be refused is refused before a folder is made and Ray started.
    env_dims(plan.run_config({}).env)
    require_lasting(plan.folder.parent, "folder")
    for data in [plan.run_config(values).data for values in [{}, *plan.trials()]]:
        if data.path is not None:
            require_lasting(Path(data.path), "data.path")
    plan = _with_tracking(plan)
    records = SweepRecords.open(plan.folder, plan.to_mapping())
    is_new = not records.trials
    for values in plan.trials() if is_new else []:
        records.add(values)
    left = len(records.unfinished()) + plan.num_trials - len(records.trials)
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.ExitStack() as stack:
        if left:
            stack.enter_context(ray_session(stop_ray))
            trials = [(record.id, record.values) for record in records.unfinished()] or [("a trial", {})]
            require_placeable(plan, trials)
            prepare_datasets(plan.run_config(values) for _, values in trials)  # before trials ask for them at once
        stack.enter_context(FolderLock(records.folder, LOCK_WAIT_S))
        if not is_new:  # another process may have gone on with it until just now
            records = SweepRecords.open(plan.folder, plan.to_mapping())
        _write_plan(records.folder, plan)
        records.save()
        tracker = stack.enter_context(sweep_tracker(plan, records))
        stops = _train(plan, records, tracker) if left else StopRequests()
        finished = not records.having("planned") and len(records.trials) == plan.num_trials
        deliver_trials(plan, records, stopped=bool(stops))
        result = write_result(plan, records, finished=finished, stops=stops, view_command=tracker.view_command)
        for path in result.files:
            tracker.artifact(path, "pictures" if path.suffix == ".png" else "")
        tracker.close("FINISHED" if finished else "KILLED")
        return result


def _train(plan: Plan, records: SweepRecords, tracker: Tracker) -> StopRequests:
    """Have Tune run the trials that are left; return the requests to stop that ended it."""
    (records.folder / STOP_FILE).unlink(missing_ok=True)
    session = records.folder / "tune"
    shutil.rmtree(session, ignore_errors=True)  # of an earlier session: nothing in it is ever read
    with noting_stops() as stops, Progress(plan.sweep.name, plan.num_trials * plan.sweep.rungs, "rungs") as progress:
        space, search = search_of(plan, records)
        tune_config = tune.TuneConfig(
            scheduler=scheduler_of(plan, records), trial_name_creator=name_of, reuse_actors=True, **search
        )
        run_config = tune.RunConfig(
            name="session",
            storage_path=str(session),
            failure_config=tune.FailureConfig(max_failures=plan.sweep.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT_BY_TUNE),
            callbacks=[SweepCallback(plan, records, progress, tracker, stops)],
            verbose=0,
        )
        tune.Tuner(SweepTrial, param_space=space, tune_config=tune_config, run_config=run_config).fit()
    shutil.rmtree(session, ignore_errors=True)
    for record in records.having("running"):  # they were stopped
        record.status = "planned"
    records.save()
    return stops


def _with_tracking(plan: Plan) -> Plan:
    """Return the plan with MLflow's address settled for all trials; one with a password stays in the environment."""
    tracking = plan.run_config({}).tracking
    uri = tracking.resolve_uri(plan.folder.parent)
    if not tracking.mlflow or redacted(uri) != uri:
        return plan
    return replace(plan, run=settings.merge(plan.run, {"tracking": {"tracking_uri": uri}}))


def _write_plan(folder: Path, plan: Plan) -> None:
    """Write the plan as a file that `dipole sweep` takes."""
    try:
        write_text(folder / PLAN_FILE, yaml.safe_dump(plan.to_mapping(), sort_keys=False))
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
        raise ConfigError(f"sweep folder {folder}: {why}; choose another place with folder=PATH") from error
