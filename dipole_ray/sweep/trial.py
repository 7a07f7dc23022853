"""One trial: a run in a folder of its own, trained from rung to rung, each scored over the grid and checkpointed.

The folder is a run's folder (`dipole evaluate` and `dipole train --resume` take it). Beside a run's files it has
`trial.json`, what the trial measured so far; the checkpoint has the same inside, so that both tell one story.
"""

import contextlib
import math
import shutil
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

from dipole_ray.data.segment import verified_once
from dipole_ray.evaluation import report
from dipole_ray.evaluation.cells import Cell, cells_of
from dipole_ray.evaluation.play import CellResult
from dipole_ray.evaluation.report import Row
from dipole_ray.evaluation.table import cell_metrics, row_metrics
from dipole_ray.files.checkpoint import Checkpoint, copy_checkpoint, newest_valid, read_checkpoint
from dipole_ray.files.durable import write_json
from dipole_ray.files.lock import FolderLock
from dipole_ray.rllib.replay_actor import RING_FILE
from dipole_ray.runs.prepare import prepare_dataset
from dipole_ray.runs.session import CHECKPOINTS, LOCK_WAIT_S, Session, write_config
from dipole_ray.runs.together import Iterations
from dipole_ray.stopping import Stopped
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import STOP_FILE, TRIAL_FILE, settled_score
from dipole_ray.sweep.space import Values
from dipole_ray.sweep.tracking import trial_tracker
from dipole_ray.tracking.tracker import RunStatus, Tracker

CLOSE_S = 5.0  # longest wait for MLflow at the end of a trial; the sweep delivers what is left
GIVEN = ("omega", "confidence")  # what a row holds beside its measures


class TrialRun(Session):
    """A trial while it trains."""

    @verified_once()
    def __init__(
        self, trial: str, values: Values, plan: Plan, trials: Path, *, run_key: str | None = None, **learner: Any
    ) -> None:
        """Begin the trial, or continue it from the newest checkpoint in its folder, `trials/trial`.

        `values` hold whatever the checkpoint's were. `run_key` finds the sweep's MLflow run.
        """
        self.trial, self.values = trial, dict(values)
        self.stacked = 1
        """How many trials share the process, this one included."""
        self.plan, self._run_key = plan, run_key
        self.rung = 0
        self.results: list[dict[str, Any]] = []  # of each rung
        self.copied: list[list[Any]] = []  # whose state was taken over: [trial, learner steps], oldest first
        self._is_closed = False
        folder, config = trials / trial, plan.trial_config(values, trial, trials)
        with contextlib.ExitStack() as undo:
            self._lock = FolderLock(folder, LOCK_WAIT_S)
            undo.callback(self._lock.release)
            write_config(folder, config)  # with the values of now, which PBT changes
            newest = newest_valid(folder / CHECKPOINTS)
            checkpoint = None if newest is None else read_checkpoint(newest)
            dataset = prepare_dataset(config.data, config.env)
            super().__init__(folder, config, dataset, checkpoint, **learner)
            self.end_early_on(StopFile(trials.parent / STOP_FILE))
            undo.pop_all()

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """Take back rungs and results from this trial's own checkpoint."""
        if checkpoint is not None:
            own = checkpoint.metadata["sweep"]
            self.rung, self.results, self.copied = int(own["rung"]), list(own["results"]), list(own["copied"])

    def metadata(self) -> dict[str, Any]:
        """Return rungs and results, and that no phase is over: a run that goes on from here evaluates for itself."""
        own = {"trial": self.trial, "rung": self.rung, "results": self.results, "copied": self.copied}
        return {"evaluated": [], "sweep": own}

    def open_tracker(self, state: dict[str, Any]) -> Tracker:
        """Return the trial's tracker, below the sweep's run."""
        return trial_tracker(self.plan, self.config, self.folder, self._run_key, state)

    @property
    def is_finished(self) -> bool:
        """Whether all rungs are done."""
        return self.rung >= self.plan.sweep.rungs

    def advance(self) -> dict[str, Any]:
        """Train to the next rung, score it, write everything down, and return the result for Tune.

        Where the sweep is asked to stop, the trial saves where it stands, closes, and raises Stopped.
        """
        for _ in self.iterations():
            pass
        return self.result

    def iterations(self) -> Iterations:
        """Do what `advance` does, and give way before each iteration, for other trials to go on in turn."""
        if not self.is_finished:
            target = math.ceil(self.plan.total_steps(self.config) * (self.rung + 1) / self.plan.sweep.rungs)
            try:
                while self._progress() < target or self.algorithm.is_within_iteration:
                    trained = yield
                    (trained or self.algorithm.train)()
                    if self.algorithm.is_cut_short:
                        raise Stopped
                    self.log(dict(self.algorithm.group_metrics))
                self._score()
            except Stopped:
                self.save()
                self.close()
                raise
            self.save()
        if self.is_finished:  # also where the trial was cut off just before its end
            self.hand_over()
            self.close("FINISHED")  # the sweep delivers later what MLflow does not take now

    @property
    def result(self) -> dict[str, Any]:
        """What Tune is told of the last rung."""
        last = {name: self.results[-1][name] for name in ("rung", "learner_steps", "env_steps", "score")}
        return {**last, "trial": self.trial, "done": self.is_finished}

    def export(self, directory: Path) -> None:
        """Write the state at the last rung into a folder that another trial can take over, wherever it runs."""
        assert self.newest is not None, "a trial is only copied after its first rung"
        copy_checkpoint(self.newest, directory)
        ring = self.algorithm.replay_directory / RING_FILE
        if self.plan.sweep.scheduler == "pbt" and ring.exists():  # the live ring goes on without us
            shutil.copyfile(ring, directory / RING_FILE)

    def take_over(self, directory: Path) -> None:
        """Go on exactly from another trial's `export`, with this trial's own settings; told twice, it does nothing."""
        checkpoint = read_checkpoint(directory)
        origin = checkpoint.metadata["sweep"]
        mark = [origin["trial"], checkpoint.learner_steps]
        if origin["trial"] == self.trial or mark in self.copied[-1:]:
            return  # its own folder has the same state or a later one
        checkpoint.metadata["replay_directory"] = str(directory)
        self.algorithm.restore_contents(checkpoint)
        self.rung = int(origin["rung"])
        self.copied.append(mark)
        self.log({"sweep/copied_learner_steps": float(checkpoint.learner_steps)})
        self.save()

    def close(self, status: RunStatus = "KILLED") -> None:
        """End the algorithm's processes and the metrics, and let others write here; twice does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.ExitStack() as steps:  # from the last to the first
            steps.callback(self._lock.release)
            if self.newest is not None:
                steps.callback(self._note)  # MLflow's id may have come only now
            steps.callback(self.tracker.close, status, CLOSE_S)
            steps.callback(self.algorithm.stop)

    def _score(self) -> None:
        """Play the grid on the selecting episodes; at the last rung, the chosen cell on others."""
        sweep, grid = self.plan.sweep, self.plan.sweep.evaluation
        cells = cells_of(self.config.evaluation, self.config.agent)
        how: Any = {"on_wait": self._go_on}
        rows = self._scored(self.play(cells, grid.select_episodes, seed=grid.select_seed, **how))
        best, reported = sweep.best(rows), None
        if self.rung + 1 >= sweep.rungs:
            reported = self._scored(self.play([_cell_of(best)], grid.report_episodes, seed=grid.report_seed, **how))[0]
        self.rung += 1
        result: dict[str, Any] = {"rung": self.rung, "learner_steps": self.steps[0], "env_steps": self.steps[1]}
        result |= {"values": dict(self.values), "score": sweep.score(best), "stacked": self.stacked}
        self.results.append({**result, "best": best, "rows": rows, "report": reported})
        self.algorithm.note_score(best)
        self.log(self._metrics(rows, best, reported))

    def _scored(self, results: Sequence[CellResult]) -> list[Row]:
        """Return rows that a `score` reads alike in every trial, at every rung: all with success, or none."""
        rows = self.rows(results)
        if self.plan.sweep.metric != "score":
            return rows
        kind = settled_score(self.folder.parent.parent, "success" if self.algorithm.settle_score() else "return")
        self.algorithm.is_score_success = kind == "success"
        if self.algorithm.is_score_success:
            self.algorithm.has_success = True  # as another trial was told: who tells none has failed
            return self.rows(results)
        self.algorithm.settle_score()  # which says so where this trial is told success
        return [{**row, "success": None, "success_low": None, "success_high": None} for row in rows]

    def _go_on(self) -> None:
        """Raise Stopped where the sweep is asked to stop: the rung is scored when it goes on."""
        if self.interrupted:
            raise Stopped

    def _metrics(self, rows: list[Row], best: Row, reported: Row | None) -> dict[str, float]:
        """Return the metrics of a rung: every cell, the chosen one, and the settings, which PBT changes."""
        # MLflow draws a chart for each name, so a cell has only what cells are compared by; `evaluation.json` has all.
        metrics: dict[str, float] = {"sweep/rung": float(self.rung), "sweep/score": self.results[-1]["score"]}
        measures = ["return", "success", *(["length"] if self.plan.sweep.metric == "length" else [])]
        for row in rows:
            metrics |= cell_metrics(_cell_of(row), row, measures)
        metrics |= row_metrics("eval", best, without=GIVEN)
        metrics["sweep/best_candidates"] = float(best["candidates"])
        if best["omega"] is not None:
            metrics["sweep/best_omega"] = best["omega"]
        if reported is not None:
            metrics |= row_metrics("report", reported, without=GIVEN)
        numbers = {key: float(value) for key, value in self.values.items() if isinstance(value, int | float)}
        return metrics | {f"settings/{key}": value for key, value in numbers.items()}

    def _progress(self) -> int:
        """Return the updates before the online phase and the environment steps done so far."""
        training = self.config.training
        offline = min(self.algorithm.learner_steps, training.learner_steps_before_online)
        return offline + min(self.algorithm.env_steps, training.online_env_steps)

    def write(self) -> None:
        """Write the checkpoint, the rows of the last rung and `trial.json`."""
        super().write()
        if self.results:
            phase = "online" if self.algorithm.env_steps else "offline"
            report.write_evaluation(self.folder / report.FILE_NAME, {phase: self.results[-1]["rows"]})
        self._note()

    def _note(self) -> None:
        """Write `trial.json`."""
        notes = {"trial": self.trial, "values": self.values, "rung": self.rung, "finished": self.is_finished}
        notes |= {"checkpoint": str(self.newest), "run_id": self.tracker.run_id}
        write_json(self.folder / TRIAL_FILE, {**notes, "copied": self.copied, "results": self.results})


class StopFile(Sized):
    """Grows when a file is made, so that the sweep's process tells trials on all nodes to stop."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __len__(self) -> int:
        return int(self._path.exists())


def _cell_of(row: Row) -> Cell:
    """Return the cell that a row is about."""
    return Cell("bc" if row["omega"] is None else "guided", row["omega"], row["candidates"])
