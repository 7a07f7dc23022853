"""A training run once it is built: its phases, each with its evaluation, to its pictures.

A run folder holds `run.yaml` (the resolved config), `metrics.jsonl`, `checkpoints/`, `replay/` (the online rows),
`evaluation.json`, the paths of its episodes, and the pictures. Ctrl-C, SIGTERM and SIGHUP end the run within seconds,
with a checkpoint, also in the middle of an iteration or an evaluation.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dipole_ray import plots
from dipole_ray.envs.scenes import DRIVE
from dipole_ray.errors import EnvironmentUnavailable
from dipole_ray.evaluation import report, trajectories
from dipole_ray.evaluation.cells import cell_key, cells_with_chosen, chosen_cell
from dipole_ray.evaluation.play import CellResult
from dipole_ray.evaluation.table import cell_metrics, row_metrics
from dipole_ray.evaluation.trajectories import Maze, Trajectory
from dipole_ray.evaluation.video import record_run
from dipole_ray.files.checkpoint import Checkpoint, beside, newest_valid
from dipole_ray.files.storage import checkpoint_bytes, require_room
from dipole_ray.progress import Progress
from dipole_ray.runs.beside import EvaluationBeside
from dipole_ray.runs.config import RunConfig
from dipole_ray.runs.early_stop import BEST_FILE, EarlyStop
from dipole_ray.runs.session import CHECKPOINTS, Session, typed
from dipole_ray.stopping import Stopped, StopRequests, noting_stops

_log = logging.getLogger(__name__)


class Run(Session):
    """A run while it trains, and what came of it."""

    def __init__(self, folder: Path, config: RunConfig, dataset: Path | None, checkpoint: Checkpoint | None) -> None:
        self.finished = False
        """Whether it came to its end, and was not asked to stop."""
        self._shows = self._draws = True  # a progress bar, and pictures at the end
        self.stops = StopRequests()
        """The signals that asked it to stop."""
        self._iteration_began = 0  # updates at the last iteration's end: what was evaluated or not depends on it
        self._beside: EvaluationBeside | None = None  # which workers play while the learner goes on
        self._played: dict[str, np.ndarray] | None = None  # the networks that it plays, where they may be the best
        self._early_stop = EarlyStop(config.evaluation.patience)
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
        if checkpoint is not None and "early_stop" in checkpoint.metadata:  # not in those of before
            self._early_stop.load_state(checkpoint.tensors.get(BEST_FILE, {}), checkpoint.metadata["early_stop"])
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
        """Return the phases whose evaluation is done, where the iteration at hand began, and how evaluations went."""
        began = self._iteration_began if self._beside is None else self._beside.began  # it is due again
        phases = {"evaluated": list(self.evaluation), "iteration_began": began}
        return phases | {"early_stop": self._early_stop.state()[1]} if self._early_stop.is_watching else phases

    def files(self) -> dict[str, dict[str, Tensor] | str]:
        """Return the networks of the best evaluation, where they are kept."""
        best = self._early_stop.state()[0]
        return {BEST_FILE: best} if best else {}

    @property
    def chosen(self) -> tuple[float, int] | None:
        """Omega and candidates named before the run; None for a method without omega."""
        cell = chosen_cell(self.config.agent)
        return None if cell.omega is None else (cell.omega, cell.candidates)

    def train(self, *, unattended: bool = False) -> Run:
        """Run what is left of the phases and hand over what came of them; unattended: no progress bar, no pictures."""
        for _ in self.iterations(shows=not unattended, draws=not unattended):
            pass
        return self

    def iterations(
        self, stops: StopRequests | None = None, *, shows: bool = True, draws: bool = True
    ) -> Generator[None, Callable[[], object] | None, None]:
        """Train as `train` does, and give way before each iteration, for other runs to go on in turn.

        Whoever sends a function has had the iteration done: the function ends, or raises, as `algorithm.train` did.
        Requests to stop are noted here, unless `stops` notes them for several runs.
        """
        self._shows, self._draws, training = shows, draws, self.config.training
        totals = {"clone": training.clone_learner_steps, "offline": training.offline_learner_steps}
        totals["online"] = training.online_env_steps
        noted = noting_stops() if stops is None else contextlib.nullcontext(stops)
        try:
            with self.tracker, noted as self.stops:
                self.end_early_on(self.stops)
                for phase, total in totals.items():
                    if self._has_more(phase, total) or (total and phase not in self.evaluation):
                        yield from self._train_phase(phase, total)
                        if phase == "online" and not self.stops and (best := self._early_stop.end()):
                            self.algorithm.go_back_to(best)
                        if self.saved_at != self.steps:
                            self.save()
                        with self.stops.ending_at_once():
                            self._evaluate(phase)
                        self.save()  # again, so that a resume does not evaluate anew
                with self.stops.ending_at_once():
                    if self._draws:
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
                error.add_note(f"{kept}; once it is mended, continue with:\n  {resume_command([self])}")
            raise
        finally:
            self.algorithm.stop()

    def _train_phase(self, phase: str, total: int) -> Generator[None, Callable[[], object] | None, None]:
        """Iterate until the phase's count is reached or the run is asked to stop."""
        steps = "plans" if self.config.env.id == DRIVE else "env steps"
        unit = steps if phase == "online" else "updates"
        with self._progress(phase, total, unit, completed=min(self._count(phase), total)) as progress:
            while (self._has_more(phase, total) or self.algorithm.is_within_iteration) and not self.stops:
                trained = yield
                (trained or self.algorithm.train)()
                if self.algorithm.is_cut_short:  # what is left of the iteration comes after the resume
                    progress.update(self._count(phase))
                    return
                metrics = dict(self.algorithm.group_metrics)
                saves = self.algorithm.learner_steps - self.saved_at[0] >= self.config.checkpoint.every_learner_steps
                with contextlib.suppress(Stopped), self.stops.ending_at_once():  # the evaluation then comes later
                    if phase != "clone" and self._count(phase) < total:  # the grid follows at its end
                        metrics.update(self._evaluate_if_due(self._iteration_began))
                    self._iteration_began = self.algorithm.learner_steps
                    self._take_evaluation(wait=saves or not self._has_more(phase, total))
                self.log(metrics)
                score = self.algorithm.score
                progress.update(
                    min(self._count(phase), total),
                    loss=metrics.get("actor/loss_positive", metrics.get("actor/loss_bc", metrics.get("actor/loss"))),
                    success=metrics.get("rollout/success"),
                    scores=_scores(metrics),
                    evaluation=None if score is None else f"{score:.2f}",
                    learner_waits=_percent(metrics.get("time/learner_wait_fraction")),
                    workers_wait=_percent(metrics.get("time/rollout_wait_fraction")),
                )
                if saves and self._beside is None:
                    self.save()

    def _progress(self, description: str, total: int, unit: str, completed: int = 0) -> Progress:
        """Return a bar, which nobody sees where the run shows none."""
        stream = None if self._shows else io.StringIO()
        return Progress(description, total, unit, completed=completed, stream=stream)

    def _has_more(self, phase: str, total: int) -> bool:
        """Return whether updates or steps of a phase are left; an online phase may end early."""
        return self._count(phase) < total and not (phase == "online" and self._early_stop.is_due)

    def _count(self, phase: str) -> int:
        """Return the updates, or environment steps, of a phase so far."""
        if phase == "online":
            return self.algorithm.env_steps
        begin = self.config.training.clone_learner_steps if phase == "offline" else 0
        return self.algorithm.learner_steps - begin

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
        is_watched = self._early_stop.is_watching and self.algorithm.phase == "online"
        if not self.algorithm.experience.plays_beside:
            metrics = self._measured(self.play(cells, config.interval_episodes, seed=seed))
            self._note_score(self.algorithm.networks() if is_watched else None)
            return metrics
        self._take_evaluation(wait=True)  # one at a time
        self._played = self.algorithm.networks() if is_watched else None
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
            self._note_score(self._played)
            self._beside = self._played = None

    def _note_score(self, networks: dict[str, np.ndarray] | None) -> None:
        """Tell the score that these networks, where they are watched, have just got."""
        if networks is not None and self.algorithm.score is not None:
            self._early_stop.note(self.algorithm.score, networks)

    def _evaluate(self, phase: str) -> None:
        """Evaluate the whole grid at the end of a phase, and write rows and paths."""
        cells = cells_with_chosen(self.config.evaluation, self.config.agent)
        if phase == "clone":  # the adapters add nothing yet: guided by any omega it is the backbone
            chosen = chosen_cell(self.config.agent)
            cells = [cell for cell in cells if cell.policy == "bc" or cell == chosen]
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
            for path in (newest, *beside(newest)):
                self.tracker.artifact(path, "checkpoint")


def resume_command(runs: Sequence[Run]) -> str:
    """Return the command that continues runs together, as people would type it."""
    return shlex.join(["dipole", "train", "--resume", *(str(typed(run.folder)) for run in runs)])


def _scores(metrics: Mapping[str, float]) -> str | None:
    """Return the percents of drawn plans' sub-scores, such as `nc 92 dac 78`, where plans are judged."""
    found = {name: metrics.get(f"rollout/{name}") for name in ("nc", "dac", "ep", "ttc", "c", "pdms")}
    return " ".join(f"{name} {100 * mean:.0f}" for name, mean in found.items() if mean is not None) or None


def _percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{fraction:.0%}"
