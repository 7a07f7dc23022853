"""One trial: a run in a folder of its own, trained from rung to rung, each scored over the grid and checkpointed.

The folder is a run's folder (`dipole evaluate` and `dipole train --resume` take it). Beside a run's files it has
`trial.json`, what the trial measured so far; the checkpoint has the same inside, so that both tell one story.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from pathlib import Path
from typing import Any

import yaml

from dipole_ray import report
from dipole_ray.checkpoint import Checkpoint, newest_valid, prune, read_checkpoint, write_checkpoint
from dipole_ray.config import RunConfig
from dipole_ray.evaluation import Cell, cells_of, method_name, summarize
from dipole_ray.files.durable import write_json, write_text
from dipole_ray.files.lock import FolderLock
from dipole_ray.prepare import prepare_dataset
from dipole_ray.report import Row
from dipole_ray.rllib.algorithm import RING_FILE
from dipole_ray.rllib.build import build_algorithm
from dipole_ray.rllib.evaluate import cell_metrics, play
from dipole_ray.run import RUN_FILE
from dipole_ray.storage import persist
from dipole_ray.sweep.ledger import TRIAL_FILE
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.scoring import best_row, cell_of, metric_of
from dipole_ray.sweep.space import Values
from dipole_ray.sweep.tracking import trial_tracker
from dipole_ray.tracking import Status

LOCK_WAIT_S = 120.0
"""Longest wait for the process that trained this trial before; Ray ends it soon after its driver was killed."""
CLOSE_S = 5.0
"""Longest wait for MLflow at the end of a trial; the sweep delivers what is left."""


class TrialRun:
    """A trial while it trains."""

    def __init__(
        self,
        trial: str,
        values: Values,
        plan: Plan,
        trials: Path,
        *,
        run_key: str | None = None,
        learner: dict[str, Any] | None = None,
    ) -> None:
        """Begin the trial, or continue it from the newest checkpoint in its folder.

        Args:
            trial: Its name.
            values: Its settings; they hold whatever the checkpoint's were.
            plan: The sweep.
            trials: Folder of all trials.
            run_key: Finds the sweep's MLflow run.
            learner: RLlib's settings of the learner's resources.
        """
        self.trial, self.values, self.plan, self.folder = trial, dict(values), plan, trials / trial
        self.rung = 0
        self.results: list[dict[str, Any]] = []
        self.copied: list[list[Any]] = []
        """Whose state was taken over: [trial, learner steps], oldest first."""
        self.newest: Path | None = None
        self._is_closed = False
        self.config: RunConfig = plan.trial_config(values, trial, trials)
        with contextlib.ExitStack() as undo:
            self._lock = FolderLock(self.folder, LOCK_WAIT_S)
            undo.callback(self._lock.release)
            self._write_config()
            found = newest_valid(self.folder / "checkpoints")
            checkpoint = None if found is None else read_checkpoint(found)
            dataset = prepare_dataset(self.config.data, self.config.env)
            self.algorithm = build_algorithm(self.config, dataset, self.folder, checkpoint, **(learner or {}))
            undo.callback(self.algorithm.stop)
            if checkpoint is not None:
                self._continue(checkpoint)
            state = {"metrics_bytes": 0} if checkpoint is None else checkpoint.metadata["tracker"]
            self.tracker = trial_tracker(plan, self.config, self.folder, run_key, state)
            undo.pop_all()

    @property
    def is_finished(self) -> bool:
        """Whether all rungs are done."""
        return self.rung >= self.plan.sweep.rungs

    def advance(self) -> dict[str, Any]:
        """Train to the next rung, score it, write everything down, and return the result for Tune."""
        if not self.is_finished:
            target = math.ceil(self.plan.total_steps(self.config) * (self.rung + 1) / self.plan.sweep.rungs)
            while self._progress() < target:
                self.algorithm.train()
                self._log(dict(self.algorithm.group_metrics))
            self._score()
            self._save()
        if self.is_finished:  # also where the trial was cut off just before its end
            self._end()
        last = self.results[-1]
        steps = {name: last[name] for name in ("rung", "learner_steps", "env_steps", "score")}
        return {**steps, "trial": self.trial, "done": self.is_finished}

    def export(self, directory: Path) -> None:
        """Write the state at the last rung into a folder that another trial can take over, wherever it runs."""
        assert self.newest is not None, "a trial is only copied after its first rung"
        shutil.copytree(self.newest, directory / self.newest.name)
        ring = self.algorithm.replay_directory / RING_FILE
        if self.plan.sweep.scheduler == "pbt" and ring.exists():  # the live ring goes on without us
            shutil.copyfile(ring, directory / RING_FILE)

    def take_over(self, directory: Path) -> None:
        """Go on exactly from another trial's `export`, with this trial's own settings; once, however often it is told.

        A trial's own state is left as it is: its folder has the same or a later one.
        """
        checkpoint = read_checkpoint(directory)
        origin = checkpoint.metadata["sweep"]
        mark = [origin["trial"], checkpoint.learner_steps]
        if origin["trial"] == self.trial or mark in self.copied[-1:]:
            return
        checkpoint.metadata["replay_directory"] = str(directory)
        self.algorithm.restore_contents(checkpoint)
        self.rung = int(origin["rung"])
        self.copied.append(mark)
        self._log({"sweep/copied_learner_steps": float(checkpoint.learner_steps)})
        self._save()

    def close(self, status: Status = "KILLED") -> None:
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

    # ---- scoring ----

    def _score(self) -> None:
        """Play the grid on the selecting episodes; at the last rung, the chosen cell on others."""
        sweep, grid = self.plan.sweep, self.plan.sweep.evaluation
        self.rung += 1
        cells = cells_of(self.config.evaluation, self.config.agent)
        rows = self._play(cells, grid.select_episodes, grid.select_seed)
        best = best_row(rows, sweep)
        reported = self._play([cell_of(best)], grid.report_episodes, grid.report_seed)[0] if self.is_finished else None
        self.results.append(
            {
                "rung": self.rung,
                "learner_steps": self.algorithm.learner_steps,
                "env_steps": self.algorithm.env_steps,
                "values": dict(self.values),
                "score": metric_of(best, sweep.metric),
                "best": best,
                "rows": rows,
                "report": reported,
            }
        )
        self.algorithm.note_score(best)
        self._log(self._metrics(rows, best, reported))

    def _play(self, cells: list[Cell], episodes: int, seed: int) -> list[Row]:
        """Return the rows of some cells, all from the present weights."""
        method, confidence = method_name(self.config.agent), self.config.evaluation.confidence
        results = play(self.algorithm, None, cells, episodes=episodes, seed=seed)
        return [summarize(result, method, confidence) for result in results]

    def _metrics(self, rows: list[Row], best: Row, reported: Row | None) -> dict[str, float]:
        """Return the metrics of a rung: every cell, the chosen one, and the settings, which PBT changes.

        MLflow draws a chart for each name and a section for each folder of names, so a cell has the measures that cells
        are compared by and nothing else; `evaluation.json` has the rest.
        """
        metrics: dict[str, float] = {"sweep/rung": float(self.rung), "sweep/score": self.results[-1]["score"]}
        own = self.plan.sweep.metric
        measures = ["return", "success", *([own] if own == "length" else [])]
        for row in rows:
            metrics.update(cell_metrics(cell_of(row), row, measures))
        metrics.update({f"eval/{name}": value for name, value in _numbers(best).items()})
        metrics["sweep/best_candidates"] = float(best["candidates"])
        if best["omega"] is not None:
            metrics["sweep/best_omega"] = best["omega"]
        if reported is not None:
            metrics.update({f"report/{name}": value for name, value in _numbers(reported).items()})
        settings = {key: value for key, value in self.values.items() if isinstance(value, int | float)}
        metrics.update({f"settings/{key}": float(value) for key, value in settings.items()})
        return metrics

    def _log(self, metrics: dict[str, float]) -> None:
        self.tracker.log(metrics, env_steps=self.algorithm.env_steps, learner_steps=self.algorithm.learner_steps)

    def _progress(self) -> int:
        """Return the updates of the offline phase and the environment steps done so far."""
        training = self.config.training
        offline = min(self.algorithm.learner_steps, training.offline_learner_steps)
        return offline + min(self.algorithm.env_steps, training.online_env_steps)

    # ---- the folder ----

    def _write_config(self) -> None:
        """Write the run's config with the values of now."""
        write_text(self.folder / RUN_FILE, yaml.safe_dump(self.config.to_mapping(), sort_keys=False))

    def _continue(self, checkpoint: Checkpoint) -> None:
        """Take everything back from this trial's own checkpoint."""
        self.algorithm.restore_contents(checkpoint)
        own = checkpoint.metadata["sweep"]
        self.rung, self.results, self.copied = int(own["rung"]), list(own["results"]), list(own["copied"])
        self.newest = checkpoint.path

    def _save(self) -> None:
        """Write a checkpoint, `trial.json` and the evaluation; a disk that refuses is waited for."""
        persist(self._write, retry_minutes=self.config.checkpoint.retry_minutes, interrupted=())

    def _write(self) -> None:
        tensors, metadata = self.algorithm.checkpoint_contents()
        metadata["run"] = self.config.to_mapping()
        metadata["tracker"] = self.tracker.sync()
        metadata["evaluated"] = []
        own = {"trial": self.trial, "rung": self.rung, "results": self.results, "copied": self.copied}
        metadata["sweep"] = own
        checkpoints = self.folder / "checkpoints"
        self.newest = write_checkpoint(checkpoints, self.algorithm.learner_steps, tensors, metadata)
        self.algorithm.restart_point = self.newest
        prune(self.newest, self.config.checkpoint.keep)
        if self.results:
            phase = "online" if self.algorithm.env_steps else "offline"
            report.write_evaluation(self.folder / report.FILE_NAME, {phase: self.results[-1]["rows"]})
        self._note()

    def _note(self) -> None:
        """Write `trial.json`."""
        notes = {
            "trial": self.trial,
            "values": self.values,
            "rung": self.rung,
            "finished": self.is_finished,
            "checkpoint": str(self.newest),
            "run_id": self.tracker.run_id,
            "copied": self.copied,
            "results": self.results,
        }
        write_json(self.folder / TRIAL_FILE, notes)

    def _end(self) -> None:
        """Hand the files to MLflow and end its run; the sweep delivers later what it does not take now."""
        for name in (RUN_FILE, report.FILE_NAME):
            self.tracker.artifact(self.folder / name)
        self.close("FINISHED")


def _numbers(row: Row) -> dict[str, float]:
    """Return the measures of a row."""
    given = ("omega", "confidence")
    return {name: value for name, value in row.items() if isinstance(value, float) and name not in given}
