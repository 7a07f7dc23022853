"""A suite from its file to its results: the same command again goes on where it was left, however that was."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dipole_ray.bench.group import FAILED, Group, grouped, train
from dipole_ray.bench.job import Job, require_same_data
from dipole_ray.bench.result import DIVERGED, FINISHED
from dipole_ray.bench.suite import Suite
from dipole_ray.envs.make import env_dims
from dipole_ray.files.storage import require_lasting
from dipole_ray.parallel import map_tasks, ray_session
from dipole_ray.rllib.core_privates import stop_ray
from dipole_ray.runs.prepare import prepare_datasets

REMEDY = "give each run more room with suite.resources.cpus"  # for runs whose worker keeps dying


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """How the runs of a suite ended."""

    runs: Sequence[tuple[Job, Mapping[str, Any]]]  # each with its result, or with what stands for one

    @property
    def finished(self) -> int:
        """Runs with a result, earlier ones and diverged ones included."""
        return sum(result["status"] in (FINISHED, DIVERGED) for _, result in self.runs)

    def errors(self, status: str) -> list[str]:
        """Return the runs that ended so, each with the error."""
        return [f"{job}: {result['error']}" for job, result in self.runs if result["status"] == status]


def run_suite(suite: Suite, only: Mapping[str, Sequence[str]] | None = None) -> SuiteResult:
    """Run what is left of a suite, or of the part that `only` names as in `Suite.jobs`; errors leave what is done."""
    jobs = suite.jobs(only)
    require_lasting(suite.folder, "folder")
    results = [job.stored() for job in jobs]
    every = [(job, job.stored()) for job in suite.jobs()]  # those not asked for now too: one report shows them all
    require_same_data(every)
    left = [job for job, result in zip(jobs, results, strict=True) if result is None]
    for env in {job.config.env for job in left}:
        env_dims(env)  # what can be refused is refused before data is made and Ray started
    if left:
        with ray_session(stop_ray):
            prepare_datasets(job.located for job in left)
            require_same_data(every)  # once more: what was converted just now could not be compared before
            groups = grouped(jobs, suite.config.resources.stacked)
            found = map_tasks(
                train,
                groups,
                description=suite.config.name,
                num_cpus=suite.config.resources.cpus,
                num_gpus=suite.config.resources.gpus,
                unit="updates",
                size=lambda group: max(1, group.updates),
                part=Group.progress,
                saved=Group.stored,
                lost=lambda group, words: group.without_result(FAILED, f"{words}: {REMEDY}"),
            )
            by_folder = {
                job.folder: result
                for group, trained in zip(groups, found, strict=True)
                for job, result in zip(group.jobs, trained, strict=True)
            }
            results = [by_folder[job.folder] for job in jobs]
    return SuiteResult([(job, result) for job, result in zip(jobs, results, strict=True) if result is not None])


def progress_by_method(suite: Suite) -> dict[str, Counter[str]]:
    """Return by method and task how many runs are finished, diverged, begun and not begun; starts nothing."""
    found: dict[str, Counter[str]] = {}
    for job in suite.jobs():
        result = job.stored()
        status = ("begun" if job.progress() else "not begun") if result is None else result["status"]
        found.setdefault(f"{job.method} on {job.task}", Counter())[status] += 1
    return found
