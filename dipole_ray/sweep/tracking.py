"""A sweep in MLflow: one run for the sweep, one below it for each trial, and none left running at the end.

Each feeds from the `metrics.jsonl` in its own folder. The trials find the sweep's run by its key, so that whoever
comes first, after an outage or a kill, finds the same runs.
"""

import logging
import threading
from pathlib import Path
from typing import Any

from dipole_ray.files.durable import read_json
from dipole_ray.runs.config import RunConfig
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import SweepRecords
from dipole_ray.tracking.metrics_file import METRICS_FILE
from dipole_ray.tracking.mlflow_feed import STATE_FILE
from dipole_ray.tracking.mlflow_server import connect, experiment_of, reason_of, remedy_of
from dipole_ray.tracking.tracker import RunStatus, Tracker

# MLflow's status for a trial's; what was interrupted is KILLED too, until the sweep goes on.
ENDINGS: dict[str, RunStatus] = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
AGAIN = "the same 'dipole sweep' again"
DELIVERY_S, DELIVERY_EACH_S = 30.0, 5.0  # longest wait for MLflow at the end of a sweep, and more for each trial
STOPPED_S = 5.0  # and at the end of one that is asked to stop, which may be killed soon

_log = logging.getLogger(__name__)


def sweep_tracker(plan: Plan, records: SweepRecords) -> Tracker:
    """Return the sweep's own tracker."""
    folder, where = records.folder, plan.run_config({}).tracking
    tags = {**_tags(plan), "config_digest": plan.digest()}
    own: Any = {"run_name": folder.name, "parameters": plan.to_mapping(), "run_key": records.run_key}
    return Tracker(folder, where, tags=tags, resume=True, again=AGAIN, **own)


def trial_tracker(
    plan: Plan, config: RunConfig, folder: Path, run_key: str | None, state: dict[str, Any] | None
) -> Tracker:
    """Return the tracker of a trial, below the sweep's run with the key `run_key`; `state` as for `Tracker`."""
    tags = {**_tags(plan), "dipole.trial": folder.name}
    own: Any = {"run_name": f"{plan.sweep.name}/{folder.name}", "parameters": config.to_mapping()}
    return Tracker(folder, config.tracking, tags=tags, resume=True, state=state, parent_key=run_key, again=AGAIN, **own)


def _tags(plan: Plan) -> dict[str, str]:
    """Return the tags of all runs of a sweep; the source is the command that a user gave."""
    return {"dipole.sweep": plan.sweep.name, "mlflow.source.name": "dipole sweep"}


def deliver_trials(plan: Plan, records: SweepRecords, *, stopped: bool) -> None:
    """Deliver what trials could not, and end the MLflow runs of those whose process was killed; never for long."""
    if not plan.run_config({}).tracking.mlflow:
        return
    worker = threading.Thread(target=_deliver, args=(plan, records), name="mlflow-trials", daemon=True)
    worker.start()
    worker.join(STOPPED_S if stopped else DELIVERY_S + DELIVERY_EACH_S * len(records.trials))
    if worker.is_alive():
        _log.warning("MLflow is slow: not all trials are delivered; the same command again delivers the rest")


def _deliver(plan: Plan, records: SweepRecords) -> None:
    """Go through the trials, one after the other."""
    try:
        tracking = plan.run_config({}).tracking
        uri = tracking.resolve_uri(records.folder.parent)
        client = connect(uri)
        experiment_of(client, uri, tracking.experiment)  # an outage or a refusal is seen once, not in every trial
        for record in records.trials.values():
            folder = records.trial_folder(record.id)
            if (folder / METRICS_FILE).exists() and _is_open(client, folder):
                config = plan.trial_config(record.values, record.id, folder.parent)
                tracker = trial_tracker(plan, config, folder, records.run_key, None)
                tracker.close(ENDINGS.get(record.status, "KILLED"))
                record.run_id = tracker.run_id
        records.save()
    except Exception as error:  # whatever a tracker does, the sweep ends well
        mended = f"once that is mended ({remedy})" if (remedy := remedy_of(error)) else "once it answers"
        said = "MLflow took not everything of the trials (%s); their folders have it, and %s, %s delivers it"
        _log.warning(said, reason_of(error), mended, AGAIN)


def _is_open(client: Any, folder: Path) -> bool:
    """Return whether MLflow lacks something of a trial, or holds its run for running."""
    try:
        state = read_json(folder / STATE_FILE)
        run_id, offset, waiting = state["run_id"], int(state["offset"]), state["artifacts"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    if run_id is None or waiting or offset < (folder / METRICS_FILE).stat().st_size:
        return True
    return str(client.get_run(run_id).info.status) == "RUNNING"
