"""A run folder that is open for training: what `dipole train`, `sweep` and `bench` have in common.

A session builds the algorithm, restores it from a checkpoint, logs, plays cells, saves and hands over to MLflow. What
is trained and evaluated when is up to who drives it: a `Run` goes through both phases, a `Trial` from rung to rung.
"""

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import yaml
from torch import Tensor

from dipole_ray.errors import ConfigError
from dipole_ray.evaluation import report
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult
from dipole_ray.evaluation.report import Row
from dipole_ray.files.checkpoint import Checkpoint, prune, write_checkpoint
from dipole_ray.files.durable import write_text
from dipole_ray.files.lock import FolderLock
from dipole_ray.files.storage import persist
from dipole_ray.rllib.algorithm import DIPOLE
from dipole_ray.rllib.config import SECTIONS, DIPOLEConfig
from dipole_ray.rllib.evaluate import play
from dipole_ray.rllib.replay_actor import RING_FILE, ring_rows
from dipole_ray.runs.config import RunConfig
from dipole_ray.spans import spanned
from dipole_ray.tracking.tracker import Tracker

RUN_FILE, CHECKPOINTS = "run.yaml", "checkpoints"
"""The run's config, and the folder of its checkpoints, in a run folder."""
LOCK_WAIT_S = 120.0
"""Longest wait for the process that trained a run before; Ray ends it soon after its driver was killed."""
RUN_LOCK_WAIT_S = 10.0
"""Longest wait of a command for another one that still trains the run."""


class Session:
    """An algorithm in its run folder; whoever ends it stops the algorithm and closes the tracker."""

    def __init__(
        self, folder: Path, config: RunConfig, dataset: Path | None, checkpoint: Checkpoint | None, **learner: Any
    ) -> None:
        """Build the algorithm, restore it, and open the metrics where a checkpoint left them; `learner` is RLlib's."""
        self.folder, self.config = folder, config
        self.interrupted: Sized = ()
        """Grows with requests to stop, which end a wait for the disk."""
        self.newest = None if checkpoint is None else checkpoint.path
        """The checkpoint of the last save."""
        self.evaluation_s = 0.0
        """How long the last evaluation took."""
        self.algorithm = self._build(dataset, checkpoint, learner)
        with contextlib.ExitStack() as undo:
            undo.callback(self.algorithm.stop)
            if checkpoint is not None:
                self.algorithm.restore_contents(checkpoint)
            self.saved_at = (-1, -1) if checkpoint is None else self.steps
            self.prepare(checkpoint)
            # A folder without a checkpoint may still have the lines of a run that died early; they are cut off.
            state = {"metrics_bytes": 0} if checkpoint is None else checkpoint.metadata["tracker"]
            self.tracker = self.open_tracker(state)
            undo.pop_all()

    def _build(self, dataset: Path | None, checkpoint: Checkpoint | None, learner: dict[str, Any]) -> DIPOLE:
        """Return the algorithm, not yet restored, on the ring that belongs to the checkpoint, or on an empty one."""
        replay = self.folder / "replay"
        config = rllib_config(self.config, dataset, replay).learners(**learner)
        if checkpoint is not None:  # as it was settled then; runs of before subtracted nothing
            saved = checkpoint.metadata["algorithm"]["env"].get("observation_offset", {})
            config.env_config = {**config.env_config, "observation_offset": saved}
        if checkpoint is None:
            shutil.rmtree(replay, ignore_errors=True)  # of a run that ended before its first checkpoint
            return cast(DIPOLE, config.build_algo())
        ring = checkpoint.metadata["replay"]["online"]
        if ring is not None and self.config.training.replay_capacity is None:
            config.training(replay_capacity=ring_rows(config, ring["capacity"]))  # a longer run keeps its ring
        if (replay / RING_FILE).exists():
            checkpoint.metadata["replay_directory"] = str(replay)  # a copy of a run folder has a ring of its own
        return cast(DIPOLE, config.build_algo())

    def abandon(self) -> None:
        """End a session that is not used after all."""
        self.algorithm.stop()
        self.tracker.close("KILLED")

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """Take back what `metadata` saved, and refuse what cannot go on; nothing has been logged yet."""

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint stores beside the algorithm, the config and the state of the metrics."""
        return {"evaluated": []}

    def files(self) -> dict[str, dict[str, Tensor] | str]:
        """Return the files of a checkpoint beside the algorithm's, with the tensors in each."""
        return {}

    def open_tracker(self, state: dict[str, Any]) -> Tracker:
        """Return the tracker of this run, cut back to the state that a checkpoint has of it."""
        described: Any = {"parameters": self.config.to_mapping(), "tags": {"config_digest": self.config.digest()}}
        name, tracking = self.folder.name, self.config.tracking
        return Tracker(self.folder, tracking, run_name=name, resume=True, state=state, **described)

    @property
    def steps(self) -> tuple[int, int]:
        """Updates and environment steps so far."""
        return self.algorithm.learner_steps, self.algorithm.env_steps

    def end_early_on(self, interrupted: Sized) -> None:
        """End iterations, and waits for the disk, when `interrupted` grows."""
        self.interrupted = interrupted
        self.algorithm.end_early_on(interrupted)

    def log(self, metrics: dict[str, float], steps: tuple[int, int] | None = None) -> None:
        """Append one line of metrics at the present updates and environment steps, or at those given."""
        learner_steps, env_steps = self.steps if steps is None else steps
        self.tracker.log(metrics, env_steps=env_steps, learner_steps=learner_steps)

    @spanned("evaluate")
    def play(self, cells: Sequence[Cell], episodes: int, **how: Any) -> list[CellResult]:
        """Play the episodes of some cells, all with the present weights; see `rllib.evaluate.play`."""
        start = time.perf_counter()
        results = play(self.algorithm, None, cells, episodes=episodes, **how)
        self.evaluation_s = time.perf_counter() - start
        return results

    def rows(self, results: Sequence[CellResult]) -> list[Row]:
        """Return the rows that played cells have in `evaluation.json`."""
        return self.algorithm.rows(results)

    def persist(self, write: Callable[[], None]) -> None:
        """Call `write`; while the disk refuses, the run stands still and tries again."""
        persist(write, retry_minutes=self.config.checkpoint.retry_minutes, interrupted=self.interrupted)

    @spanned("save")
    def save(self) -> None:
        """Write a checkpoint of the present state and remove the oldest."""
        self.persist(self.write)
        self.saved_at = self.steps

    def write(self) -> None:
        """Write what `save` saves, once; a subclass adds its own files."""
        contents, metadata = self.algorithm.checkpoint_contents()
        contents |= self.files()
        metadata |= {"run": self.config.to_mapping(), "tracker": self.tracker.sync(), **self.metadata()}
        self.newest = write_checkpoint(self.folder / CHECKPOINTS, self.algorithm.learner_steps, contents, metadata)
        self.algorithm.restart_point = self.newest
        prune(self.newest, self.config.checkpoint.keep)

    def hand_over(self) -> None:
        """Give MLflow the config and the rows; it takes them when it can."""
        for name in (RUN_FILE, report.FILE_NAME):
            if (self.folder / name).exists():
                self.tracker.artifact(self.folder / name)


def rllib_config(run: RunConfig, dataset: Path | None, replay: Path | None) -> DIPOLEConfig:
    """Return RLlib's config of a run, with the run's own sections in it; without `replay` the ring is put elsewhere."""
    sections = {name: getattr(run, name) for name in SECTIONS}
    config = DIPOLEConfig.from_sections(run.env, sections, () if dataset is None else (str(dataset),))
    config.replay_directory = None if replay is None else str(replay)
    config.env_runners(
        num_env_runners=run.rollout.num_workers,
        num_envs_per_env_runner=run.rollout.envs_per_worker,
        rollout_fragment_length=run.rollout.fragment_steps,
        num_cpus_per_env_runner=run.rollout.cpus_per_worker,
        stall_s=run.rollout.stall_s,
    )
    config.learners(
        num_learners=run.learner.actors,
        num_threads=run.learner.num_threads,
        matmul_precision=run.learner.matmul_precision,
    )
    config.debugging(seed=run.seed)
    return config


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; FolderTaken where another process still writes there after some seconds."""
    try:
        lock = FolderLock(folder, RUN_LOCK_WAIT_S)
    except OSError as error:
        remedy = "make it writable, or copy it to a place that is"
        raise ConfigError(f"run folder {folder}: cannot be written ({error.strerror}); {remedy}") from error
    with lock:
        yield


def typed(path: Path) -> Path:
    """Return a path as people would type it: relative where it lies below the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def new_folder(config: RunConfig) -> Path:
    """Make a new, empty folder for a run, named after the run and the second; else ConfigError."""
    return new_folders(config, [""])[0]


def new_folders(config: RunConfig, endings: Sequence[str]) -> list[Path]:
    """Make a folder as `new_folder` for each run of several that start together, all of one name before its ending."""
    if Path(config.name).name != config.name or not config.name.strip():
        raise ConfigError(f"name is '{config.name}': give the name of one folder; folder=PATH says where it lies")
    first = Path(config.folder).expanduser() / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        name = first if number == 1 else first.with_name(f"{first.name}-{number}")
        folders = [name.with_name(f"{name.name}{ending}") for ending in endings]
        with contextlib.ExitStack() as undo:
            try:
                for folder in folders:
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    folder.mkdir()
                    undo.callback(folder.rmdir)
            except FileExistsError as error:  # the runs of a job array start in the same second
                if folder.exists():
                    continue
                raise _cannot_be_made(folder, error) from error
            except OSError as error:
                raise _cannot_be_made(folder, error) from error
            undo.pop_all()
            return folders
    raise AssertionError("counting never ends")


def write_config(folder: Path, config: RunConfig) -> None:
    """Write a run's config into its folder, which is made if missing; else ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, for half a config would be another config.
        write_text(folder / RUN_FILE, yaml.safe_dump(config.to_mapping(), sort_keys=False))
    except OSError as error:
        raise _cannot_be_made(folder, error) from error


def _cannot_be_made(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"run folder {folder}: cannot be made ({error.strerror}); choose another place with folder=PATH")
