"""The start of runs and their resume: one run, or the seeds of one config together in one process."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from dipole_ray.data.segment import verified_once
from dipole_ray.envs.make import env_dims
from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.checkpoint import Checkpoint, newest_valid, read_checkpoint
from dipole_ray.files.place import absolute
from dipole_ray.files.resume import Difference, config_differences, guard_resume, version_differences, warn_of
from dipole_ray.files.storage import require_lasting
from dipole_ray.parallel import ray_session
from dipole_ray.rllib.core_privates import stop_ray
from dipole_ray.runs.config import FIXED, RunConfig, load, saved_config
from dipole_ray.runs.prepare import prepare_dataset, require_fit
from dipole_ray.runs.run import Run
from dipole_ray.runs.session import CHECKPOINTS, RUN_FILE, new_folders, one_writer, write_config
from dipole_ray.runs.together import train_together

_log = logging.getLogger(__name__)


def start_run(config: RunConfig) -> Run:
    """Train a new run; DipoleError where config, data, environment or run folder do not allow it."""
    if config.seeds:
        raise ConfigError(f"seeds is {list(config.seeds)}, which is several runs: start them with start_runs(config)")
    return start_runs(config)[0]


def resume_run(folder: Path, overrides: list[str]) -> Run:
    """Continue one run, see `resume_runs`."""
    return resume_runs([folder], overrides)[0]


@verified_once()
def start_runs(config: RunConfig) -> list[Run]:
    """Train new runs, one for each of `config.seeds`, together in this process; or one, where there are no seeds.

    DipoleError where config, data, environment or run folder do not allow it. The error of a run that fails later is
    raised once the others have ended.
    """
    configs = [one.located() for one in config.members()]
    config = configs[0]
    require_lasting(Path(config.folder), "folder")
    env_dims(config.env)  # what can be refused is refused before a folder is made and Ray started
    dataset = None if config.data.collect_transitions else prepare_dataset(config.data, config.env)
    require_fit(dataset, config.env)
    with contextlib.ExitStack() as ending, contextlib.ExitStack() as undo:
        folders = new_folders(config, [f"-seed-{one.seed}" for one in configs] if len(configs) > 1 else [""])
        for folder in folders:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            ending.enter_context(one_writer(folder))
        ending.enter_context(ray_session(stop_ray))
        for folder, one in zip(folders, configs, strict=True):
            write_config(folder, one)
        dataset = dataset or prepare_dataset(config.data, config.env)
        runs = _built([(folder, one, dataset, None) for folder, one in zip(folders, configs, strict=True)])
        undo.pop_all()  # from here on there is something to keep
        return _trained(runs)


@verified_once()
def resume_runs(folders: Sequence[Path], overrides: list[str]) -> list[Run]:
    """Continue runs, together in this process, from their newest valid checkpoints, or else from their beginnings.

    Of the `key=value` overrides those that a checkpoint cannot be continued with are refused by ConfigError, and others
    are named in one warning. CheckpointError if there is nothing to continue.
    """
    folders = [_run_folder(folder) for folder in folders]
    with contextlib.ExitStack() as ending:
        for folder in folders:
            ending.enter_context(one_writer(folder))
        found = [(folder, *_continued(folder, overrides)) for folder in folders]
        ending.enter_context(ray_session(stop_ray))
        runs = _built([(one, config, prepare_dataset(config.data, config.env), last) for one, config, last, _ in found])
        for run, (_, _, checkpoint, differences) in zip(runs, found, strict=True):
            if checkpoint is not None:
                # Threads left automatic count too, for the last bits of a sum depend on them.
                key, now = "learner_num_threads", run.algorithm.config.to_plain()
                differences += config_differences({key: checkpoint.metadata["algorithm"][key]}, {key: now[key]})
                differences += version_differences(checkpoint.versions)
            warn_of(differences)  # only now: until here the checkpoint could still be refused
        return _trained(runs)


@verified_once()
def train_in(folder: Path, config: RunConfig) -> Run:
    """Train the run of a folder to its end, unattended: without progress bars and pictures.

    The run starts from its newest valid checkpoint, or from its beginning where there is none; the folder is made if
    missing, and the caller sees to it that nobody else writes there. After any error the same call goes on.
    """
    (run,), errors = train_in_each({folder: config})
    for error in errors.values():
        raise error
    return run


@verified_once()
def train_in_each(configs: dict[Path, RunConfig]) -> tuple[list[Run], dict[Path, Exception]]:
    """Train the runs of folders as `train_in` does, together in this process; return them, and what ended some."""
    checkpoints: dict[Path, Checkpoint | None] = {}
    for folder, config in configs.items():
        if not (folder / RUN_FILE).is_file():
            write_config(folder, config)
        checkpoint = _newest_checkpoint(folder) if (folder / CHECKPOINTS).is_dir() else None
        if checkpoint is not None:
            warn_of(guard_resume(saved_config(checkpoint), config.to_mapping(), FIXED))
        checkpoints[folder] = checkpoint
    with ray_session(stop_ray):
        parts = []
        for folder, config in configs.items():
            dataset = prepare_dataset(config.data, config.env)
            require_fit(dataset, config.env)
            parts.append((folder, config, dataset, checkpoints[folder]))
        runs = _built(parts)
        errors = train_together(runs, unattended=True)
        return runs, {run.folder: error for run, error in errors.items()}


def _trained(runs: list[Run]) -> list[Run]:
    """Train runs and return them; raise the error of the first that failed, once the others have ended."""
    errors = train_together(runs)
    for run, error in errors.items():
        if len(runs) > 1:
            error.add_note(f"{run.folder} ended by this, as {len(errors)} of {len(runs)} runs did; the others went on")
        raise error
    return runs


def _built(parts: Sequence[tuple[Path, RunConfig, Path | None, Checkpoint | None]]) -> list[Run]:
    """Return the runs of folders, configs, datasets and checkpoints, all or none."""
    with contextlib.ExitStack() as undo:
        runs = []
        for part in parts:
            runs.append(Run(*part))
            undo.callback(runs[-1].abandon)
        undo.pop_all()
        return runs


def _run_folder(folder: Path) -> Path:
    """Return a run's folder, absolute; CheckpointError if there is none."""
    folder = absolute(folder)
    if not (folder / RUN_FILE).is_file():
        raise CheckpointError(f"{folder}: no {RUN_FILE} there, so this is no run; name the folder that 'train' printed")
    return folder


def _continued(folder: Path, overrides: list[str]) -> tuple[RunConfig, Checkpoint | None, list[Difference]]:
    """Return what a run goes on with, and how that differs from what it was."""
    checkpoint = _newest_checkpoint(folder)
    config = load(folder / RUN_FILE, overrides)
    saved = load(folder / RUN_FILE).to_mapping() if checkpoint is None else saved_config(checkpoint)
    differences = guard_resume(saved, config.to_mapping(), FIXED)
    return config.located(), checkpoint, differences


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
