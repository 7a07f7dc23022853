"""The sweep's own process while Tune works: it keeps the ledger, the progress bar and the sweep's MLflow series."""

from __future__ import annotations

import logging
from typing import Any

from ray.tune import Callback

from dipole_ray.progress import Progress
from dipole_ray.sweep.ledger import Ledger, Record, note, read_trial, records_of
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.scoring import gain
from dipole_ray.sweep.trainable import values_of
from dipole_ray.tracking import Tracker

_log = logging.getLogger(__name__)


class Watch(Callback):
    """Told by Tune what happens to trials."""

    def __init__(self, plan: Plan, ledger: Ledger, progress: Progress, tracker: Tracker) -> None:
        self._plan, self._ledger, self._progress, self._tracker = plan, ledger, progress, tracker
        self._steps: dict[str, tuple[int, int]] = {}
        for trial in ledger.trials:
            for result in ledger.results(trial)[-1:]:
                self._steps[trial] = (int(result["learner_steps"]), int(result["env_steps"]))

    def __getstate__(self) -> dict[str, Any]:
        """Keep threads and files out of the state that Tune writes, and that nobody reads."""
        return {}

    def __deepcopy__(self, memo: Any) -> Watch:
        return self

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial runs, with the values it runs with."""
        record = self._record(trial)
        record.status, record.error, record.values = "running", None, values_of(trial.config)
        self._ledger.save()
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a rung."""
        record = self._record(trial)
        record.rung, record.score = int(result["rung"]), float(result["score"])
        self._steps[record.id] = (int(result["learner_steps"]), int(result["env_steps"]))
        self._take_notes(record)
        self._ledger.save()
        self._log()
        self._show()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial failed and goes on from its checkpoint."""
        _log.warning("%s failed and is continued from its last rung: %s", trial, _error_of(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial has ended, at the last rung or before it."""
        record = self._record(trial)
        self._take_notes(record)
        record.status = "done" if record.rung >= self._plan.sweep.rungs else "stopped"
        self._ledger.save()
        self._show()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial was given up."""
        record = self._record(trial)
        self._take_notes(record)
        record.status, record.error = "failed", _error_of(trial)
        self._ledger.save()
        self._show()

    def _record(self, trial: Any) -> Record:
        return self._ledger.trials[str(trial)]

    def _take_notes(self, record: Record) -> None:
        """Take what the trial itself wrote down, which is at least as new as Tune's result."""
        notes = read_trial(self._ledger.trial_folder(record.id))
        if notes is not None:
            note(record, notes)

    def _best(self) -> float | None:
        scores = [record.score for record in self._ledger.trials.values() if record.score is not None]
        return max(scores, key=lambda score: gain(score, self._plan.sweep), default=None)

    def _log(self) -> None:
        """Log the sweep as a whole; its steps are the updates and environment steps of all trials together."""
        best, ledger = self._best(), self._ledger
        metrics = {
            "sweep/best_score": best,
            "sweep/rungs_done": float(sum(record.rung for record in ledger.trials.values())),
            "sweep/trials_done": float(sum(r.rung >= self._plan.sweep.rungs for r in ledger.trials.values())),
            "sweep/trials_stopped": float(sum(1 for _ in records_of(ledger, "stopped"))),
        }
        learner_steps, env_steps = (sum(steps[i] for steps in self._steps.values()) for i in (0, 1))
        self._tracker.log(metrics, learner_steps=learner_steps, env_steps=env_steps)

    def _show(self) -> None:
        """Bring the progress bar to the present state; what an early end saves counts as done."""
        ledger, rungs = self._ledger, self._plan.sweep.rungs
        ended = {record.id for record in records_of(ledger, "done", "stopped", "failed")}
        completed = sum(rungs if record.id in ended else record.rung for record in ledger.trials.values())
        running = sum(1 for _ in records_of(ledger, "running"))
        trials = f"{len(ended)}/{self._plan.num_trials}"
        self._progress.update(completed, trials=trials, running=running, best=self._best())


def _error_of(trial: Any) -> str:
    """Return the line of a trial's traceback that names the error."""
    lines = [line.strip() for line in str(trial.get_error() or "").strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "its process was lost"
