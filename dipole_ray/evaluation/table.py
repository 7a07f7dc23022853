"""The numbers of played cells: rows with intervals for tables and files, metrics for curves, the score of a policy."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from dipole_ray.agents.config import AgentConfig
from dipole_ray.data.clusters import clustered_errors
from dipole_ray.evaluation.cells import IFQL, Cell, cell_key, method_name
from dipole_ray.evaluation.play import CellResult
from dipole_ray.evaluation.report import BC, Row
from dipole_ray.evaluation.statistics import bootstrap_interval, wilson_interval

CELL_MEASURES = ("return", "success", "length", "action_bound_fraction")
"""What is logged of every cell; the rest is in `evaluation.json`."""


def summarize(result: CellResult, method: str = "DIPOLE", confidence: float = 0.95) -> Row:
    """Return the table row of a cell: Wilson's interval for success, a seeded bootstrap for the means.

    `method` is the agent's `method_name`. Rows of the behaviour-cloned policy are called `BC`, but for IFQL's with
    candidates to choose from.
    """
    cell, successes = result.cell, result.successes
    is_cloned = cell.policy == "bc" and not (method == IFQL and cell.candidates > 1)
    row: dict[str, Any] = {"method": BC if is_cloned else method, "omega": cell.omega, "candidates": cell.candidates}
    row |= {"episodes": len(result.returns), "success": None, "success_low": None, "success_high": None}
    if successes is not None:
        share = wilson_interval(int(successes.sum()), len(successes), confidence)
        row |= {"success": float(successes.mean()), "success_low": share.low, "success_high": share.high}
    for name, values in {"return": result.returns, "length": result.lengths}.items():
        ends = bootstrap_interval(values, confidence)
        low, high = (None if math.isnan(end) else end for end in ends)  # which a single episode cannot give
        row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    if result.measures:
        values = np.stack(list(result.measures.values()), axis=1)
        errors = [None if math.isnan(error) else float(error) for error in clustered_errors(values, result.clusters)]
        row["scores"] = dict(zip(result.measures, values.mean(axis=0).tolist(), strict=True))
        row["score_errors"] = dict(zip(result.measures, errors, strict=True))
    return cast(Row, {**row, "confidence": confidence, "action_bound_fraction": result.action_bound_fraction})


def rows_of(
    results: Sequence[CellResult], agent: AgentConfig, confidence: float = 0.95, has_success: bool = False
) -> list[Row]:
    """Return the rows of cells played by the agent of a config.

    Where the task is known to define success (`has_success`), or one of the cells tells it, all rows have one: an
    environment may tell of success only.
    """
    if has_success or tells_success(results):
        failed = [np.zeros(len(result.returns), np.bool_) for result in results]
        pairs = zip(results, failed, strict=True)
        results = [one if one.successes is not None else replace(one, successes=none) for one, none in pairs]
    return [summarize(result, method_name(agent), confidence) for result in results]


def tells_success(results: Sequence[CellResult]) -> bool:
    """Return whether an episode of some cell told its success."""
    return any(result.successes is not None for result in results)


def cell_metrics(cell: Cell, row: Row, measures: Sequence[str] = CELL_MEASURES) -> dict[str, float]:
    """Return a cell's metrics, the measure first: MLflow draws a section for each, with a chart for each cell."""
    numbers = [(name, row[name]) for name in measures]  # type: ignore[literal-required]
    numbers += row.get("scores", {}).items()
    return {f"eval/{name}/{cell_key(cell)}": float(value) for name, value in numbers if value is not None}


def row_metrics(group: str, row: Row, *, without: Sequence[str] = ("omega",)) -> dict[str, float]:
    """Return the measures of a row as `group/name`."""
    numbers = [(name, value) for name, value in (*row.items(), *row.get("scores", {}).items()) if name not in without]
    return {f"{group}/{name}": value for name, value in numbers if isinstance(value, float)}
