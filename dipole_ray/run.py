"""A training run from its config to its pictures: folder, both phases, evaluation, checkpoints, resume.

A run folder holds `run.yaml` (the resolved config), `metrics.jsonl`, `checkpoints/`, `replay/` (the online rows),
`evaluation.json`, the paths of its episodes, and the pictures. Ctrl-C ends the run after the iteration at hand, with
a checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dipole_ray import plots, report, trajectories
from dipole_ray.checkpoint import Checkpoint, newest_valid, prune, read_checkpoint, write_checkpoint
from dipole_ray.config import RunConfig, load
from dipole_ray.data.dataset import read_manifest
from dipole_ray.envs.make import EnvConfig, env_dims
from dipole_ray.errors import CheckpointError, ConfigError, EnvironmentUnavailable
from dipole_ray.evaluation import Cell, CellResult, cells_of, chosen_cell, method_name, summarize
from dipole_ray.files.durable import write_text
from dipole_ray.interrupt import interruptible
from dipole_ray.parallel import ray_session
from dipole_ray.prepare import prepare_dataset
from dipole_ray.progress import Progress
from dipole_ray.resume import Difference, config_differences, guard_resume, saved_config, version_differences, warn_of
from dipole_ray.rllib.algorithm import DIPOLE
from dipole_ray.rllib.build import build_algorithm
from dipole_ray.rllib.evaluate import cell_key, cell_metrics, play
from dipole_ray.storage import checkpoint_bytes, persist, require_lasting, require_room
from dipole_ray.tracking import Tracker
from dipole_ray.trajectories import Maze, Trajectory
from dipole_ray.video import record_run

_log = logging.getLogger(__name__)

RUN_FILE = "run.yaml"
FIXED = (
    "env",
    "seed",
    "agent.algorithm",
    "agent.hidden_dims",
    "agent.num_critics",
    "agent.weight_scheme",
    "agent.train_bc",
    "agent.observation_normalization",
)
"""Settings a checkpoint cannot be continued without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended."""

    folder: Path
    """The run's folder."""
    finished: bool
    """False after Ctrl-C."""
    evaluation: dict[str, list[report.Row]]
    """Rows of the table by phase."""
    pictures: list[Path]
    """The PNG files drawn."""
    chosen: tuple[float, int] | None
    """Omega and candidates named before the run; None for a method without omega."""
    view_command: str | None
    """What shows the run in MLflow."""


def start_run(config: RunConfig) -> Outcome:
    """Train a new run.

    Raises:
        DipoleError: Any of ours, when config, data, environment or run folder do not allow it.
    """
    folder = Path(config.folder).expanduser() / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    require_lasting(folder.parent, "folder")
    env_dims(config.env)  # what can be refused is refused before a folder is made and Ray started
    dataset = None if config.data.collect_transitions else prepare_dataset(config.data, config.env)
    require_fit(dataset, config.env)
    _make_folder(folder, config)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        with ray_session():
            dataset = dataset or prepare_dataset(config.data, config.env)
            run = _Run(folder, config, dataset, checkpoint=None)
            undo.pop_all()  # from here on there is something to keep
            return run.train()


def resume_run(folder: Path, overrides: list[str]) -> Outcome:
    """Continue a run from its newest valid checkpoint, or from its beginning where it has not saved one yet.

    Args:
        folder: The run's folder.
        overrides: `key=value` changes; what a checkpoint cannot be continued without is refused, others are named in
            one warning.

    Raises:
        CheckpointError: There is nothing to continue.
        ConfigError: A setting changed that must not.
    """
    if not (folder / RUN_FILE).is_file():
        raise CheckpointError(f"{folder}: no {RUN_FILE} there, so this is no run; name the folder that 'train' printed")
    checkpoint = _newest_checkpoint(folder)
    config = load(folder / RUN_FILE, overrides)
    saved = load(folder / RUN_FILE).to_mapping() if checkpoint is None else saved_config(checkpoint)
    differences = guard_resume(saved, config.to_mapping(), FIXED)
    with ray_session():
        dataset = prepare_dataset(config.data, config.env)
        run = _Run(folder, config, dataset, checkpoint)
        if checkpoint is not None:
            differences += _machine_differences(checkpoint, run.algorithm)
        warn_of(differences)  # only now: until here the checkpoint could still be refused
        return run.train()


def train_in(folder: Path, config: RunConfig) -> Outcome:
    """Train the run of a folder to its end, unattended: without progress bars and pictures.

    The run starts from its newest valid checkpoint, or from its beginning where there is none; the folder is made if
    missing, and the caller sees to it that nobody else writes there.

    Raises:
        DipoleError: Any of ours; what was saved stays, and the same call goes on from it.
    """
    if not (folder / RUN_FILE).is_file():
        _make_folder(folder, config, exist_ok=True)
    checkpoint = _newest_checkpoint(folder) if (folder / "checkpoints").is_dir() else None
    if checkpoint is not None:
        warn_of(guard_resume(saved_config(checkpoint), config.to_mapping(), FIXED))
    with ray_session():
        dataset = prepare_dataset(config.data, config.env)
        require_fit(dataset, config.env)
        return _Run(folder, config, dataset, checkpoint, unattended=True).train()


def _machine_differences(checkpoint: Checkpoint, algorithm: DIPOLE) -> list[Difference]:
    """Return what is not as at the checkpoint though no setting says so: versions, and threads left automatic."""
    before, now = checkpoint.metadata["algorithm"], algorithm.config.to_plain()
    threads = "learner_num_threads"  # the last bits of a sum depend on them
    return config_differences({threads: before[threads]}, {threads: now[threads]}) + version_differences(
        checkpoint.versions
    )


def _newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return what a run continues from; None, with a warning, if it ended before it saved anything."""
    newest = newest_valid(folder / "checkpoints")
    if newest is None:
        if any((folder / "checkpoints").glob("[0-9]*")):
            raise CheckpointError(f"{folder}: none of its checkpoints is whole; start the run anew")
        _log.warning("%s: the run ended before its first checkpoint and starts from the beginning", folder)
        return None
    checkpoint = read_checkpoint(newest)
    if "run" not in checkpoint.metadata:
        raise CheckpointError(f"{newest}: not written by 'dipole train', so there is no run to continue from it")
    return checkpoint


def require_fit(dataset: Path | None, env: EnvConfig) -> None:
    """Raise ConfigError unless the dataset's numbers are as many as the environment's."""
    if dataset is None:
        return
    schema, dims = read_manifest(dataset).schema, env_dims(env)
    if (schema.observation_dim, schema.action_dim) != (dims.observation_dim, dims.action_dim):
        raise ConfigError(
            f"{dataset} holds observations of {schema.observation_dim} and actions of {schema.action_dim} numbers, "
            f"environment '{env.id}' has {dims.observation_dim} and {dims.action_dim}: set env.id to the environment "
            "the data was collected in"
        )


def _make_folder(folder: Path, config: RunConfig, *, exist_ok: bool = False) -> None:
    """Make the run's folder with its config inside."""
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
        # Whole or not at all: half a config would be another config.
        write_text(folder / RUN_FILE, yaml.safe_dump(config.to_mapping(), sort_keys=False))
    except OSError as error:
        raise ConfigError(
            f"run folder {folder}: cannot be made ({error.strerror}); choose another place with folder=PATH"
        ) from error


class _Run:
    """The state of a run while it trains."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        dataset: Path | None,
        checkpoint: Checkpoint | None,
        *,
        unattended: bool = False,
    ) -> None:
        self.folder, self.config, self.unattended = folder, config, unattended
        self.evaluation: dict[str, list[report.Row]] = {}
        self.maze: Maze | None = None
        self.paths: list[Trajectory] = []
        self.pictures: list[Path] = []
        self.saved_at = (-1, -1)
        self.evaluation_s = 0.0
        self.interrupted: list[int] = []
        self.algorithm = build_algorithm(config, dataset, folder, checkpoint)
        with contextlib.ExitStack() as undo:
            undo.callback(self.algorithm.stop)
            if checkpoint is not None:
                self.algorithm.restore_contents(checkpoint)
                self.saved_at = self._steps()
                self._read_results(checkpoint.metadata["evaluated"])
            self._require_room()
            self.tracker = Tracker(
                folder,
                config.tracking,
                run_name=folder.name,
                parameters=config.to_mapping(),
                tags={"config_digest": config.digest()},
                resume=True,  # the folder of a new run is new; one without a checkpoint has lines to be cut off
                state={"metrics_bytes": 0} if checkpoint is None else checkpoint.metadata["tracker"],
            )
            undo.pop_all()

    def _require_room(self) -> None:
        """Raise CheckpointError unless the disk can hold the checkpoints the run will keep, and one being written."""
        folder, keep = self.folder / "checkpoints", self.config.checkpoint.keep
        present = min(keep, len(list(folder.glob("[0-9]*"))))
        require_room(self.folder, checkpoint_bytes(*self.algorithm.checkpoint_contents()), keep + 1 - present)

    def train(self) -> Outcome:
        """Run what is left of both phases; see the module's docstring."""
        training = self.config.training
        try:
            with self.tracker, interruptible() as self.interrupted:
                for phase, total in (
                    ("offline", training.offline_learner_steps),
                    ("online", training.online_env_steps),
                ):
                    if self._count(phase) < total or (total and phase not in self.evaluation):
                        self._train_phase(phase, total)
                        self._save()
                        if self.interrupted:
                            raise KeyboardInterrupt
                        self._evaluate(phase)
                        self._save(again=True)
                if not self.unattended:
                    self._persist(self._draw)
                self._record_videos()
                self._hand_over()
        except KeyboardInterrupt:
            return self._outcome(finished=False)
        finally:
            self.algorithm.stop()
        return self._outcome(finished=True)

    # ---- training ----

    def _train_phase(self, phase: str, total: int) -> None:
        """Iterate until the phase's count is reached or Ctrl-C was pressed."""
        unit = "updates" if phase == "offline" else "env steps"
        with self._progress(phase, total, unit, completed=min(self._count(phase), total)) as progress:
            while self._count(phase) < total and not self.interrupted:
                before = self.algorithm.learner_steps
                self.algorithm.train()
                metrics = dict(self.algorithm.group_metrics)
                if self._count(phase) < total:  # the whole grid follows at the end of the phase
                    metrics.update(self._evaluate_if_due(before))
                self._log(metrics)
                progress.update(
                    min(self._count(phase), total),
                    loss=metrics.get("actor/loss_positive", metrics.get("actor/loss_bc", metrics.get("actor/loss"))),
                    success=metrics.get("rollout/success"),
                    evaluation=self._last_evaluation(),
                )
                if self.algorithm.learner_steps - self.saved_at[0] >= self.config.checkpoint.every_learner_steps:
                    self._save()

    def _progress(self, description: str, total: int, unit: str, completed: int = 0) -> Progress:
        """Return a bar, which nobody sees where the run is unattended."""
        stream = io.StringIO() if self.unattended else None
        return Progress(description, total, unit, completed=completed, stream=stream)

    def _steps(self) -> tuple[int, int]:
        """Return updates and environment steps so far."""
        return self.algorithm.learner_steps, self.algorithm.env_steps

    def _count(self, phase: str) -> int:
        return self.algorithm.learner_steps if phase == "offline" else self.algorithm.env_steps

    def _last_evaluation(self) -> str | None:
        """Return the last evaluation of the chosen cell for the progress bar."""
        return None if self.algorithm.score == float("-inf") else f"{self.algorithm.score:.2f}"

    def _evaluate_if_due(self, before: int) -> dict[str, float]:
        """Evaluate the chosen cell, or the whole grid, with a few episodes now and then, for the learning curves.

        Args:
            before: Updates done before the last iteration.
        """
        config = self.config.evaluation
        every = config.every_learner_steps
        if not every or self.algorithm.learner_steps // every == before // every:
            return {}
        if not config.interval_grid:
            return self._measured(self._play([chosen_cell(self.config.agent)], config.interval_episodes))
        seed = config.seed + self.algorithm.learner_steps // every
        return self._measured(self._play(self._cells(), config.interval_episodes, seed=seed))

    def _log(self, metrics: dict[str, float]) -> None:
        self.tracker.log(metrics, env_steps=self.algorithm.env_steps, learner_steps=self.algorithm.learner_steps)

    def _save(self, *, again: bool = False) -> None:
        """Write a checkpoint, unless this very state is saved already."""
        if self.saved_at == self._steps() and not again:
            return
        self._persist(self._write_checkpoint)
        self.saved_at = self._steps()

    def _write_checkpoint(self) -> None:
        """Write a checkpoint of the present state and remove the oldest."""
        tensors, metadata = self.algorithm.checkpoint_contents()
        metadata["run"] = self.config.to_mapping()
        metadata["tracker"] = self.tracker.sync()
        metadata["evaluated"] = list(self.evaluation)
        path = write_checkpoint(self.folder / "checkpoints", self.algorithm.learner_steps, tensors, metadata)
        self.algorithm.restart_point = path
        prune(path, self.config.checkpoint.keep)

    def _persist(self, write: Callable[[], None]) -> None:
        """Call `write`; while the disk refuses, the run stands still and tries again."""
        persist(write, retry_minutes=self.config.checkpoint.retry_minutes, interrupted=self.interrupted)

    # ---- evaluation ----

    def _evaluate(self, phase: str) -> None:
        """Evaluate the whole grid at the end of a phase, and write rows and paths."""
        cells = self._cells()
        self.paths = [path for path in self.paths if path.phase != phase]
        with self._progress(f"evaluation after the {phase} phase", len(cells), "cells") as progress:

            def show(result: CellResult) -> None:
                progress.advance(1, last=str(result.cell))

            results = self._play(cells, self.config.evaluation.episodes, on_result=show)
        rows = [self._row(result) for result in results]
        metrics = self._measured(results)
        for result in results:
            self.maze = result.maze or self.maze
            self.paths += result.trajectories(phase)
        self._log(metrics)
        self.evaluation[phase] = rows
        self._persist(self._write_results)

    def _cells(self) -> list[Cell]:
        """Return the cells of the grid, and the chosen one if it is none of them."""
        cells, chosen = cells_of(self.config.evaluation, self.config.agent), chosen_cell(self.config.agent)
        return cells if chosen in cells else [*cells, chosen]

    def _play(self, cells: list[Cell], episodes: int, **how: Any) -> list[CellResult]:
        """Play the episodes of some cells with the present weights, and note how long that took."""
        start = time.perf_counter()
        results = play(self.algorithm, None, cells, episodes=episodes, **how)
        self.evaluation_s = time.perf_counter() - start
        return results

    def _row(self, result: CellResult) -> report.Row:
        return summarize(result, method_name(self.config.agent), self.config.evaluation.confidence)

    def _measured(self, results: list[CellResult]) -> dict[str, float]:
        """Return the metrics of played cells; those of the chosen one also under plain names, and as the score."""
        metrics = {"time/evaluation_s": self.evaluation_s}
        for result in results:
            row = self._row(result)
            metrics.update(cell_metrics(result.cell, row))
            if result.cell == chosen_cell(self.config.agent):
                self.algorithm.note_score(row)
                numbers = {name: value for name, value in row.items() if isinstance(value, float) and name != "omega"}
                metrics.update({f"eval/{name}": value for name, value in numbers.items()})
        return metrics

    def _write_results(self) -> None:
        """Write the rows and paths of all evaluations."""
        report.write_evaluation(self.folder / report.FILE_NAME, self.evaluation)
        if self.maze is not None:
            trajectories.write_trajectories(self.folder / trajectories.FILE_NAME, self.maze, self.paths)

    def _read_results(self, phases: list[str]) -> None:
        """Take back the evaluations that were done before the checkpoint."""
        if not phases:
            return
        stored = report.read_evaluation(self.folder / report.FILE_NAME)
        self.evaluation = {phase: stored[phase] for phase in phases if phase in stored}
        if (self.folder / trajectories.FILE_NAME).is_file():
            self.maze, paths = trajectories.read_trajectories(self.folder / trajectories.FILE_NAME)
            self.paths = [path for path in paths if path.phase in phases]

    # ---- the end ----

    def _draw(self) -> None:
        """Draw what the run's files hold."""
        self.pictures = plots.draw_run(self.folder, chosen=self._chosen(), title=self.config.env.id)

    def _record_videos(self) -> None:
        """Record the chosen cell where videos are asked for; what cannot be rendered or written costs no run."""
        if not self.config.evaluation.videos:
            return
        path = self.folder / "videos" / f"{cell_key(chosen_cell(self.config.agent))}.mp4"
        how = {"episodes": self.config.evaluation.videos, "seed": self.config.evaluation.seed}
        try:
            record_run(self.folder, chosen_cell(self.config.agent), path, **how)
        except (EnvironmentUnavailable, OSError) as error:
            _log.warning("no video: %s", error)
            return
        self.tracker.artifact(path, "videos")

    def _chosen(self) -> tuple[float, int] | None:
        cell = chosen_cell(self.config.agent)
        return None if cell.omega is None else (cell.omega, cell.candidates)

    def _hand_over(self) -> None:
        """Give MLflow the pictures, the rows and the final checkpoint."""
        for picture in self.pictures:
            self.tracker.artifact(picture, "pictures")
        for name in (RUN_FILE, report.FILE_NAME):
            if (self.folder / name).exists():
                self.tracker.artifact(self.folder / name)
        newest = newest_valid(self.folder / "checkpoints")
        if newest is not None:
            self.tracker.artifact(newest, "checkpoint")

    def _outcome(self, *, finished: bool) -> Outcome:
        return Outcome(
            folder=self.folder,
            finished=finished,
            evaluation=self.evaluation,
            pictures=self.pictures,
            chosen=self._chosen(),
            view_command=self.tracker.view_command,
        )
