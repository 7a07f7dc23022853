"""The scores of a suite's runs: by method, task, seed and way of acting, at the end of a phase and along the way.

Two ways to name omega are kept apart. *Named*: the config's own omega, which stood before the run. *Tuned*: the omega
with the best mean score over the **other** seeds of the task, so that neither the networks nor the episodes that are
reported had a part in the choice (leave one seed out). Both are reported for every number of candidates, and the named
omega for the number that each method acts with by itself, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from dipole_ray.bench.config import MethodConfig, SuiteConfig, TaskConfig
from dipole_ray.bench.result import DIVERGED
from dipole_ray.evaluation.statistics import Numbers, Samples

PHASES = ("offline", "online")


@dataclass(frozen=True, slots=True)
class Way:
    """A way of acting, up to omega."""

    choice: Literal["named", "tuned"]  # how omega is chosen
    candidates: int | None  # actions sampled per step; 1: no rejection sampling, None: each method's own number

    def __str__(self) -> str:
        count = f"{self.candidates or 'own'} candidate{'s' * (self.candidates != 1)}"
        return count if self.choice == "named" else f"tuned omega, {count}"


class Point(NamedTuple):
    """A point of a learning curve."""

    phase: str
    learner_steps: int
    env_steps: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The results of a suite's runs, and every score that follows from them."""

    config: SuiteConfig  # how they are compared
    tasks: Mapping[str, TaskConfig]  # by name
    methods: Mapping[str, MethodConfig]  # by name
    runs: Mapping[tuple[str, str, int], Mapping[str, Any]]  # results by (task, trained method, seed)

    @property
    def baseline(self) -> str:
        """The method that the others are compared with."""
        return self.config.baseline or next(iter(self.methods))

    def is_baseline(self, method: str, way: Way, tasks: Sequence[str]) -> bool:
        """Return whether a method, acting in this way, is the baseline itself: the same cells of the same runs."""
        if self.trained(method) != self.trained(self.baseline):
            return False
        key, candidates = self.named_key, way.candidates
        return all(key(task, method, candidates) == key(task, self.baseline, candidates) for task in tasks)

    def label(self, method: str) -> str:
        """Return what a method is called in tables."""
        return self.methods[method].label or method

    def trained(self, method: str) -> str:
        """Return the method whose runs a method shows: itself, or the one it acts differently with."""
        return self.methods[method].runs_of or method

    def results(self, task: str, method: str) -> dict[int, Mapping[str, Any]]:
        """Return the results of a method on a task by seed."""
        return self._by_method.get((task, self.trained(method)), {})

    @cached_property  # asked for in every cell of every table
    def _by_method(self) -> dict[tuple[str, str], dict[int, Mapping[str, Any]]]:
        found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
        for (task, method, seed), run in sorted(self.runs.items(), key=itemgetter(0)):
            found.setdefault((task, method), {})[seed] = run
        return found

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Return every task with every method that has runs on it."""
        return ((task, method) for task, method in product(self.tasks, self.methods) if self.results(task, method))

    # ---- ways of acting ----

    def cells(self, task: str, method: str) -> dict[str, Mapping[str, Any]]:
        """Return the ways of acting that a method shows, by key, in the order of their candidates and omega."""
        shown, omega = self.methods[method].candidates, self.methods[method].omega
        cells = {
            key: cell
            for run in self.results(task, method).values()
            for key, cell in run["cells"].items()
            if (not shown or cell["candidates"] in shown) and omega in (None, cell["omega"])
        }
        return dict(sorted(cells.items(), key=lambda item: (item[1]["candidates"], item[1]["omega"] or 0.0)))

    def own_cell(self, task: str, method: str) -> Mapping[str, Any]:
        """Return the cell that was named before the runs, of which there must be one."""
        run = next(iter(self.results(task, method).values()))
        cell: Mapping[str, Any] = run["cells"][run["chosen"]]
        return cell

    def candidates(self) -> list[int]:
        """Return the numbers of candidates that anything was evaluated with."""
        return sorted({cell["candidates"] for pair in self.pairs() for cell in self.cells(*pair).values()})

    def own_candidates(self, task: str, method: str) -> int:
        """Return the number of candidates that a method acts with by itself; the most that it shows, if not that."""
        own = int(self.own_cell(task, method)["candidates"])
        shown = {int(cell["candidates"]) for cell in self.cells(task, method).values()}
        return own if own in shown or not shown else max(shown)

    def omegas(self, task: str, method: str, candidates: int) -> dict[float, str]:
        """Return the keys of the guided cells with so many candidates, by omega."""
        wanted = "guided", candidates
        cells = self.cells(task, method).items()
        return {cell["omega"]: key for key, cell in cells if (cell["policy"], cell["candidates"]) == wanted}

    def named_key(self, task: str, method: str, candidates: int | None) -> str | None:
        """Return the cell of the omega named beforehand with so many candidates, None where it was not evaluated."""
        if not self.results(task, method):
            return None
        own, omega = self.own_cell(task, method), self.methods[method].omega
        named = own["policy"], own["omega"] if omega is None else omega, candidates or self.own_candidates(task, method)
        cells = self.cells(task, method).items()
        return next((k for k, cell in cells if (cell["policy"], cell["omega"], cell["candidates"]) == named), None)

    # ---- scores ----

    def _value(self, scores: Mapping[str, Any]) -> float | None:
        """Return the suite's score of a cell in one evaluation."""
        number = scores[self.config.metric]
        return None if number is None else float(number) * (100.0 if self.config.metric == "success" else 1.0)

    def curve(self, task: str, method: str, candidates: int) -> dict[int, list[Point]]:
        """Return the evaluations of the named omega by seed; a diverged run's missing ones count with the worst."""
        found: dict[int, list[Point]] = {}
        key = self.named_key(task, method, candidates)
        if key is None:
            return found
        for seed, run in self.results(task, method).items():
            scores = [(item, self._value(item["scores"][key])) for item in run["evaluations"]]
            found[seed] = [Point(*_when(item), score) for item, score in scores if score is not None]
            if run["status"] == DIVERGED:
                reached = max((point.learner_steps for point in found[seed]), default=-1)
                missed = [when for when in self._plan(task, method) if when[1] > reached]
                found[seed] += [Point(*when, self._worst(task, when[0])) for when in missed]
        return found

    def _plan(self, task: str, method: str) -> list[tuple[str, int, int]]:
        """Return when a method's finished runs were evaluated; where it has none, those of the task."""
        own = [run for run in self.results(task, method).values() if run["status"] != DIVERGED]
        other = [run for (name, _, _), run in self.runs.items() if name == task and run["status"] != DIVERGED]
        whens = {_when(item) for run in own or other for item in run["evaluations"]}
        return sorted(whens, key=lambda when: when[1:])

    def finals(self, task: str, method: str, key: str, phase: str) -> dict[int, float]:
        """Return by seed the mean over the last evaluations of a phase; a diverged run counts with the worst."""
        found = self._measured(task, method, key, phase)
        return {seed: self._worst(task, phase) if score is None else score for seed, score in found}

    def _worst(self, task: str, phase: str) -> float:
        """Return what a diverged run counts with: no success, or the lowest score that any run of the task had."""
        if self.config.metric == "success":
            return 0.0
        places = [(method, key) for method in self.methods for key in self.cells(task, method)]
        scores = [score for place in places for _, score in self._measured(task, *place, phase) if score is not None]
        return min(scores, default=0.0)

    def _measured(self, task: str, method: str, key: str, phase: str) -> Iterator[tuple[int, float | None]]:
        """Yield (seed, score) of the runs that came to the phase, None where they diverged in it."""
        for seed, run in self.results(task, method).items():
            if run["status"] == DIVERGED and (phase == "online" or ended_in(run) == "offline"):
                yield seed, None
                continue
            items = [item for item in run["evaluations"] if item["phase"] == phase and key in item["scores"]]
            scores = [self._value(item["scores"][key]) for item in items[-self.config.evaluations :]]
            if known := [score for score in scores if score is not None]:
                yield seed, float(np.mean(known))

    def by_seed(self, task: str, method: str, way: Way, phase: str) -> dict[int, float]:
        """Return the scores of a method on a task by seed; empty where it does not act in that way."""
        if way.choice == "tuned" and way.candidates is not None:
            return {seed: score for seed, (_, score) in self.tuned(task, method, way.candidates, phase).items()}
        key = self.named_key(task, method, way.candidates)
        return {} if key is None else self.finals(task, method, key, phase)

    def of(self, task: str, method: str, way: Way, phase: str) -> Numbers:
        """Return the scores of `by_seed`, in the order of the seeds."""
        return np.array(list(self.by_seed(task, method, way, phase).values()), np.float64)

    def tuned(self, task: str, method: str, candidates: int, phase: str) -> dict[int, tuple[float, float]]:
        """Return by seed the omega that was best over the other seeds, and its score with this one.

        Nothing for a method without omega, or with a single seed; ties go to the least greedy omega.
        """
        keys = self.omegas(task, method, candidates)
        grid = {omega: self.finals(task, method, key, phase) for omega, key in keys.items()}
        seeds = sorted(set.intersection(*(set(scores) for scores in grid.values()))) if grid else []
        if len(grid) < 2 or len(seeds) < 2:
            return {}
        found = {}
        for seed in seeds:
            others = [other for other in seeds if other != seed]
            best = max(grid, key=lambda omega: (np.mean([grid[omega][other] for other in others]), -abs(omega)))
            found[seed] = best, grid[best][seed]
        return found

    def frame(self) -> pd.DataFrame:
        """Return the scores as a tidy table: one row a task, method, seed, phase and cell.

        `score` is what the tables average: the mean over the last evaluations of the phase, in per cent where success
        is measured; that of a diverged run is the worst. `is_named` says that the cell's omega stood before the run.
        """
        rows = []
        for (task, method), phase in product(self.pairs(), self.phases()):
            for key, cell in self.cells(task, method).items():
                is_named = key == self.named_key(task, method, cell["candidates"])
                for seed, score in self.finals(task, method, key, phase).items():
                    run = self.results(task, method)[seed]
                    of_run = {name: run[name] for name in ("status", "learner_steps", "env_steps")}
                    place = {"task": task, "group": self.tasks[task].group, "method": method, "seed": seed}
                    rows.append({**place, **of_run, "phase": phase, **cell, "is_named": is_named, "score": score})
        return pd.DataFrame(rows)

    def ways(self) -> list[Way]:
        """Return the ways of acting that any method has scores for: named omega first, then tuned."""
        counts = self.candidates()
        ways = [*(Way("named", count) for count in counts), *(Way("tuned", count) for count in counts)]
        places = [(*pair, phase) for pair in self.pairs() for phase in PHASES]
        return [way for way in ways if any(self.by_seed(task, name, way, phase) for task, name, phase in places)]

    def compared_ways(self) -> list[Way]:
        """Return the ways in which methods are compared: each with its own candidates where these differ, and all."""
        own = [Way("named", None)] if len({self.own_candidates(*pair) for pair in self.pairs()}) > 1 else []
        return own + [way for way in self.ways() if way.choice == "named"]

    def phases(self) -> list[str]:
        """Return the phases that any run was evaluated in."""
        found = {item["phase"] for run in self.runs.values() for item in run["evaluations"]}
        found |= set(map(ended_in, self.runs.values()))
        return [phase for phase in PHASES if phase in found]

    # ---- over tasks ----

    def groups(self) -> dict[str, list[str]]:
        """Return the groups of tasks, and all tasks together where there are several."""
        groups: dict[str, list[str]] = {}
        for name, task in self.tasks.items():
            if task.group is not None:
                groups.setdefault(task.group, []).append(name)
        if len(self.tasks) > 1:
            groups["all tasks"] = list(self.tasks)
        return groups

    def compared(self, methods: Sequence[str], way: Way, phase: str, tasks: Sequence[str]) -> Sequence[Samples] | None:
        """Return the scores of methods on several tasks, for the seeds that all of them have, in the same order.

        In per cent of the task's span where there is more than one task. None where a task is missing or nobody named
        its full score.
        """
        found: list[list[Numbers]] = [[] for _ in methods]
        for task in tasks:
            scores = [self.by_seed(task, method, way, phase) for method in methods]
            span = self.config.span(self.tasks[task])
            seeds = sorted(set.intersection(*map(set, scores)))
            if not seeds or (span is None and len(tasks) > 1):
                return None
            zero, full = (0.0, 100.0) if span is None or len(tasks) == 1 else span
            for side, mine in zip(found, scores, strict=True):
                side.append((np.array([mine[seed] for seed in seeds], np.float64) - zero) * (100.0 / (full - zero)))
        return found


def _when(item: Mapping[str, Any]) -> tuple[str, int, int]:
    """Return phase, updates and environment steps of an evaluation."""
    return item["phase"], item["learner_steps"], item["env_steps"]


def ended_in(run: Mapping[str, Any]) -> str:
    """Return the phase in which a run ended; results of earlier versions do not name it."""
    return str(run.get("phase") or ("online" if run["env_steps"] else "offline"))
