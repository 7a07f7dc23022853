"""What was trained, by task, network and scheme: the runs that reports and pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Run = dict[str, Any]
Case = tuple[str, str, bool]
"""Task, network, whether by adapters."""
ORDER = ("mlp 2 x 128, critics", "mlp 3 x 512", "tiny", "small", "base")


def title_of(case: Case) -> str:
    """Return what a column is called."""
    task, network, adapted = case
    names = {"tiny": "head tiny", "small": "head small", "base": "head base"}
    return f"{task}: {names.get(network, network)}{', adapters r = 16' if adapted else ''}"


def cases_of(runs: Sequence[Run]) -> dict[Case, dict[str, dict[int, Run]]]:
    """Return the runs by case, scheme and seed, small networks first; failed ones and those cut short are left out."""
    found: dict[Case, dict[str, dict[int, Run]]] = {}
    for run in whole(runs):
        found.setdefault(case_of(run), {}).setdefault(run["scheme"], {})[run["seed"]] = run
    return {case: found[case] for case in sorted(found, key=lambda case: (ORDER.index(case[1]), not case[2]))}


def case_of(run: Run) -> Case:
    """Return what the run is one of."""
    return run["task"], run["network"], run["adapted"]


def whole(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with as many updates as any of their task, and those that diverged before."""
    measured = [run for run in runs if run.get("gradient")]
    most = {
        task: max(run["updates"] for run in measured if run["task"] == task) for task, _, _ in map(case_of, measured)
    }
    return [run for run in measured if run["diverged"] or run["updates"] == most[run["task"]]]


def millions(runs: dict[str, dict[int, Run]]) -> str:
    """Return how many numbers of pi+ are trained."""
    return f"{next(iter(next(iter(runs.values())).values()))['parameters'] / 1e6:.3g} M"


def ratio(top: float | None, bottom: float | None) -> float | None:
    """Return a quotient of what is known."""
    return top / bottom if top is not None and bottom else None
