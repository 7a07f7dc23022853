"""The sweep's own process while Tune works: it keeps the records, the progress bar and the sweep's MLflow series."""

from __future__ import annotations

import logging
import signal
import time
from typing import Any

from ray.tune import Callback

from dipole_ray.files.lock import LOCK
from dipole_ray.progress import Progress
from dipole_ray.stopping import StopRequests
from dipole_ray.sweep.group import names_in
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import STOP_FILE, SweepRecords, TrialRecord, TrialStatus
from dipole_ray.sweep.trainable import values_of
from dipole_ray.tracking.tracker import Tracker

PATIENCE_S = 12.0  # longest wait for trials that save before they end
_log = logging.getLogger(__name__)


class SweepCallback(Callback):
    """Told by Tune what happens to trials."""

    def __init__(
        self, plan: Plan, records: SweepRecords, progress: Progress, tracker: Tracker, stops: StopRequests
    ) -> None:
        self._plan, self._records = plan, records
        self._stops, self._stopping_since = stops, 0.0
        self._progress, self._tracker = progress, tracker
        self._steps: dict[str, tuple[int, int]] = {}  # updates and environment steps of each trial
        for trial in records.trials:
            for result in records.results(trial)[-1:]:
                self._steps[trial] = (int(result["learner_steps"]), int(result["env_steps"]))

    def __getstate__(self) -> dict[str, Any]:
        """Keep threads and files out of the state that Tune writes, and that nobody reads."""
        return {}

    def __deepcopy__(self, memo: Any) -> SweepCallback:
        return self

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """On a request to stop have the trials save, wait until they have, and end Tune."""
        if not self._stops:
            return
        if not self._stopping_since:
            self._stopping_since = time.monotonic()
            (self._records.folder / STOP_FILE).touch()
        running = [self._records.trial_folder(record.id) / LOCK for record in self._records.having("running")]
        if time.monotonic() - self._stopping_since > PATIENCE_S or not any(lock.exists() for lock in running):
            signal.raise_signal(signal.SIGUSR1)  # on which Tune ends, also where Ctrl-C is not its own

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial runs, with the values it runs with."""
        records = self._records_of(trial)
        if len(records) == 1:
            records[0].values = values_of(trial.config)
        for record in records:
            self._note(record, "running")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        """Note a rung."""
        records = self._records_of(trial)
        for record in records:
            for last in [result] if len(records) == 1 else self._records.results(record.id)[-1:]:
                record.rung, record.score = int(last["rung"]), float(last["score"])
                self._steps[record.id] = (int(last["learner_steps"]), int(last["env_steps"]))
            self._records.refresh(record)
            self._note(record, record.status)
        self._log()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial failed and goes on from its checkpoint."""
        _log.warning("%s failed and is continued from its last rung: %s", trial, _error_of(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial has ended, at the last rung or before it."""
        for record in self._records_of(trial):
            self._records.refresh(record)
            self._note(record, "done" if record.rung >= self._plan.sweep.rungs else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial was given up; of those that share its process, some may have come to their end."""
        for record in self._records_of(trial):
            notes = self._records.refresh(record)
            if notes.get("finished"):
                self._note(record, "done")
            else:
                self._note(record, "failed", _error_of(trial))

    def _records_of(self, trial: Any) -> list[TrialRecord]:
        """Return the records of what is one trial to Tune."""
        return [self._records.trials[name] for name in names_in(str(trial))]

    def _note(self, record: TrialRecord, status: TrialStatus, error: str | None = None) -> None:
        """Write down what a trial does, and bring the bar to the present state; what an early end saves counts."""
        record.status, record.error = status, error
        records, rungs = self._records, self._plan.sweep.rungs
        records.save()
        ended = {record.id for record in records.having("done", "stopped", "failed")}
        completed = sum(rungs if record.id in ended else record.rung for record in records.trials.values())
        trials = f"{len(ended)}/{self._plan.num_trials}"
        self._progress.update(completed, trials=trials, running=len(records.having("running")), best=self._best())

    def _best(self) -> float | None:
        scores = [record.score for record in self._records.trials.values() if record.score is not None]
        return max(scores, key=self._plan.sweep.gain, default=None)

    def _log(self) -> None:
        """Log the sweep as a whole; its steps are the updates and environment steps of all trials together."""
        rungs = [record.rung for record in self._records.trials.values()]
        metrics = {
            "sweep/best_score": self._best(),
            "sweep/rungs_done": float(sum(rungs)),
            "sweep/trials_done": float(sum(rung >= self._plan.sweep.rungs for rung in rungs)),
            "sweep/trials_stopped": float(len(self._records.having("stopped"))),
        }
        learner_steps, env_steps = map(sum, zip(*self._steps.values(), strict=True))
        self._tracker.log(metrics, learner_steps=learner_steps, env_steps=env_steps)


def _error_of(trial: Any) -> str:
    """Return the line of a trial's traceback that names the error."""
    lines = [line.strip() for line in str(trial.get_error() or "").strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "its process was lost"
