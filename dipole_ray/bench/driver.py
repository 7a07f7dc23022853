"""A suite from its file to its results: the same command again goes on where it was left, however that was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipole_ray.bench.data import require_same_data
from dipole_ray.bench.job import ELSEWHERE, FAILED, Job, located, progress_of, stored, train, without_result
from dipole_ray.bench.result import DIVERGED
from dipole_ray.bench.suite import Suite
from dipole_ray.envs.make import env_dims
from dipole_ray.parallel import map_tasks, ray_session
from dipole_ray.runs.build import prepare_datasets
from dipole_ray.storage import require_lasting


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How the runs of a suite ended."""

    folder: Path
    """Folder of all runs."""
    finished: int
    """Runs with a result, earlier ones included."""
    diverged: list[str]
    """Those of them that became infinite, with the error."""
    failed: list[str]
    """Runs without a result, with the error; the next start tries them again."""
    elsewhere: list[str]
    """Runs that another command trains at this time, with its process."""


def run_suite(suite: Suite, only: Mapping[str, Sequence[str]] | None = None) -> Outcome:
    """Run what is left of a suite.

    Args:
        suite: The suite.
        only: See `Suite.jobs`.

    Raises:
        DipoleError: Any of ours that concerns all runs; what is done stays.
    """
    jobs = suite.jobs(only)
    require_lasting(suite.folder, "folder")
    results = [stored(job) for job in jobs]
    every = suite.jobs()  # also those that are not asked for now: one report shows them all
    configs, done = [job.config for job in every], [stored(job) for job in every]
    require_same_data(configs, done)
    left = [job for job, result in zip(jobs, results, strict=True) if result is None]
    if not left:
        return _outcome(suite, jobs, results)
    for env in {job.config.env for job in left}:
        env_dims(env)  # what can be refused is refused before data is made and Ray started
    with ray_session():
        prepare_datasets(located(job.config) for job in left)
        require_same_data(configs, done)  # once more: what was converted just now could not be compared before
        results = map_tasks(
            train,
            jobs,
            description=suite.config.name,
            num_cpus=suite.config.resources.cpus,
            num_gpus=suite.config.resources.gpus,
            unit="updates",
            size=lambda job: max(1, job.updates),
            part=progress_of,
            saved=stored,
            lost=_lost,
        )
    return _outcome(suite, jobs, results)


def standing(suite: Suite) -> dict[str, Counter[str]]:
    """Return by method and task how many runs are finished, diverged, begun and not begun; starts nothing."""
    found: dict[str, Counter[str]] = {}
    for job in suite.jobs():
        result = stored(job)
        status = ("begun" if progress_of(job) else "not begun") if result is None else result["status"]
        found.setdefault(f"{job.method} on {job.task}", Counter())[status] += 1
    return found


def _lost(job: Job, words: str) -> dict[str, Any]:
    """Return what stands for the result of a run whose worker kept dying."""
    return without_result(job, FAILED, f"{words}: give each run more room with suite.resources.cpus")


def _outcome(suite: Suite, jobs: Sequence[Job], results: Sequence[dict[str, Any] | None]) -> Outcome:
    ended = [(job, result) for job, result in zip(jobs, results, strict=True) if result is not None]
    words = {
        status: [f"{job}: {result['error']}" for job, result in ended if result["status"] == status]
        for status in (DIVERGED, FAILED, ELSEWHERE)
    }
    return Outcome(
        folder=suite.folder,
        finished=len(ended) - len(words[FAILED]) - len(words[ELSEWHERE]),
        diverged=words[DIVERGED],
        failed=words[FAILED],
        elsewhere=words[ELSEWHERE],
    )
