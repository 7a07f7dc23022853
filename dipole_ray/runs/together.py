"""Several runs in one process: seeds, or a grid of settings, each in a folder of its own as if it were alone.

On a CPU they train in turn, an iteration each: they share the process and the dataset, whose files are mapped once, and
their updates take the time that they take alone. On a GPU their updates are one stacked step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence, Sized
from typing import Any, cast

from dipole_ray.agents.stacked_loss import require_alike
from dipole_ray.errors import ConfigError
from dipole_ray.progress import Progress
from dipole_ray.rllib.stack import LearnerStack
from dipole_ray.runs.run import Run
from dipole_ray.runs.session import Session
from dipole_ray.stopping import Stopped, noting_stops

Iterations = Generator[None, Callable[[], object] | None, Any]
"""Gives way before each iteration; whoever sends a function has had it done, and the function ends or raises as it."""


class Together:
    """Sessions that train together, an iteration each at a time, until each has come to its end."""

    def __init__(self, iterations: Mapping[Session, Iterations], stops: Sized, stacked: bool | None = None) -> None:
        """Begin with nothing; `stops` grows with requests to stop.

        Each update is one step of all their agents where that is `stacked`; None: where a GPU allows it.
        """
        self._left = dict(iterations)
        stacks = can_stack([*iterations]) if stacked is None else stacked
        self._stack = LearnerStack([_learner(one) for one in iterations], stops) if stacks else None
        self.errors: dict[Session, Exception | Stopped] = {}
        """What ended sessions before their end."""

    def train(self, after: Callable[[int], object] = lambda left: None) -> None:
        """Train until each has ended; after each iteration call `after` with the number of those that have not."""
        try:
            self._go_on({})
            for session in self._left if self._stack is not None else ():
                session.algorithm.end_early_on(self._stack.noticed)  # type: ignore[union-attr]
            while self._left:
                trained = {}
                if self._stack is not None and len(self._left) > 1:
                    found = self._stack.train({_learner(one): one.algorithm.train for one in self._left})
                    trained = {one: found[_learner(one)] for one in self._left}
                self._go_on(trained)
                after(len(self._left))
        finally:
            for iterations in self._left.values():
                iterations.close()

    def _go_on(self, trained: Mapping[Session, Callable[[], object]]) -> None:
        """Let each go on to its next iteration, and forget those that ended: one that breaks does not end others."""
        for session, iterations in list(self._left.items()):
            try:
                iterations.send(trained.get(session))
                continue
            except StopIteration:
                pass
            except (Exception, Stopped) as error:
                self.errors[session] = error
            del self._left[session]
            if self._stack is not None:
                self._stack.leave(_learner(session))


def train_together(runs: Sequence[Run], *, unattended: bool = False) -> dict[Run, Exception]:
    """Train runs to their ends, unattended: without a progress bar and pictures; return the errors of those that fail.

    Each is in all respects what it would be alone in its process.
    """
    if len(runs) == 1:
        try:
            runs[0].train(unattended=unattended)
        except Exception as error:
            return {runs[0]: error}
        return {}
    with noting_stops() as stops, _progress(runs) if not unattended else contextlib.nullcontext() as progress:
        together = Together({run: run.iterations(stops, shows=False, draws=not unattended) for run in runs}, stops)

        def show(left: int) -> None:
            if progress is not None:
                progress.update(sum(map(_done, runs)), running=left, failed=len(together.errors) or None)

        together.train(show)
    return cast(dict[Run, Exception], together.errors)


def _progress(runs: Sequence[Run]) -> Progress:
    trainings, done = [run.config.training for run in runs], sum(map(_done, runs))
    total = sum(training.learner_steps_before_online + training.online_env_steps for training in trainings)
    return Progress(f"{len(runs)} runs", total, "updates and env steps", completed=done)


def _learner(session: Session) -> object:
    return session.algorithm.learner.learners[0]


def can_stack(sessions: Sequence[Session]) -> bool:
    """Return whether the learners of all sessions are in this process, on a GPU, with agents of one shape."""
    learners = [session.algorithm.learner for session in sessions]
    if any(one.is_remote or one.learners[0].agent.device.type != "cuda" for one in learners):
        return False
    agents = [one.learners[0].agent for one in learners]
    try:
        require_alike([agent.config for agent in agents])
    except ConfigError:  # runs that are continued together may be of any kind: they go in turn
        return False
    return len({(one.learners[0].agent.sizes, one.config.learner_matmul_precision) for one in learners}) == 1


def _done(run: Run) -> int:
    """Return the updates before the online phase and the environment steps that a run has done."""
    training, (updates, env_steps) = run.config.training, run.steps
    return min(updates, training.learner_steps_before_online) + min(env_steps, training.online_env_steps)
