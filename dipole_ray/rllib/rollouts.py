"""The driver's side of the rollout workers: one request in flight at each.

A worker that dies is left out until RLlib has restarted it; what it was asked for is asked of others.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from dipole_ray.errors import EnvironmentUnavailable
from dipole_ray.evaluation import Cell, CellResult
from dipole_ray.rllib.env_runner import DIPOLEEnvRunner
from dipole_ray.rllib.fragment import FragmentReport, WorkerFailure
from dipole_ray.rllib.learner_client import PublishedPolicy

logger = logging.getLogger(__name__)

POLL_S = 0.2
SILENCE_S = 60.0
MAX_FAILURES = 5
"""Failures in a row after which a worker is asked no more."""


class Rollouts:
    """Collects fragments from, and spreads evaluation cells over, the workers of an RLlib EnvRunnerGroup."""

    def __init__(self, group: EnvRunnerGroup, fragment_steps: int) -> None:
        self._group = group
        self._fragment_steps = fragment_steps
        self._unread: defaultdict[str, deque[Any]] = defaultdict(deque)
        self._num_evaluations = 0
        self._failures: Counter[int] = Counter()

    @property
    def num_workers(self) -> int:
        """Rollout workers that can be asked now; the training process itself counts when there are no others."""
        return len(self._usable()) if self.is_remote else 1

    @property
    def is_remote(self) -> bool:
        """Whether the workers are actors of their own."""
        return bool(self._group.num_remote_workers() > 0)

    def begin_life(self, life: int) -> None:
        """Start new episodes everywhere, with random numbers that no earlier part of the run had.

        What the workers collected before and nobody has taken yet is dropped.

        Args:
            life: Number of this part of the run, such as the environment steps before it.
        """
        self._group.foreach_env_runner(partial(_begin_life, life=life), local_env_runner=False)
        self._group.fetch_ready_async_reqs(tags="collect", timeout_seconds=0.0)
        self._unread["collect"].clear()

    def gather(self, policy: Callable[[], PublishedPolicy]) -> Iterator[FragmentReport]:
        """Yield fragments without end; remote workers go on collecting while one is being used.

        Args:
            policy: Returns what an idle worker acts with next.
        """
        if self.is_remote:
            yield from self._answers("collect", lambda: self._request(policy()))
        while True:
            newest = policy()
            yield self._group.local_env_runner.collect(self._fragment_steps, newest.version, newest.state)

    def evaluate(
        self,
        cells: Sequence[Cell],
        policy: PublishedPolicy,
        **how: Any,
    ) -> Iterator[CellResult]:
        """Yield the result of each cell as it is finished, not in order.

        Args:
            cells: Cells of the grid, each played by one worker.
            policy: What is evaluated.
            **how: `episodes`, `seed`, `num_envs`, `trajectories` of `evaluate_cell`.
        """
        how = {**how, "version": policy.version}
        if not self.is_remote:
            for cell in cells:
                yield self._group.local_env_runner.evaluate(cell, policy=policy.state, **how)
            return
        shared = _share(policy)
        self._num_evaluations += 1
        # Numbered, so that no answer to an earlier evaluation is taken for one of this.
        tag = f"evaluate {self._num_evaluations}"
        finished: set[Cell] = set()
        assigned: dict[int, Cell] = {}

        def hand_out() -> None:
            busy = self._asked(tag)
            taken = finished | {result.cell for result in self._unread[tag]}
            taken |= {assigned[worker] for worker in busy}  # the cell of a worker that died is not among them
            waiting = [cell for cell in cells if cell not in taken]
            idle = [worker for worker in self._usable() if worker not in busy]
            for worker, cell in zip(idle, waiting, strict=False):
                assigned[worker] = cell
                call = partial(_evaluate, cell=cell, policy=shared, **how)
                self._group.foreach_env_runner_async(call, tag=tag, remote_worker_ids=[worker])

        for result in self._answers(tag, hand_out):
            finished.add(result.cell)
            yield result
            if len(finished) == len(cells):
                return

    def _answers(self, tag: str, ask: Callable[[], None]) -> Iterator[Any]:
        """Yield answers as they come, asking again before every wait; never silent for long."""
        last = time.monotonic()
        unread = self._unread[tag]
        while True:
            ready = self._group.fetch_ready_async_reqs(tags=tag, timeout_seconds=0.0 if unread else POLL_S)
            for worker, answer in ready:
                if isinstance(answer, WorkerFailure):
                    self._note_failure(worker, answer)
                else:
                    self._failures[worker] = 0
                    unread.append(answer)
            ask()  # before the caller works on an answer: its worker is busy again meanwhile
            if unread:
                last = time.monotonic()
                yield unread.popleft()
            elif not self._group.num_healthy_remote_workers():
                self._group.probe_unhealthy_env_runners(timeout_seconds=POLL_S)
            if time.monotonic() - last > SILENCE_S:
                healthy, total = self._group.num_healthy_remote_workers(), self._group.num_remote_workers()
                text = "no rollout worker answered '%s' for %.0f s (%d of %d healthy): waiting on"
                logger.warning(text, tag, time.monotonic() - last, healthy, total)
                last = time.monotonic()

    def _usable(self) -> list[int]:
        """Return the healthy workers that did not fail too often."""
        return [worker for worker in self._group.healthy_worker_ids() if self._failures[worker] < MAX_FAILURES]

    def _note_failure(self, worker: int, failure: WorkerFailure) -> None:
        """Warn; raise once no worker is left that could be asked."""
        self._failures[worker] += 1
        count = self._failures[worker]
        end = "it is asked no more" if count == MAX_FAILURES else "it begins new episodes"
        logger.warning("rollout worker %d failed, %d in a row: %s; %s", worker, count, failure.error, end)
        retired = sum(count >= MAX_FAILURES for count in self._failures.values())
        if retired == self._group.num_remote_workers():
            raise EnvironmentUnavailable(
                f"every rollout worker failed {MAX_FAILURES} times in a row, the last with {failure.error}; "
                "try the environment in one process with rollout.num_workers=0"
            )

    def _request(self, policy: PublishedPolicy) -> None:
        """Ask every idle healthy worker for a fragment, acting with `policy`."""
        busy = self._asked("collect")
        idle = [worker for worker in self._usable() if worker not in busy]
        if idle:
            collect = partial(_collect, num_steps=self._fragment_steps, version=policy.version, policy=_share(policy))
            self._group.foreach_env_runner_async(collect, tag="collect", remote_worker_ids=idle)

    def _asked(self, tag: str) -> set[int]:
        """Return the workers that have not answered a request with `tag` yet."""
        in_flight = self._group._worker_manager._in_flight_req_to_actor_id.values()
        return {worker for request_tag, worker in in_flight if request_tag == tag}


def _share(policy: PublishedPolicy) -> Any:
    """Return a reference to the policy's tensors, put into the object store once for all workers."""
    return policy.state if isinstance(policy.state, ray.ObjectRef) else ray.put(policy.state)


def _begin_life(worker: DIPOLEEnvRunner, *, life: int) -> None:
    worker.begin_life(life)


def _collect(worker: DIPOLEEnvRunner, *, num_steps: int, version: int, policy: Any) -> Any:
    return _answer(worker, partial(worker.collect, num_steps, version, policy))


def _evaluate(worker: DIPOLEEnvRunner, **how: Any) -> Any:
    return _answer(worker, partial(worker.evaluate, **how))


def _answer(worker: DIPOLEEnvRunner, work: Callable[[], Any]) -> Any:
    """Do the work in the worker; whatever an environment raises comes back as a value."""
    try:
        return work()
    except Exception as error:  # any environment's any error
        worker.abandon_episodes()
        return WorkerFailure(error=f"{type(error).__name__}: {error}")
