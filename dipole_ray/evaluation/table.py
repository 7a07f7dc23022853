"""The numbers of played cells: rows with intervals for tables and files, metrics for curves, the score of a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dipole_ray.agents.config import AgentConfig
from dipole_ray.evaluation.cells import IFQL, Cell, cell_key, method_name
from dipole_ray.evaluation.play import CellResult
from dipole_ray.evaluation.report import BC, Row
from dipole_ray.evaluation.statistics import Interval, bootstrap_interval, wilson_interval

CELL_MEASURES = ("return", "success", "length", "action_bound_fraction")
"""What is logged of every cell; the rest is in `evaluation.json`."""


def summarize(result: CellResult, method: str = "DIPOLE", confidence: float = 0.95) -> Row:
    """Return the table row of a cell: Wilson's interval for success, a seeded bootstrap for the means.

    Args:
        result: The episodes.
        method: `method_name` of the agent. Rows of the behaviour-cloned policy are called `BC`, but for IFQL's with
            candidates to choose from.
        confidence: Coverage of the intervals.
    """
    cell, successes = result.cell, result.successes
    is_cloned = cell.policy == "bc" and not (method == IFQL and cell.candidates > 1)
    success, success_ends = None, _ends(None)
    if successes is not None:
        success = float(successes.mean())
        success_ends = _ends(wilson_interval(int(successes.sum()), len(successes), confidence))
    return_ends = _ends(bootstrap_interval(result.returns, confidence))
    length_ends = _ends(bootstrap_interval(result.lengths, confidence))
    return {
        "method": BC if is_cloned else method,
        "omega": cell.omega,
        "candidates": cell.candidates,
        "episodes": len(result.returns),
        "success": success,
        "success_low": success_ends[0],
        "success_high": success_ends[1],
        "return": float(result.returns.mean()),
        "return_low": return_ends[0],
        "return_high": return_ends[1],
        "length": float(result.lengths.mean()),
        "length_low": length_ends[0],
        "length_high": length_ends[1],
        "confidence": confidence,
        "action_bound_fraction": result.action_bound_fraction,
    }


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    """Return the ends of an interval; None where a single episode cannot give one."""
    return (None, None) if interval is None or math.isnan(interval.low) else (interval.low, interval.high)


def rows_of(results: Sequence[CellResult], agent: AgentConfig, confidence: float = 0.95) -> list[Row]:
    """Return the rows of cells played by the agent of a config."""
    return [summarize(result, method_name(agent), confidence) for result in results]


def score_of(row: Row) -> float:
    """Return the number sweeps maximise: success where the task defines it, else the mean return."""
    return float(row["return"] if row["success"] is None else row["success"])


def cell_metrics(cell: Cell, row: Row, measures: Sequence[str] = CELL_MEASURES) -> dict[str, float]:
    """Return a cell's metrics, the measure first: MLflow draws a section for each, with a chart for each cell."""
    numbers = {name: row[name] for name in measures}  # type: ignore[literal-required]
    return {f"eval/{name}/{cell_key(cell)}": float(value) for name, value in numbers.items() if value is not None}


def row_metrics(group: str, row: Row, *, without: Sequence[str] = ("omega",)) -> dict[str, float]:
    """Return the measures of a row as `group/name`."""
    numbers = {name: value for name, value in row.items() if isinstance(value, float) and name not in without}
    return {f"{group}/{name}": value for name, value in numbers.items()}
