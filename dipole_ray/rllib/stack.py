"""Learners of several algorithms in this process that take their updates as one stacked step.

Each algorithm goes through an iteration of its own in a thread of its own. The threads take turns, so that nothing runs
at once: one goes on until its learner is called, then the next; when all that are still in their iteration have
called, the calls are answered together. That is how a GPU, which one small agent leaves mostly idle, serves many.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from dipole_ray.agents.captured import CapturedUpdates

_LOG = logging.getLogger(__name__)
Answer = dict[str, float] | BaseException


class LearnerStack:
    """Answers the calls of its members: learners as `DIPOLELearner`, in this process, with agents of one shape."""

    def __init__(self, members: Sequence[Any], stops: Sized = ()) -> None:
        """Let the members' calls come here; `stops` grows with requests to stop."""
        self._members = list(members)
        self._updates: CapturedUpdates | None = None
        # Its lock is held by the thread whose turn it is.
        self._turn = threading.Condition()
        self._iterating: set[Any] = set()
        self._calls: dict[Any, Mapping[str, Tensor]] = {}
        self._answers: dict[Any, Answer] = {}
        self.noticed = Noticed(stops)
        """Grows as `stops` between two steps of all members alone, so that all end an iteration after the same one."""
        for member in members:
            member.stack = self

    def train(self, iterations: Mapping[Any, Callable[[], object]]) -> dict[Any, Callable[[], object]]:
        """Go through one iteration for each member, and return for each what ends, or raises, as its iteration did."""
        self.noticed.look()
        self._iterating = set(iterations)
        with ThreadPoolExecutor(len(iterations), thread_name_prefix="member") as threads:
            work = {member: threads.submit(self._iterate, member, train) for member, train in iterations.items()}
        return {member: future.result for member, future in work.items()}

    def leave(self, member: Any) -> None:
        """Go on without a member, whose training is over."""
        if member in self._members:
            self._members.remove(member)
            self._updates, member.stack = None, None

    def update_on(self, member: Any, columns: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the metrics of a member's call, once the others have called too; or raise its NonFiniteError."""
        if member not in self._iterating:  # as in a call outside any iteration
            return self._alone(member, columns)
        with self._turn:
            self._calls[member] = columns
            self._answer_if_all_called()
            self._turn.wait_for(lambda: member in self._answers)
            answer = self._answers.pop(member)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _iterate(self, member: Any, train: Callable[[], object]) -> None:
        """Go through a member's iteration, in its turn."""
        with self._turn, self._leaving_the_others(member):
            train()

    @contextlib.contextmanager
    def _leaving_the_others(self, member: Any) -> Iterator[None]:
        """Let nobody wait for a member after the block."""
        try:
            yield
        finally:
            self._iterating.discard(member)
            self._answer_if_all_called()

    def _answer_if_all_called(self) -> None:
        """Take the steps that are asked for, if all members that are in an iteration wait for theirs."""
        if not self._calls or self._calls.keys() != self._iterating:
            return
        calls, self._calls = self._calls, {}
        self._answers |= self._answered(calls)
        self.noticed.look()
        self._turn.notify_all()

    def _answered(self, calls: Mapping[Any, Mapping[str, Tensor]]) -> dict[Any, Answer]:
        """Return the answers: of one stacked step where all members ask for the same number of updates."""
        rows = {len(columns["rewards"]) for columns in calls.values()}
        if len(calls) == 1 or len(calls) != len(self._members) or len(rows) != 1:
            return {member: self._attempt(member, columns) for member, columns in calls.items()}
        with self._members[0].products():  # all members' are the same
            try:
                updates = self._updates_of(rows.pop())
            except Exception as error:  # networks may do what cannot be stacked, and graphs fail to be captured
                _LOG.warning("updates are not stacked, each run goes on alone: %s: %s", type(error).__name__, error)
                for member in calls:
                    self.leave(member)
                return {member: self._attempt(member, columns) for member, columns in calls.items()}
            try:
                found = updates.update_on([calls[member] for member in self._members])
            except Exception as error:  # every member's, as it could be nobody's own
                return {member: error for member in calls}
        stacked = {"system/stacked_members": float(len(calls)), "system/compiled_updates": 0.0}
        answers: dict[Any, Answer] = {}
        for member, answer in zip(list(self._members), found, strict=True):
            answers[member] = answer if isinstance(answer, BaseException) else answer | stacked
            if isinstance(answer, BaseException):
                self.leave(member)  # at once: the others go on with one fewer
        return answers

    def _updates_of(self, rows: int) -> CapturedUpdates:
        """Return the stacked updates of the members, for calls of so many rows."""
        batch_size = self._members[0].agent.config.batch_size
        if self._updates is None or self._updates.max_updates < rows // batch_size:
            self._updates = CapturedUpdates([one.agent for one in self._members], batch_size, rows // batch_size)
        return self._updates

    def _attempt(self, member: Any, columns: Mapping[str, Tensor]) -> Answer:
        """Return a member's answer where it steps by itself."""
        try:
            return self._alone(member, columns)
        except Exception as error:
            return error

    def _alone(self, member: Any, columns: Mapping[str, Tensor]) -> dict[str, float]:
        metrics: dict[str, float] = member.update_alone(columns, member.agent.config.batch_size)
        return metrics


class Noticed(Sized):
    """Grows as another object did when it was looked at last."""

    def __init__(self, seen: Sized) -> None:
        self._seen, self._length = seen, len(seen)

    def __len__(self) -> int:
        return self._length

    def look(self) -> None:
        """Take the present length."""
        self._length = len(self._seen)
