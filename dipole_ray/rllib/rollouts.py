"""What is asked of the rollout workers: fragments without end, and the cells of an evaluation.

One request of a kind is in flight at each worker. A worker that fails is left out until it is back; what it was asked
for is asked of others (see `workers.py`).
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.pieces import Piece, Together, split
from dipole_ray.evaluation.play import CellResult
from dipole_ray.rllib.experience import FragmentReport, PublishedPolicy, SourceState
from dipole_ray.rllib.workers import Workers
from dipole_ray.spans import span

logger = logging.getLogger(__name__)

POLL_S = 0.2
SILENCE_S = 60.0


class Rollouts:
    """Experience of stepped environments: fragments and evaluation cells of the workers of an RLlib EnvRunnerGroup."""

    def __init__(self, group: EnvRunnerGroup, config: AlgorithmConfig) -> None:
        self._local = group.local_env_runner
        self._fragment_steps = int(config.get_rollout_fragment_length())
        self.workers = Workers(group, env_id=str(config.env), stall_s=config.env_runner_stall_s)
        self.interrupted: Sized = ()
        self._is_remote = len(self.workers) > 0  # else the training process is the only worker
        self._num_evaluations = self._num_lives = 0
        # Answers that nobody has taken yet, by tag; one under any other tag comes too late and is dropped.
        self._unread: dict[str, deque[Any]] = {}

    @property
    def num_workers(self) -> int:
        """Rollout workers that can be asked now; the training process itself counts when there are no others."""
        return len(self.workers.usable()) if self._is_remote else 1

    @property
    def plays_beside(self) -> bool:
        """Whether there are workers that can play while the learner goes on."""
        return self._is_remote

    def came_back(self) -> list[int]:
        """Return the workers that answered again since the last call."""
        back, self.workers.back = self.workers.back, []
        return back

    def metrics(self) -> dict[str, float]:
        """Return the state of the workers as `rollout/name`s; nothing when the training process is the worker."""
        if not self._is_remote:
            return {}
        return {
            "rollout/workers": float(self.num_workers),
            "rollout/retired": float(self.workers.num_retired),
            "rollout/failures": float(self.workers.num_failures),
        }

    def state(self) -> SourceState | None:
        """Return the running episodes of the training process; those of other workers are not kept."""
        return None if self._is_remote else self._local.rollout_state()

    def restore(self, state: SourceState | None, life: int) -> None:
        """Live the saved episodes again, or start new ones everywhere and drop what nobody has taken yet."""
        if self._is_remote:
            self.workers.tell(lambda worker: worker.begin_life(life))
            self._unread.pop(self._collect, None)
            self._num_lives += 1  # so that what is still being collected comes under a tag of the past
        elif state is not None:
            self._local.load_rollout_state(*state)
        else:  # the checkpoint comes from remote workers
            self._local.begin_life(life)

    def stop(self) -> None:
        """Close the environments and end the workers."""
        self.workers.stop()

    def gather(self, policy: Callable[[], PublishedPolicy]) -> Iterator[FragmentReport]:
        """Yield fragments until a stop is asked for; remote workers go on collecting while one is being used."""

        def request() -> None:
            if idle := self.workers.idle(self._collect):
                newest = policy()
                acting = {"version": newest.version, "policy": _share(newest), "backbone": newest.backbone}
                self.workers.ask(idle, self._collect, "collect", **self._wanted(), **acting)

        if self._is_remote:
            yield from self._answers(self._collect, request, ends_early=True)
        while not self.interrupted:
            newest = policy()
            with span("collect"):
                acting = {"version": newest.version, "policy": newest.state, "backbone": newest.backbone}
                fragment = self._local.collect(**self._wanted(), **acting)
            yield fragment

    def _wanted(self) -> dict[str, Any]:
        """Return what a worker is asked to collect."""
        return {"num_steps": self._fragment_steps}

    def evaluate(
        self,
        cells: Sequence[Cell],
        policy: PublishedPolicy,
        *,
        episodes: int,
        on_wait: Callable[[], bool],
        **how: Any,
    ) -> Iterator[CellResult | None]:
        """Yield the result of each cell as it is finished, see `Experience.evaluate`; workers play pieces of the grid.

        Where nobody waits for them, one worker is left to collect.
        """
        how = {**how, "version": policy.version, "backbone": policy.backbone}
        players = max(1, len(self.workers) - (not on_wait()))  # those too that cannot be asked just now
        pieces = split(cells, episodes, players)
        together = Together(pieces)
        if not self._is_remote:
            for piece in pieces:
                played = self._local.evaluate(piece, policy=policy.state, on_step=on_wait, **how)
                yield from together.take(*played)
            return
        shared = _share(policy)
        self._num_evaluations += 1
        # Numbered, so that no answer to an earlier evaluation is taken for one of this.
        tag = f"evaluate (grid {self._num_evaluations})"
        finished: set[Piece] = set()
        assigned: dict[int, Piece] = {}

        def hand_out() -> None:
            taken = finished | {piece for piece, _ in self._unread[tag]}
            taken |= {assigned[worker] for worker in self.workers.busy(tag)}  # not the piece of a worker that died
            waiting = [piece for piece in pieces if piece not in taken]
            free = self.workers.idle(tag)[: players - len(self.workers.busy(tag))]
            for worker, piece in zip(free, waiting, strict=False):
                assigned[worker] = piece
                self.workers.ask([worker], tag, "evaluate", piece=piece, policy=shared, **how)

        try:
            for answer in self._answers(tag, hand_out, waits=on_wait):
                if answer is None:
                    yield None
                    continue
                finished.add(answer[0])
                yield from together.take(*answer)
                if len(finished) == len(pieces):
                    return
        finally:
            del self._unread[tag]

    def _answers(
        self, tag: str, ask: Callable[[], None], *, ends_early: bool = False, waits: Callable[[], bool] = lambda: True
    ) -> Iterator[Any]:
        """Yield answers as they come, asking again before every wait; never silent for long.

        Where `waits` returns false, None is yielded instead of a wait.
        """
        last = time.monotonic()
        unread = self._unread.setdefault(tag, deque())
        while not (ends_early and self.interrupted):
            is_patient = waits()
            with span("collect" if ends_early else "evaluate"):
                answers = self.workers.answers(0.0 if unread or not is_patient else POLL_S)
            for its_tag, answer in answers:
                if its_tag in self._unread:
                    self._unread[its_tag].append(answer)
            if len(unread) <= 1:  # more wait already: workers that outrun the learner would pile them up for ever
                ask()  # before the caller works on an answer: its worker is busy again meanwhile
            if unread:
                last = time.monotonic()
                yield unread.popleft()
                continue
            if not is_patient:
                yield None
            if time.monotonic() - last > SILENCE_S:
                text = "no rollout worker answered '%s' for %.0f s (%d of %d healthy, %d retired): waiting on"
                counts = self.workers.num_healthy, len(self.workers), self.workers.num_retired
                logger.warning(text, tag, time.monotonic() - last, *counts)
                last = time.monotonic()

    @property
    def _collect(self) -> str:
        """Tag of the requests for fragments, another in every life."""
        return f"collect (life {self._num_lives})"


def _share(policy: PublishedPolicy) -> Any:
    """Return a reference to the policy's tensors, put into the object store once for all workers."""
    return policy.state if isinstance(policy.state, ray.ObjectRef) else ray.put(policy.state)
