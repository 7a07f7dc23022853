"""A training run from its config to its pictures: both phases, each with its evaluation, and the resume.

A run folder holds `run.yaml` (the resolved config), `metrics.jsonl`, `checkpoints/`, `replay/` (the online rows),
`evaluation.json`, the paths of its episodes, and the pictures. Ctrl-C, SIGTERM and SIGHUP end the run within seconds,
with a checkpoint, also in the middle of an iteration or an evaluation.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import shutil
from pathlib import Path
from typing import Any

from dipole_ray import plots
from dipole_ray.data.segment import verified_once
from dipole_ray.envs.make import env_dims
from dipole_ray.errors import CheckpointError, EnvironmentUnavailable
from dipole_ray.evaluation import report, trajectories
from dipole_ray.evaluation.cells import cell_key, cells_with_chosen, chosen_cell
from dipole_ray.evaluation.play import CellResult
from dipole_ray.evaluation.table import cell_metrics, row_metrics
from dipole_ray.evaluation.trajectories import Maze, Trajectory
from dipole_ray.evaluation.video import record_run
from dipole_ray.files.checkpoint import Checkpoint, newest_valid, read_checkpoint
from dipole_ray.files.place import absolute
from dipole_ray.files.resume import config_differences, guard_resume, version_differences, warn_of
from dipole_ray.files.storage import checkpoint_bytes, require_lasting, require_room
from dipole_ray.parallel import ray_session
from dipole_ray.progress import Progress
from dipole_ray.rllib.privates import stop_ray
from dipole_ray.runs.beside import EvaluationBeside
from dipole_ray.runs.config import FIXED, RunConfig, load, saved_config
from dipole_ray.runs.prepare import prepare_dataset, require_fit
from dipole_ray.runs.session import CHECKPOINTS, RUN_FILE, Session, new_folder, one_writer, typed, write_config
from dipole_ray.stopping import Stopped, StopRequests, noting_stops

_log = logging.getLogger(__name__)


@verified_once()
def start_run(config: RunConfig) -> Run:
    """Train a new run; DipoleError where config, data, environment or run folder do not allow it."""
    config = config.located()
    require_lasting(Path(config.folder), "folder")
    env_dims(config.env)  # what can be refused is refused before a folder is made and Ray started
    dataset = None if config.data.collect_transitions else prepare_dataset(config.data, config.env)
    require_fit(dataset, config.env)
    folder = new_folder(config)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        with one_writer(folder), ray_session(stop_ray):
            write_config(folder, config)
            dataset = dataset or prepare_dataset(config.data, config.env)
            run = Run(folder, config, dataset, checkpoint=None)
            undo.pop_all()  # from here on there is something to keep
            return run.train()


@verified_once()
def resume_run(folder: Path, overrides: list[str]) -> Run:
    """Continue a run from its newest valid checkpoint, or from its beginning where it has not saved one yet.

    Of the `key=value` overrides those that a checkpoint cannot be continued with are refused by ConfigError, and others
    are named in one warning. CheckpointError if there is nothing to continue.
    """
    folder = absolute(folder)
    if not (folder / RUN_FILE).is_file():
        raise CheckpointError(f"{folder}: no {RUN_FILE} there, so this is no run; name the folder that 'train' printed")
    with one_writer(folder), contextlib.ExitStack() as ray:
        checkpoint = _newest_checkpoint(folder)
        config = load(folder / RUN_FILE, overrides)
        saved = load(folder / RUN_FILE).to_mapping() if checkpoint is None else saved_config(checkpoint)
        differences = guard_resume(saved, config.to_mapping(), FIXED)
        config = config.located()
        ray.enter_context(ray_session(stop_ray))
        run = Run(folder, config, prepare_dataset(config.data, config.env), checkpoint)
        if checkpoint is not None:
            # Threads left automatic count too, for the last bits of a sum depend on them.
            key, now = "learner_num_threads", run.algorithm.config.to_plain()
            differences += config_differences({key: checkpoint.metadata["algorithm"][key]}, {key: now[key]})
            differences += version_differences(checkpoint.versions)
        warn_of(differences)  # only now: until here the checkpoint could still be refused
        return run.train()


@verified_once()
def train_in(folder: Path, config: RunConfig) -> Run:
    """Train the run of a folder to its end, unattended: without progress bars and pictures.

    The run starts from its newest valid checkpoint, or from its beginning where there is none; the folder is made if
    missing, and the caller sees to it that nobody else writes there. After any error the same call goes on.
    """
    if not (folder / RUN_FILE).is_file():
        write_config(folder, config)
    checkpoint = _newest_checkpoint(folder) if (folder / CHECKPOINTS).is_dir() else None
    if checkpoint is not None:
        warn_of(guard_resume(saved_config(checkpoint), config.to_mapping(), FIXED))
    with ray_session(stop_ray):
        dataset = prepare_dataset(config.data, config.env)
        require_fit(dataset, config.env)
        return Run(folder, config, dataset, checkpoint).train(unattended=True)


def _newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return what a run continues from; None, with a warning, if it ended before it saved anything."""
    newest = newest_valid(folder / CHECKPOINTS)
    if newest is None:
        if any((folder / CHECKPOINTS).glob("[0-9]*")):
            raise CheckpointError(f"{folder}: none of its checkpoints is whole; start the run anew")
        _log.warning("%s: the run ended before its first checkpoint and starts from the beginning", folder)
        return None
    checkpoint = read_checkpoint(newest)
    if "run" not in checkpoint.metadata:
        raise CheckpointError(f"{newest}: not written by 'dipole train', so there is no run to continue from it")
    return checkpoint


class Run(Session):
    """A run while it trains, and what came of it."""

    def __init__(self, folder: Path, config: RunConfig, dataset: Path | None, checkpoint: Checkpoint | None) -> None:
        self.unattended = self.finished = False
        """Whether it came to its end, and was not asked to stop."""
        self.stops = StopRequests()
        """The signals that asked it to stop."""
        self._iteration_began = 0  # updates at the last iteration's end: what was evaluated or not depends on it
        self._beside: EvaluationBeside | None = None  # which workers play while the learner goes on
        self.evaluation: dict[str, list[report.Row]] = {}
        """Rows of the whole grid, of the phases that are over."""
        self.maze: Maze | None = None
        self.paths: list[Trajectory] = []
        self.pictures: list[Path] = []
        """The PNG files drawn."""
        super().__init__(folder, config, dataset, checkpoint)

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """Take back the evaluations done before the checkpoint, and refuse a disk without room for the next ones."""
        began = self.algorithm.learner_steps
        self._iteration_began = began if checkpoint is None else checkpoint.metadata.get("iteration_began", began)
        phases = [] if checkpoint is None else checkpoint.metadata["evaluated"]
        if phases:
            stored = report.read_evaluation(self.folder / report.FILE_NAME)
            self.evaluation = {phase: stored[phase] for phase in phases if phase in stored}
            if (self.folder / trajectories.FILE_NAME).is_file():
                self.maze, paths = trajectories.read_trajectories(self.folder / trajectories.FILE_NAME)
                self.paths = [path for path in paths if path.phase in phases]
        keep = self.config.checkpoint.keep
        present = min(keep, len(list((self.folder / CHECKPOINTS).glob("[0-9]*"))))
        size = checkpoint_bytes(*self.algorithm.checkpoint_contents())
        require_room(self.folder, size, keep + 1 - present)  # those that stay, and one being written

    def metadata(self) -> dict[str, Any]:
        """Return the phases whose evaluation is done, and where the iteration at hand began."""
        began = self._iteration_began if self._beside is None else self._beside.began  # it is due again
        return {"evaluated": list(self.evaluation), "iteration_began": began}

    @property
    def resume_command(self) -> str:
        """The command that continues the run, as people would type it."""
        return shlex.join(["dipole", "train", "--resume", str(typed(self.folder))])

    @property
    def chosen(self) -> tuple[float, int] | None:
        """Omega and candidates named before the run; None for a method without omega."""
        cell = chosen_cell(self.config.agent)
        return None if cell.omega is None else (cell.omega, cell.candidates)

    def train(self, *, unattended: bool = False) -> Run:
        """Run what is left of both phases and hand over what came of them; unattended: no progress bar, no pictures."""
        self.unattended, training = unattended, self.config.training
        totals = {"offline": training.offline_learner_steps, "online": training.online_env_steps}
        try:
            with self.tracker, noting_stops() as self.stops:
                self.end_early_on(self.stops)
                for phase, total in totals.items():
                    if self._count(phase) < total or (total and phase not in self.evaluation):
                        self._train_phase(phase, total)
                        if self.saved_at != self.steps:
                            self.save()
                        with self.stops.ending_at_once():
                            self._evaluate(phase)
                        self.save()  # again, so that a resume does not evaluate anew
                with self.stops.ending_at_once():
                    if not self.unattended:
                        self.persist(self._draw)
                    self._record_videos()
                    self.hand_over()
            self.finished = True
        except KeyboardInterrupt:
            pass  # there is a checkpoint to continue from
        except Exception as error:
            if self.newest is not None:
                updates, env_steps = self.saved_at
                kept = f"kept up to update {updates} and environment step {env_steps}"
                error.add_note(f"{kept}; once it is mended, continue with:\n  {self.resume_command}")
            raise
        finally:
            self.algorithm.stop()
        return self

    def _train_phase(self, phase: str, total: int) -> None:
        """Iterate until the phase's count is reached or the run is asked to stop."""
        unit = "updates" if phase == "offline" else "env steps"
        with self._progress(phase, total, unit, completed=min(self._count(phase), total)) as progress:
            while (self._count(phase) < total or self.algorithm.is_within_iteration) and not self.stops:
                self.algorithm.train()
                if self.algorithm.is_cut_short:  # what is left of the iteration comes after the resume
                    progress.update(self._count(phase))
                    return
                metrics = dict(self.algorithm.group_metrics)
                saves = self.algorithm.learner_steps - self.saved_at[0] >= self.config.checkpoint.every_learner_steps
                with contextlib.suppress(Stopped), self.stops.ending_at_once():  # the evaluation then comes later
                    if self._count(phase) < total:  # the whole grid follows at the end of the phase
                        metrics.update(self._evaluate_if_due(self._iteration_began))
                    self._iteration_began = self.algorithm.learner_steps
                    self._take_evaluation(wait=saves or self._count(phase) >= total)
                self.log(metrics)
                score = self.algorithm.score
                progress.update(
                    min(self._count(phase), total),
                    loss=metrics.get("actor/loss_positive", metrics.get("actor/loss_bc", metrics.get("actor/loss"))),
                    success=metrics.get("rollout/success"),
                    evaluation=None if score is None else f"{score:.2f}",
                    learner_waits=_percent(metrics.get("time/learner_wait_fraction")),
                    workers_wait=_percent(metrics.get("time/rollout_wait_fraction")),
                )
                if saves and self._beside is None:
                    self.save()

    def _progress(self, description: str, total: int, unit: str, completed: int = 0) -> Progress:
        """Return a bar, which nobody sees where the run is unattended."""
        stream = io.StringIO() if self.unattended else None
        return Progress(description, total, unit, completed=completed, stream=stream)

    def _count(self, phase: str) -> int:
        return self.algorithm.learner_steps if phase == "offline" else self.algorithm.env_steps

    def _evaluate_if_due(self, before: int) -> dict[str, float]:
        """Evaluate the chosen cell, or the grid, with a few episodes where the updates since `before` make it due.

        Where workers can play it while the learner goes on, they begin, and `_take_evaluation` logs it later.
        """
        config, agent = self.config.evaluation, self.config.agent
        every = config.every_learner_steps
        if not every or self.algorithm.learner_steps // every == before // every:
            return {}
        cells, seed = [chosen_cell(agent)], config.seed
        if config.interval_grid:  # on other episodes each time, over which benchmarks average
            cells, seed = cells_with_chosen(config, agent), seed + self.algorithm.learner_steps // every
        if not self.algorithm.experience.plays_beside:
            return self._measured(self.play(cells, config.interval_episodes, seed=seed))
        self._take_evaluation(wait=True)  # one at a time
        self._beside = EvaluationBeside(self.algorithm, cells, config.interval_episodes, seed, before)
        return {}

    def _take_evaluation(self, *, wait: bool) -> None:
        """Log the evaluation beside training, at the steps that its weights had, if it is over or to be waited for."""
        if self._beside is None:
            return
        results = self._beside.results(wait=wait)
        if results is not None:
            self.evaluation_s = self._beside.seconds
            self.log(self._measured(results), self._beside.steps)
            self._beside = None

    def _evaluate(self, phase: str) -> None:
        """Evaluate the whole grid at the end of a phase, and write rows and paths."""
        cells = cells_with_chosen(self.config.evaluation, self.config.agent)
        with self._progress(f"evaluation after the {phase} phase", len(cells), "cells") as progress:
            results = self.play(
                cells, self.config.evaluation.episodes, on_result=lambda one: progress.advance(1, last=str(one.cell))
            )
        self.log(self._measured(results))
        self.evaluation[phase] = self.rows(results)
        self.paths = [path for path in self.paths if path.phase != phase]  # as the run was when it was to be shorter
        for result in results:
            self.maze = result.maze or self.maze
            self.paths += result.trajectories(phase)
        self.persist(self._write_results)

    def _measured(self, results: list[CellResult]) -> dict[str, float]:
        """Return the metrics of played cells; those of the chosen one also under plain names, and as the score."""
        metrics = {"time/evaluation_s": self.evaluation_s}
        for result, row in zip(results, self.rows(results), strict=True):
            metrics.update(cell_metrics(result.cell, row))
            if result.cell == chosen_cell(self.config.agent):
                self.algorithm.note_score(row)
                metrics.update(row_metrics("eval", row))
        return metrics

    def _write_results(self) -> None:
        """Write the rows and paths of all evaluations."""
        report.write_evaluation(self.folder / report.FILE_NAME, self.evaluation)
        if self.maze is not None:
            trajectories.write_trajectories(self.folder / trajectories.FILE_NAME, self.maze, self.paths)

    def _draw(self) -> None:
        """Draw what the run's files hold."""
        self.pictures = plots.draw_run(self.folder, chosen=self.chosen, title=self.config.env.id)

    def _record_videos(self) -> None:
        """Record the chosen cell where videos are asked for; what cannot be rendered or written costs no run."""
        config, cell = self.config.evaluation, chosen_cell(self.config.agent)
        if not config.videos:
            return
        path = self.folder / "videos" / f"{cell_key(cell)}.mp4"
        try:
            record_run(self.folder, cell, path, episodes=config.videos, seed=config.seed)
        except (EnvironmentUnavailable, OSError) as error:
            _log.warning("no video: %s", error)
            return
        self.tracker.artifact(path, "videos")

    def hand_over(self) -> None:
        """Give MLflow the pictures, the rows and the final checkpoint."""
        for picture in self.pictures:
            self.tracker.artifact(picture, "pictures")
        super().hand_over()
        newest = newest_valid(self.folder / CHECKPOINTS)
        if newest is not None:
            self.tracker.artifact(newest, "checkpoint")


def _percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{fraction:.0%}"
