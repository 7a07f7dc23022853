"""Several runs in one process: seeds, or a grid of settings, each in a folder of its own as if it were alone.

On a CPU they train in turn, an iteration each: they share the process and the dataset, whose files are mapped once, and
their updates take the time that they take alone. On a GPU their updates are one stacked step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence

from dipole_ray.agents.stacked_loss import require_alike
from dipole_ray.errors import ConfigError
from dipole_ray.progress import Progress
from dipole_ray.rllib.stack import LearnerStack
from dipole_ray.runs.run import Run
from dipole_ray.stopping import noting_stops

Iterations = Generator[None, Callable[[], object] | None, None]


def train_together(
    runs: Sequence[Run], *, unattended: bool = False, stacked: bool | None = None
) -> dict[Run, Exception]:
    """Train runs to their ends; one that fails ends alone, and its error is returned.

    Args:
        runs: What to train; alone in its process, each is in all respects what it is here.
        unattended: Without a progress bar and pictures.
        stacked: Whether each update is one step of all their agents; None: on a GPU. It equals to rounding.
    """
    together = _Together(runs, unattended, stacked)
    if len(runs) == 1:
        together.note(runs[0], lambda: runs[0].train(unattended=unattended))
    else:
        together.train()
    return together.errors


class _Together:
    """Runs that train together, until each has ended."""

    def __init__(self, runs: Sequence[Run], unattended: bool, stacked: bool | None) -> None:
        self._runs, self._unattended = runs, unattended
        self._stacked = _can_stack(runs) if stacked is None else stacked
        self.errors: dict[Run, Exception] = {}

    def note(self, run: Run, work: Callable[[], object]) -> bool:
        """Do a part of a run's work, and return whether more is left; an error ends the run, and is noted."""
        try:
            work()
        except StopIteration:
            return False
        except Exception as error:  # one broken run does not end the others
            self.errors[run] = error
            return False
        return True

    def train(self) -> None:
        """Train all runs."""
        with contextlib.ExitStack() as ending:
            stops = ending.enter_context(noting_stops())
            stack = LearnerStack([_learner(run) for run in self._runs], stops) if self._stacked else None
            left = {}
            for run in self._runs:
                left[run] = run.iterations(stops, shows=False, draws=not self._unattended)
                ending.callback(left[run].close)
            progress = None if self._unattended else ending.enter_context(self._progress())
            self._advance(left, stack, {})
            for run in left if stack is not None else ():
                run.algorithm.end_early_on(stack.noticed)  # type: ignore[union-attr]
            while left:
                trained = {}
                if stack is not None and len(left) > 1:
                    found = stack.train({_learner(run): run.algorithm.train for run in left})
                    trained = {run: found[_learner(run)] for run in left}
                self._advance(left, stack, trained)
                if progress is not None:
                    progress.update(sum(map(_done, self._runs)), running=len(left), failed=len(self.errors) or None)

    def _advance(
        self, left: dict[Run, Iterations], stack: LearnerStack | None, trained: dict[Run, Callable[[], object]]
    ) -> None:
        """Let each run go on to its next iteration, and forget those that ended."""
        for run, iterations in list(left.items()):
            if not self.note(run, lambda: iterations.send(trained.get(run))):  # noqa: B023
                del left[run]
                if stack is not None:
                    stack.leave(_learner(run))

    def _progress(self) -> Progress:
        total = sum(
            run.config.training.offline_learner_steps + run.config.training.online_env_steps for run in self._runs
        )
        done = sum(map(_done, self._runs))
        return Progress(f"{len(self._runs)} runs", total, "updates and env steps", completed=done)


def _learner(run: Run) -> object:
    return run.algorithm.learner.learners[0]


def _can_stack(runs: Sequence[Run]) -> bool:
    """Return whether the learners of all runs are in this process, on a GPU, with agents of one shape."""
    learners = [run.algorithm.learner for run in runs]
    if any(one.is_remote or one.learners[0].agent.device.type != "cuda" for one in learners):
        return False
    agents = [one.learners[0].agent for one in learners]
    try:
        require_alike([agent.config for agent in agents])
    except ConfigError:  # runs that are continued together may be of any kind: they go in turn
        return False
    return len({(one.learners[0].agent.sizes, one.config.learner_matmul_precision) for one in learners}) == 1


def _done(run: Run) -> int:
    """Return the updates of the offline phase and the environment steps that a run has done."""
    training, (updates, env_steps) = run.config.training, run.steps
    return min(updates, training.offline_learner_steps) + min(env_steps, training.online_env_steps)
