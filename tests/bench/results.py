"""Results of runs that were never run: exact numbers to compute with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dipole_ray.bench.config import MethodConfig, SuiteConfig, TaskConfig
from dipole_ray.bench.scores import Scores

Point = tuple[str, int, int]
"""Phase, updates, environment steps."""
OFFLINE: tuple[Point, ...] = tuple(("offline", 100 * k, 0) for k in range(1, 6))


def key_of(omega: float | None, candidates: int) -> str:
    return ("bc" if omega is None else f"omega_{omega:g}") + f"_candidates_{candidates}"


def result(
    task: str,
    method: str,
    seed: int,
    scores: Mapping[tuple[float | None, int], Sequence[float]],
    *,
    chosen: tuple[float | None, int],
    points: Sequence[Point] = OFFLINE,
    status: str = "finished",
    measure: str = "success",
    **changes: Any,
) -> dict[str, Any]:
    """Return a run's result whose cells scored `scores` at `points`."""
    cells = {
        key_of(omega, count): {"policy": "bc" if omega is None else "guided", "omega": omega, "candidates": count}
        for omega, count in scores
    }
    evaluations = []
    for index, (phase, updates, env_steps) in enumerate(points):
        row = {
            key_of(*cell): {
                "success": None,
                "return": 0.0,
                "length": 100.0,
                "action_bound_fraction": 0.1 * (cell[0] or 0),
            }
            | {measure: values[index]}
            for cell, values in scores.items()
            if index < len(values)
        }
        if len(row) == len(scores):
            item = {"phase": phase, "learner_steps": updates, "env_steps": env_steps, "scores": row}
            evaluations.append(item)
    last = evaluations[-1] if evaluations else {"learner_steps": 0, "env_steps": 0}
    diagnostics = {
        name: {"last": value, "median": value, "max": 2 * value}
        for name, value in (
            *(("system/grad_norm", 3.0), ("actor/effective_sample_fraction", 0.5)),
            *(("actor/weight_q05", 0.1), ("actor/weight_q50", 0.4), ("actor/weight_q95", 0.9)),
        )
    }
    return {
        "format": 1,
        "status": status,
        "error": None,
        "learner_steps": last["learner_steps"],
        "env_steps": last["env_steps"],
        "training_s": 5.0,
        "evaluation_s": 2.0,
        "updates_per_s": 100.0,
        "chosen": key_of(*chosen),
        "cells": cells,
        "evaluations": evaluations,
        "diagnostics": diagnostics,
        "task": task,
        "method": method,
        "seed": seed,
        "digest": "00000000",
        **changes,
    }


def scores_of(
    runs: Sequence[Mapping[str, Any]],
    *,
    tasks: Mapping[str, TaskConfig] | None = None,
    methods: Mapping[str, MethodConfig] | None = None,
    **suite: Any,
) -> Scores:
    """Return the scores of some results; tasks and methods are those that occur."""
    return Scores(
        config=SuiteConfig(**suite),
        tasks=tasks or {run["task"]: TaskConfig() for run in runs},
        methods=methods or {run["method"]: MethodConfig() for run in runs},
        runs={(run["task"], run["method"], run["seed"]): run for run in runs},
    )
