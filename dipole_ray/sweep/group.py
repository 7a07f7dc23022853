"""Trials that share a process: what is a trial to Tune is several of ours, each with its own folder and results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipole_ray.agents.stacked_loss import MAY_DIFFER
from dipole_ray.errors import DipoleError
from dipole_ray.runs.together import Together
from dipole_ray.stopping import Stopped
from dipole_ray.sweep.plan import Plan
from dipole_ray.sweep.records import STOP_FILE
from dipole_ray.sweep.space import Values
from dipole_ray.sweep.trial import StopFile, TrialRun

JOIN = "+"
"""Between the names of trials in the name that Tune has for all of them."""
_ITS_OWN = {"seed", *(f"agent.{name}" for name in MAY_DIFFER)}


def names_in(name: str) -> list[str]:
    """Return the names of the trials that Tune calls so."""
    return name.split(JOIN)


def grouped(values: Mapping[str, Values], most: int) -> list[str]:
    """Return Tune's names of groups of at most so many trials that a stack can hold; `values` are theirs by name."""
    groups: dict[str, list[list[str]]] = {}
    for trial, own in values.items():
        alike = json.dumps({key: value for key, value in own.items() if key not in _ITS_OWN}, sort_keys=True)
        found = groups.setdefault(alike, [[]])
        if len(found[-1]) == most:
            found.append([])
        found[-1].append(trial)
    return [JOIN.join(group) for found in groups.values() for group in found]


class TrialGroup:
    """Trials that go from rung to rung together."""

    def __init__(
        self, values: Mapping[str, Values], plan: Plan, trials: Path, *, run_key: str | None = None, **learner: Any
    ) -> None:
        """Begin the trials, or continue them, all or none; `values` are theirs by name."""
        self.runs: list[TrialRun] = []
        self._failed: dict[TrialRun, Exception] = {}
        self._stop = StopFile(trials.parent / STOP_FILE)
        with contextlib.ExitStack() as undo:
            for trial, own in values.items():
                self.runs.append(TrialRun(trial, own, plan, trials, run_key=run_key, **learner))
                undo.callback(self.runs[-1].close)
                self.runs[-1].stacked = len(values)
            undo.pop_all()

    def advance(self) -> dict[str, Any]:
        """Train all to the next rung, as `TrialRun.advance` does, and return the result of one for Tune.

        A trial that fails ends alone: its error is raised once the others are at their last rung. Stopped where the
        sweep is asked to stop, after all have saved.
        """
        going = [run for run in self.runs if run not in self._failed]
        together = Together({run: run.iterations() for run in going}, self._stop)
        together.train()
        if stopped := [error for error in together.errors.values() if isinstance(error, Stopped)]:
            raise stopped[0]
        for run in going:
            error = together.errors.get(run)
            if isinstance(error, Exception):
                self._failed[run] = error
                run.close("FAILED")
        left = [run for run in self.runs if run not in self._failed]
        is_done = all(run.is_finished for run in left)
        if is_done and self._failed:
            words = "; ".join(f"{run.trial}: {type(error).__name__}: {error}" for run, error in self._failed.items())
            raise DipoleError(words) from next(iter(self._failed.values()))
        return {**min((run.result for run in left), key=lambda result: int(result["rung"])), "done": is_done}

    def close(self) -> None:
        """End the trials that have not ended; twice does nothing."""
        for run in self.runs:
            run.close()
