"""What one process of a suite trains: a run, or several that share a stacked step, each with a result of its own."""

import json
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from dipole_ray.agents.stacked_loss import MAY_DIFFER
from dipole_ray.bench.job import Job, data_of, shaping
from dipole_ray.bench.result import DIVERGED, FINISHED, RESULT_FILE, result_of
from dipole_ray.errors import EnvironmentFault, FolderTaken, NonFiniteError
from dipole_ray.files.durable import write_json
from dipole_ray.files.lock import FolderLock
from dipole_ray.runs.session import LOCK_WAIT_S
from dipole_ray.runs.start import train_in_each

ERROR_FILE = "error.txt"
FAILED, ELSEWHERE = "failed", "elsewhere"  # status of a run without a result: it broke, or another command is at it


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs that train in one process."""

    jobs: tuple[Job, ...]

    def __str__(self) -> str:
        others = f" and {len(self.jobs) - 1} runs with it" if len(self.jobs) > 1 else ""
        return f"{self.jobs[0]}{others}"

    @property
    def updates(self) -> int:
        """Updates of all jobs."""
        return sum(job.updates for job in self.jobs)

    def progress(self) -> int:
        """Return the updates that unfinished jobs have done."""
        return sum(job.progress() for job in self.jobs)

    def stored(self) -> list[dict[str, Any]] | None:
        """Return the results of jobs that are over, or None where one is not."""
        found = [result for job in self.jobs if (result := job.stored()) is not None]
        return found if len(found) == len(self.jobs) else None

    def without_result(self, status: str, error: str) -> list[dict[str, Any]]:
        """Return what stands for the results of jobs that have none."""
        return [job.stored() or job.without_result(status, error) for job in self.jobs]


def grouped(jobs: Sequence[Job], most: int) -> list[Group]:
    """Return jobs in groups of at most so many that a stack can hold; those that are over are alone."""
    open_groups: dict[str, list[Job]] = {}
    groups: list[list[Job]] = []
    for job in jobs:
        flat = shaping(job.config)
        for key in ("seed", "evaluation.seed", *(f"agent.{name}" for name in MAY_DIFFER)):
            flat.pop(key, None)
        key = json.dumps([job.task, job.config.learner.matmul_precision, flat], sort_keys=True)
        if most == 1 or job.stored() is not None:
            groups.append([job])
        elif len(open_groups.get(key, [])) % most == 0:
            groups.append([job])
            open_groups[key] = groups[-1]
        else:
            open_groups[key].append(job)
    return [Group(tuple(group)) for group in groups]


def train(group: Group) -> list[dict[str, Any]]:
    """Run, or continue, jobs to their ends, and return their results; what has none is returned as such, not raised.

    Only a result is written down: what failed, or is trained by another command, is tried again by the next start.
    """
    found: dict[Job, dict[str, Any]] = {}
    with ExitStack() as locks:
        for job in group.jobs:
            try:
                locks.enter_context(FolderLock(job.folder, LOCK_WAIT_S))
                if (stored := job.stored()) is not None:  # another command may have come to it first
                    found[job] = stored
            except FolderTaken as error:  # not ours: nothing is written there
                found[job] = job.without_result(ELSEWHERE, str(error))
            except Exception as error:
                found[job] = _failed(job, error)
        left = [job for job in group.jobs if job not in found]
        try:
            found |= _train(left) if left else {}
        except Exception as error:  # broken runs do not end the others
            found |= {job: _failed(job, error) for job in left}
    return [found[job] for job in group.jobs]


def _failed(job: Job, error: Exception) -> dict[str, Any]:
    """Write down why a run broke, and return what stands for its result."""
    with suppress(OSError):
        (job.folder / ERROR_FILE).write_text("".join(traceback.format_exception(error)))
    return job.without_result(FAILED, f"{type(error).__name__}: {error}")


def _train(jobs: Sequence[Job]) -> dict[Job, dict[str, Any]]:
    """Train runs together, and write their results down."""
    found: dict[Job, dict[str, Any]] = {}
    for job in jobs:
        job.note_data()
    runs, errors = train_in_each({job.folder: job.located for job in jobs})
    for job, run in zip(jobs, runs, strict=True):
        error, words = errors.get(job.folder), None
        try:
            # An environment's fault is nobody's score: once it is mended, the run is tried again.
            if isinstance(error, NonFiniteError) and not isinstance(error, EnvironmentFault):
                words = str(error).replace(f"{job.folder}/", "")  # the method's own doing, and so a result
            elif error is not None:
                raise error
            elif not run.finished:
                continue
            found[job] = _written(job, FINISHED if words is None else DIVERGED, words, len(jobs))
        except Exception as broken:
            found[job] = _failed(job, broken)
    if len(found) < len(jobs):
        raise KeyboardInterrupt
    return found


def _written(job: Job, status: str, error: str | None, members: int) -> dict[str, Any]:
    """Write down the result of a run that is over, trained with so many others in one process, itself included."""
    result = result_of(job.folder, job.config, status=status, error=error)
    result |= {"task": job.task, "method": job.method, "seed": job.seed, "digest": job.digest}
    result |= {"data": data_of(job.located), "stacked": members}
    write_json(job.folder / RESULT_FILE, result)
    (job.folder / ERROR_FILE).unlink(missing_ok=True)
    return result
